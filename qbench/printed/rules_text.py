"""Audit rules that hold sentences of the paper's text against its tables.

What the text says is data, the verdicts are computed: which table has its numbers, what the same cell is
under the other group size, and what remains of the sentence if the two AWQ columns are swapped.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from qbench.printed.finding import HEADERS, Book, Finding, bits, cells, short, worse
from qbench.printed.published import Printed
from qbench.printed.rules_rows import group_order


@dataclass(frozen=True)
class Drop:
    """The text's "from ``start`` to ``end``" for a cell; ``percent`` where it gives only a loss in per cent."""

    said: str
    model: str
    method: str
    w_bits: float
    metric: str
    start: str = ""
    end: str = ""
    percent: float | None = None


@dataclass(frozen=True)
class Ahead:
    """The text's "``winner`` surpasses ``loser``" for a model; both are (method, weight bits)."""

    said: str
    model: str
    winner: tuple[str, float]
    loser: tuple[str, float]
    metric: str


DROPS = (
    Drop("MMLU of the 8B model drops from 74.7 to 69.3 at 4 bits", "qwen3-8b", "awq", 4, "mmlu", "74.7", "69.3"),
    Drop("14B loses 1 % of MMLU under 4-bit GPTQ", "qwen3-14b", "gptq", 4, "mmlu", "78.5", "77.4"),
    Drop("0.6B loses around 10 % under 4-bit GPTQ", "qwen3-0.6b", "gptq", 4, "mmlu", percent=10),
    Drop("8B-Base goes from 10.4 to 23.8 at AWQ W3 g128", "qwen3-8b-base", "awq", 3, "c4_ppl", "10.4", "23.8"),
)
AHEAD = (Ahead("BiLLM surpasses even 3-bit AWQ in the 32B model", "qwen3-32b", ("billm", 1), ("awq", 3), "mmlu"),)
SIZES = ("0.6b", "1.8b", "4b", "7b", "14b", "72b")
BITS = (1, 2, 3, 4, 5, 6, 7, 8)


def drops(book: Book) -> Iterator[Finding]:
    """Losses that the text gives: whether a table has them, and whether the other group size tells another story."""
    swapped = {(c[2], c[3]) for f in group_order(book) for c in f.cells}
    for claim in DROPS:
        rows = [book.get(k, claim.model, claim.method, claim.w_bits) for k in (1, 2, 3, 4)]
        rows = [r for r in rows if r]
        words = [_loss(r, book.base(r), claim.metric) for r in rows]
        if claim.percent is not None:
            lost = [_losses(r, book.base(r), claim.metric) for r in rows]
            if any(abs(x - claim.percent) < 0.15 * claim.percent for pair in lost for x in pair):
                continue
            end = f"neither group size gives {claim.percent:g}, in points or relative"
        else:
            found = [
                r for r in rows if (book.base(r).text[claim.metric], r.text[claim.metric]) == (claim.start, claim.end)
            ]
            apart = [r for r in rows if r not in found]
            if found and not apart:
                continue
            end = f"the numbers are those of Table {found[0].table} only" if found else "no table has these numbers"
            if found and (claim.method, claim.w_bits) in swapped:
                end += "; if the group sizes are swapped, the sentence is about the other table's row"
        yield Finding(
            "text",
            tuple(c for r in rows for c in cells(r, [claim.metric])),
            f"The text: {claim.said}. {'; '.join(words)}; {end}.",
        )


def orders(book: Book) -> Iterator[Finding]:
    """Victories of the text that hold against one printed group size of the loser and not against the other."""
    for claim in AHEAD:
        winner = next(r for k in (1, 2, 3, 4) if (r := book.get(k, claim.model, *claim.winner)))
        losers = [r for k in (1, 2, 3, 4) if (r := book.get(k, claim.model, *claim.loser))]
        unbeaten = [r for r in losers if worse(claim.metric, winner.values[claim.metric], r.values[claim.metric])]
        if unbeaten:
            said = ", ".join(f"{bits(r)} {r.text[claim.metric]} (Table {r.table})" for r in losers)
            yield Finding(
                "text",
                tuple(c for r in (winner, *losers) for c in cells(r, [claim.metric])),
                f"The text: {claim.said}. {HEADERS[claim.metric]} {winner.text[claim.metric]} against {said}; it does "
                f"not surpass {', '.join(bits(r) for r in unbeaten)}.",
            )


def scope(book: Book) -> Iterator[Finding]:
    """Sizes and bits that the text names and no table has."""
    sizes = {r.model.split("-")[1] for r in book.rows}
    printed = {round(r.w_bits) for r in book.quantized}
    if lost := [s for s in SIZES if s not in sizes]:
        instead = sorted(sizes - set(SIZES), key=lambda s: float(s[:-1]))
        yield Finding(
            "text",
            tuple(c for r in book.rows if r.method == "none" for c in cells(r, ["mmlu"])),
            f"The text names {_list(lost)}; the tables have {_list(instead)}.",
        )
    if lost := [b for b in BITS if b not in printed]:
        yield Finding(
            "text",
            tuple(c for r in book.quantized for c in cells(r, ["mmlu"])),
            f"The text announces 1 to 8 bits; no table has {_list([f'{b} bits' for b in lost])}.",
        )


def _losses(row: Printed, base: Printed, metric: str) -> tuple[float, float]:
    """(points, per cent of the 16-bit value)."""
    lost = base.values[metric] - row.values[metric]
    return lost, 100 * lost / base.values[metric]


def _loss(row: Printed, base: Printed, metric: str) -> str:
    points, percent = _losses(row, base, metric)
    group = "per row" if row.group_size is None else f"g{row.group_size}"
    change = f"{base.text[metric]} → {row.text[metric]} ({-points:+.1f}, {-percent:+.1f} %)"
    return f"Table {row.table}, {short(row.model)} {group} {change}"


def _list(words: list[str]) -> str:
    shown = [w.upper() if w.endswith("b") else w for w in words]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
