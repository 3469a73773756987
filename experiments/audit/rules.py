"""Which printed numbers cannot be right, found by rules, and what we do about each.

No rule knows an answer. Each computes it from the numbers, so the same rules would find the same kinds of slip in
another printing of the tables. Nothing is corrected. The titles of rules that put a cell in doubt are those of
``qbench.printed.published.DOUBTS``, whose letters stand in ``results/tables``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from experiments.audit.book import Book, Found
from experiments.audit.rules_cells import above_16_bit, below_16_bit, impossible, means, misprints, nans
from experiments.audit.rules_rows import base_rows, exchanged, group_order, larger_worse, near_equal, repeated_rows
from experiments.audit.rules_text import claims
from qbench.printed.published import DOUBTS, Printed, PrintedCell


@dataclass(frozen=True)
class Rule:
    """``find`` yields what the title of its kind says; ``action`` is what we do about it."""

    find: Callable[[Book], Found]
    action: str


@dataclass(frozen=True)
class Finding:
    """One result of the rule named ``kind``; ``evidence`` puts numbers in words."""

    kind: str
    cells: tuple[PrintedCell, ...]
    evidence: str


RULES = {  # by kind of finding, in the order of the page
    "group_order": Rule(group_order, "Compare with both printed cells."),
    "exchanged": Rule(exchanged, "Mark the cells and the means."),
    "repeated_row": Rule(repeated_rows, "Mark the row."),
    "misprint": Rule(misprints, "Mark the cell; the digit that would fit is not used."),
    "impossible": Rule(impossible, "Mark the cell and the mean that contains it."),
    "above_16": Rule(above_16_bit, "Mark the cell."),
    "below_16_ppl": Rule(below_16_bit, "Mark the cell; ours tells if it is real."),
    "not_mean": Rule(means, "Compare ours with the recomputed mean."),
    "base_differs": Rule(base_rows, "Compare with the table at hand."),
    "nan": Rule(nans, "Nothing to compare with; ours may be finite."),
    "near_equal": Rule(near_equal, "Mark the cells."),
    "larger_worse": Rule(larger_worse, "No error: outlier channels cause it."),
    "text": Rule(claims, "Quote the table, not the text."),
}
TITLES = DOUBTS | {  # the cells of the other kinds may well be right
    "base_differs": "16-bit rows differ between tables",
    "nan": "NaN in print",
    "larger_worse": "A larger model worse than a smaller one",
    "text": "The text disagrees with the tables",
}
INFERRED = {"group_order", "exchanged", "misprint", "near_equal"}  # likely, but not certain by the numbers alone


def findings(rows: list[Printed]) -> list[Finding]:
    """All findings in ``rows`` (as ``qbench.printed.published.load`` gives them), in the order of ``RULES``."""
    book = Book(rows)
    return [Finding(kind, *found) for kind, rule in RULES.items() for found in rule.find(book)]


def doubted(found: Iterable[Finding]) -> dict[PrintedCell, list[str]]:
    """The kinds of finding that doubt each cell; cells that no rule doubts are not in it."""
    out: dict[PrintedCell, list[str]] = {}
    for f in found:
        for cell in f.cells if f.kind in DOUBTS else ():
            if f.kind not in out.setdefault(cell, []):
                out[cell].append(f.kind)
    return out
