"""Fills the generated sections of README.md and docs/ from results/.

    python experiments/readme.py                                    # writes
    python experiments/readme.py --check                            # exit code 1 where a section is out of date
    python experiments/readme.py --print SECTION [--results DIR]    # one section, of any results folder

A section stands between ``<!-- name -->`` and ``<!-- /name -->``.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from experiments.readme_speed import latency, speed
from qbench.files import write_atomic
from qbench.report import Report, frame, load

ROOT = Path(__file__).resolve().parent.parent

# The table of the README: perplexity and accuracy of one small model at five bit-widths
MODEL, BITS = "nano-m", (8, 4, 3, 2, 1)
PPL, ACC = "nano/ppl", "nano_world/acc"
METHODS = {"rtn": "RTN", "gptq": "GPTQ", "awq": "AWQ", "smoothquant": "SmoothQuant, 8-bit activations"}
REAL, REAL_PPL, REAL_KL = "smollm2-135m", "wikitext2/ppl", "wikitext2/kl"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--print", dest="section", choices=[name for names in PAGES.values() for name in names])
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    if options.section:
        print(SECTIONS[options.section](options.results))
        return 0
    stale = []
    for page, text in pages(options.results).items():
        if (ROOT / page).read_text() != text:
            stale.append(page)
            if not options.check:
                write_atomic(ROOT / page, text)
    if options.check and stale:
        print(f"out of date: {', '.join(stale)}; run python experiments/readme.py")
        return 1
    return 0


def pages(results: Path) -> dict[str, str]:
    """Path: the page as it should be. ValueError for a page without its section."""
    full = {}
    for page, names in PAGES.items():
        text = (ROOT / page).read_text()
        for name in names:
            shown = SECTIONS[name](results).rstrip("\n") + "\n"
            pattern = re.compile(f"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
            text, found = pattern.subn(lambda _, s=shown: s, text)
            if found != 1:
                raise ValueError(f"{page} has {found} sections <!-- {name} -->, not one")
        full[page] = text
    return full


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(wrapped(line, "* ") for line in lines)


def wrapped(text: str, mark: str = "") -> str:
    """At most 100 columns wide."""
    rest = " " * len(mark)
    return textwrap.fill(
        text, 100, initial_indent=mark, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def results_table(results: Path) -> str:
    """Perplexity and accuracy of one model: unquantized, four methods over bits, and BiLLM at its own bits."""
    df = frame(*load(results))
    df = df[(df.model == MODEL) & df.metric.isin([PPL, ACC])]
    df = df[(df.method == "billm") | df.bits.isin([*BITS, 16])]
    unquantized, billm = df[df.method == "none"], df[df.method == "billm"]
    (nominal,), (stored,) = billm.nominal_bits.unique(), billm.stored_bits.unique()
    heads = [f"{bits} bit{'s' if bits > 1 else ''}" for bits in BITS]
    lines = [f"| {MODEL}: perplexity ↓, accuracy ↑ | {' | '.join(heads)} |", "|---|" + "---:|" * len(BITS)]
    lines.append(row("unquantized", pd.concat(unquantized.assign(bits=bits) for bits in BITS)))
    lines += [row(shown, df[df.method == method]) for method, shown in METHODS.items()]
    lines.append(row(f"BiLLM, {nominal:.2f} bits ({stored:.2f} stored)", billm.assign(bits=1)))
    ppl, acc = df[df.metric == PPL], df[df.metric == ACC]
    relative, points = 100 * ppl.stderr / ppl.value, 100 * acc.stderr
    note = (
        f"Perplexity on {int(ppl.n.max())} windows and accuracy on {int(acc.n.max())} questions (guessing gives 25 %); "
        f"RTN, GPTQ and AWQ with groups of 128. Standard errors: {relative.min():.1f} to {relative.max():.1f} % of a "
        f"perplexity, {points.min():.1f} to {points.max():.1f} points of accuracy."
    )
    return "\n".join([*lines, "", wrapped(note)])


def real_table(results: Path) -> str:
    """Perplexity and divergence of the real model, as far as measured."""
    df = frame(*load(results))
    df = df[(df.model == REAL) & df.metric.isin([REAL_PPL, REAL_KL])]
    full = df[(df.method == "none") & (df.metric == REAL_PPL)]
    if not len(full):
        return "The real model, SmolLM2-135M, is not measured yet."
    heads = [f"{bits} bit{'s' if bits > 1 else ''}" for bits in BITS]
    lines = [f"| {REAL}: perplexity ↓, KL ↓ | {' | '.join(heads)} |", "|---|" + "---:|" * len(BITS)]
    for method, shown in METHODS.items():
        values = df[df.method == method].set_index(["metric", "bits"])["value"]
        cells = [
            f"{short(values[REAL_PPL, b])}, {values[REAL_KL, b]:.3g}" if (REAL_PPL, b) in values.index else "–"
            for b in BITS
        ]
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    billm = df[df.method == "billm"]
    if len(billm):
        ppl, kl = (billm[billm.metric == metric].iloc[0] for metric in (REAL_PPL, REAL_KL))
        name = f"BiLLM, {ppl.nominal_bits:.2f} bits ({ppl.stored_bits:.2f} stored)"
        lines.append(f"| {name} |{'  |' * (len(BITS) - 1)} {short(ppl.value)}, {kl.value:.3g} |")
    note = (
        f"WikiText-2, {int(full.n.iloc[0])} windows of 2,048 tokens; unquantized {short(full.value.iloc[0])}. "
        "KL in nats per token from the unquantized model. Its weights come from a 4-bit file (Q4_1 GGUF), so 5 bits "
        "and more lose little by construction. Groups of 64; calibrated on 32 x 512 tokens of a sample of C4."
    )
    return "\n".join([*lines, "", wrapped(note)])


def row(name: str, cells: pd.DataFrame) -> str:
    """One line of the table; a bit-width that was not measured stays empty."""
    values = {(metric, bits): value for metric, bits, value in zip(cells.metric, cells.bits, cells.value)}
    shown = [f"{short(values[PPL, b])}, {values[ACC, b]:.1%}" if (PPL, b) in values else "" for b in BITS]
    return f"| {name} | {' | '.join(shown)} |"


def short(perplexity: float) -> str:
    if perplexity >= 1e5:
        return f"{perplexity:.1e}".replace("e+0", "e")
    digits = 3 if perplexity < 10 else 2 if perplexity < 100 else 0
    return f"{perplexity:,.{digits}f}"


def nano_summary(results: Path) -> str:
    return f"```text\n{Report(results).summary()}```"


SECTIONS = {
    "results": results_table,
    "real": real_table,
    "nano_summary": nano_summary,
    "speed": lambda results: bullets(speed(results)),
    "latency": lambda results: bullets(latency(results)),
}
PAGES = {"README.md": ["results", "real"], "docs/results.md": ["nano_summary"], "docs/speed.md": ["speed", "latency"]}

if __name__ == "__main__":
    sys.exit(main())
