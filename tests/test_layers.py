"""The house keeps its order: a file imports only from lower layers, and nothing heavy where it is not wanted."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "qbench"
LAYERS = [
    ("hub", "signals", "settings", "progress", "shape"),
    ("data.sources", "costs"),
    ("nano", "files"),
    ("protocol",),
    ("grid", "stats", "record", "latency.record", "data.windows", "models.block", "models.placement"),
    ("weights", "data.corpus", "models.anatomies", "models.files", "models.gguf_file", "render"),
    ("store", "significance", "calibration", "provenance", "machine", "kernels", "printed", "formats"),
    ("methods.base", "linear", "models.prequantized", "models.checkpoint", "tracking", "outcomes", "report"),
    ("methods", "models.quantized"),
    ("statistics_cache", "decoder"),
    ("latency",),
    ("stream",),
    ("measure",),
    ("config", "overrides"),
    ("plan",),
    ("fetch", "records", "quantization"),
    ("run", "export"),
    ("cli",),
]
FILES = sorted(p for p in ROOT.rglob("*.py") if p.name != "__init__.py" or p.parent != ROOT)


def layer(module: str) -> int:
    """The layer of "methods.gptq" and the like; a folder's files are of the folder's layer unless listed."""
    found = [(len(name), i) for i, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")]
    return max(found)[1] if found else -1


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("qbench"):
            base = node.module.removeprefix("qbench").lstrip(".")
            yield from (base or alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("qbench.") for a in node.names if a.name.startswith("qbench."))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if own in ("models", "methods", "data"):
        return
    assert layer(own) >= 0, f"{own} has no layer in this test"
    room = own.split(".")[0]
    for other in imports(path):
        allowed = layer(other) < layer(own) or (other.split(".")[0] == room and (ROOT / room).is_dir())
        assert allowed, f"{own} imports {other}, which is not below it"


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("qbench.cli", {"torch"}),
        ("qbench.report", {"torch"}),
        ("qbench.records", {"torch"}),
        ("qbench.stream", {"hydra", "lm_eval"}),
        ("qbench.kernels.packed", {"hydra", "transformers"}),
        ("experiments.gpu_timing.session", {"hydra", "lm_eval", "datasets"}),
        ("qbench.measure.decode_speed", {"hydra", "lm_eval"}),
    ],
)
def test_imports_stay_light(module, banned):
    code = f"import sys, {module}; print(*{banned} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == []


def test_no_import_circles():
    """No file needs itself, inside a room neither, also where an import stands in a function."""
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
    needs = {name: {to for to in files_imported(path, names) if to != name} for name, path in names.items()}
    while free := [name for name, others in needs.items() if not others & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, f"these files import each other: {', '.join(sorted(needs))}"


def files_imported(path: Path, names: dict):
    """The files that ``path`` imports anywhere; ``from room import file`` is the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("qbench"):
            base = node.module.removeprefix("qbench").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                yield full if full in names else base
