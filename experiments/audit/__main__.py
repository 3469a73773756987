"""Writes results/audit, the page about printed numbers that cannot be right, and paper/published/doubts.csv.

    python -m experiments.audit [FOLDER]

doubts.csv lists the doubted cells, which ``qbench report`` marks in the paper's tables. Takes no measurement.
"""

import argparse
import sys
from pathlib import Path

from experiments.audit.figure import draw
from experiments.audit.rules import INFERRED, RULES, TITLES, Finding, doubted, findings
from qbench.files import packaged, write_atomic
from qbench.printed.published import METRICS, NAMES, Printed, load
from qbench.render.sheet import Cell, Sheet
from qbench.render.writers import pipes, to_tabular

ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "results" / "audit")
    for path in write(parser.parse_args().folder, packaged("paper/published")):
        print(path)
    return 0


def write(folder: Path, published: Path) -> list[Path]:
    """Writes audit.md, .tex, .png and .pdf in ``folder`` and doubts.csv in ``published``; the paths."""
    rows = load()
    found = findings(rows)
    texts = {folder / "audit.md": to_markdown(rows, found), folder / "audit.tex": to_latex(rows, found)}
    texts |= {published / "doubts.csv": doubts_csv(rows, found)}
    for path, text in texts.items():
        write_atomic(path, text)
    return [*texts, *draw(rows, folder)]


def doubts_csv(rows: list[Printed], found: list[Finding]) -> str:
    """A line per printed row and kind of doubt: the row, the kind, and its metrics or "all"."""
    lines, doubts = ["table,model,method,w_bits,a_bits,kind,metrics"], doubted(found)
    for kind in RULES:
        for row in rows:
            if metrics := [c.metric for c in row.cells() if kind in doubts.get(c, ())]:
                which = "all" if len(metrics) == len(METRICS) else " ".join(metrics)
                lines.append(f"{row.table},{row.model},{NAMES[row.method]},{row.w_bits:g},{row.a_bits},{kind},{which}")
    return "\n".join(lines) + "\n"


def to_markdown(rows: list[Printed], found: list[Finding]) -> str:
    """The page: a summary, then each finding with its evidence."""
    lines = [
        "# The printed tables, audited",
        "",
        f"The four result tables of arXiv 2505.02214v1 print {len(rows) * len(METRICS):,} numbers. Rules that know no "
        f"answer compare each with its neighbours. They make {len(found)} findings and doubt {len(doubted(found))} "
        "cells, most of them because AWQ's two group sizes look exchanged. Nothing is corrected; our tables mark these "
        "cells.",
        "",
        *pipes(_summary(found)),
        "",
        "Inference: likely by the numbers, but only the authors can say. The rest is plain arithmetic.",
        "",
        "![AWQ's group sizes, and the printed means](audit.png)",
    ]
    for kind, rule in RULES.items():
        if group := [f"- {f.evidence}" for f in found if f.kind == kind]:
            lines += ["", f"## {TITLES[kind]}", "", *group, "", f"What we do: {rule.action}"]
    return "\n".join(lines) + "\n"


def to_latex(rows: list[Printed], found: list[Finding]) -> str:
    """The summary as a booktabs table."""
    counts = f"{len(found)} findings, {len(doubted(found))} of {len(rows) * len(METRICS)} cells in doubt"
    return (
        "% \\usepackage{booktabs}\n\\begin{table}\\centering\\small\n"
        f"\\caption{{The printed tables, audited: {counts}.}}\\label{{tab:audit}}\n"
        f"{to_tabular(_summary(found))}\\end{{table}}\n"
    )


def _summary(found: list[Finding]) -> Sheet:
    """One row per kind of finding."""
    rows = []
    for kind in RULES:
        if group := [f for f in found if f.kind == kind]:
            tables = ", ".join(map(str, sorted({cell.table for f in group for cell in f.cells})))
            methods = {cell.method for f in group for cell in f.cells}
            names = ", ".join("16 bit" if m == "none" else name for m, name in NAMES.items() if m in methods)
            sure = "yes" if kind in INFERRED else "no"
            rows.append([Cell(text) for text in (TITLES[kind], str(len(group)), tables, names, sure)])
    return Sheet("audit", "", ["What", "Findings", "Tables", "Methods", "Inference"], "lrlll", [("", rows)])


if __name__ == "__main__":
    sys.exit(main())
