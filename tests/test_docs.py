"""The pages for readers: links lead somewhere, and the Python in them runs."""

import os
import re
import shutil
import subprocess
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest

from qbench.kernels.launch import interpreted

ROOT = Path(__file__).parents[1]
PAGES = sorted(p.relative_to(ROOT) for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "paper/README.md"))
PAGES += [Path("qbench/nano/README.md"), Path("experiments/LOG.md")]
SNIPPETS = [(p, code) for p in PAGES for code in re.findall(r"```python\n(.*?)```", (ROOT / p).read_text(), re.DOTALL)]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            text = file.read_text()
            headings = [
                re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"(?m)^#+ (.*)$", text)
            ]
            assert anchor in (*headings, *re.findall(r'<a id="([^"]+)">', text)), f"{page} links to {target}"


def run(code: str, folder: Path) -> None:
    os.chdir(folder)
    exec(code, {"__name__": "__main__"})


@pytest.mark.parametrize(("page", "code"), SNIPPETS, ids=[f"{p}-{i}" for i, (p, _) in enumerate(SNIPPETS)])
def test_python_in_the_pages_runs(page, code, tmp_path):
    if '"packed"' in code and not interpreted():
        pytest.skip("it multiplies on the CPU, and the kernels of this process run on a GPU")
    (tmp_path / "results").symlink_to(ROOT / "results")
    process = ForkProcess(target=run, args=(code, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("target", ["install", "demo", "real", "real TEXT=wikitext2 DATA=x", "lint", "test", "results"])
def test_what_make_would_run_is_shell(target):
    commands = subprocess.run(["make", "-n", *target.split()], cwd=ROOT, capture_output=True, text=True, check=True)
    checked = subprocess.run(["sh", "-n"], input=commands.stdout, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
