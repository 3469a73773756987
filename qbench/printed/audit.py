"""The audit of the printed tables: which numbers cannot be right, found by rules, and what we do about each.

No rule knows an answer. Each computes it from the numbers, so the same rules would find the same kinds of slip in
another printing of the tables. Nothing is corrected; doubted cells carry a mark in ``results/tables``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from qbench.files import write_atomic
from qbench.printed.book import Book, Found
from qbench.printed.published import METRICS, NAMES, Printed, PrintedCell, load
from qbench.printed.rules_cells import above_16_bit, below_16_bit, impossible, means, misprints, nans
from qbench.printed.rules_rows import base_rows, exchanged, group_order, larger_worse, near_equal, repeated_rows
from qbench.printed.rules_text import claims
from qbench.render.sheet import Cell, Sheet
from qbench.render.writers import pipes, to_tabular


@dataclass(frozen=True)
class Rule:
    """``find`` yields what ``title`` says; ``action`` is what we do about it."""

    find: Callable[[Book], Found]
    title: str
    action: str


@dataclass(frozen=True)
class Finding:
    """One result of the rule named ``kind``; ``evidence`` puts numbers in words."""

    kind: str
    cells: tuple[PrintedCell, ...]
    evidence: str


RULES = {  # by kind of finding, in the order of the page
    "group_order": Rule(group_order, "Groups of 128 worse than one scale per row", "Compare with both printed cells."),
    "exchanged": Rule(exchanged, "Zero-shot rows exchanged between models", "Mark the cells and the means."),
    "repeated_row": Rule(repeated_rows, "A row repeats another model's", "Mark the row."),
    "misprint": Rule(misprints, "One digit looks wrong", "Mark the cell; the digit that would fit is not used."),
    "impossible": Rule(impossible, "One task knows, all others guess", "Mark the cell and the mean that contains it."),
    "above_16": Rule(above_16_bit, "Quantized better than 16 bit beyond chance", "Mark the cell."),
    "below_16_ppl": Rule(
        below_16_bit, "Perplexity below the 16-bit model's", "Mark the cell; ours tells if it is real."
    ),
    "not_mean": Rule(means, "Mean is not that of the six tasks", "Compare ours with the recomputed mean."),
    "base_differs": Rule(base_rows, "16-bit rows differ between tables", "Compare with the table at hand."),
    "nan": Rule(nans, "NaN in print", "Nothing to compare with; ours may be finite."),
    "near_equal": Rule(near_equal, "Two models with the same perplexities", "Mark the cells."),
    "larger_worse": Rule(
        larger_worse, "A larger model worse than a smaller one", "No error: outlier channels cause it."
    ),
    "text": Rule(claims, "The text disagrees with the tables", "Quote the table, not the text."),
}
NOT_DOUBTED = {"base_differs", "nan", "larger_worse", "text"}  # their cells may well be right
INFERRED = {"group_order", "exchanged", "misprint", "near_equal"}  # likely, but not certain by the numbers alone


def findings(rows: list[Printed]) -> list[Finding]:
    """All findings in ``rows`` (as ``qbench.printed.published.load`` gives them), in the order of ``RULES``."""
    book = Book(rows)
    return [Finding(kind, *found) for kind, rule in RULES.items() for found in rule.find(book)]


def doubted(found: Iterable[Finding]) -> dict[PrintedCell, list[str]]:
    """The kinds of finding that doubt each cell; cells that no rule doubts are not in it."""
    out: dict[PrintedCell, list[str]] = {}
    for f in found:
        for cell in f.cells if f.kind not in NOT_DOUBTED else ():
            if f.kind not in out.setdefault(cell, []):
                out[cell].append(f.kind)
    return out


def write_audit(out_dir: str | Path, *, figures: bool = True) -> list[Path]:
    """Writes audit.md, audit.tex and, with ``figures``, audit.png and audit.pdf in ``out_dir``; their paths."""
    rows, folder = load(), Path(out_dir)
    found = findings(rows)
    written = [folder / "audit.md", folder / "audit.tex"]
    write_atomic(written[0], to_markdown(rows, found))
    write_atomic(written[1], to_latex(rows, found))
    if figures:
        from qbench.printed.audit_figure import draw  # matplotlib takes a second to import

        written += draw(rows, folder)
    return written


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
            lines += ["", f"## {rule.title}", "", *group, "", f"What we do: {rule.action}"]
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
    for kind, rule in RULES.items():
        if group := [f for f in found if f.kind == kind]:
            tables = ", ".join(map(str, sorted({cell.table for f in group for cell in f.cells})))
            methods = {cell.method for f in group for cell in f.cells}
            names = ", ".join("16 bit" if m == "none" else name for m, name in NAMES.items() if m in methods)
            sure = "yes" if kind in INFERRED else "no"
            rows.append([Cell(text) for text in (rule.title, str(len(group)), tables, names, sure)])
    return Sheet("audit", "", ["What", "Findings", "Tables", "Methods", "Inference"], "lrlll", [("", rows)])
