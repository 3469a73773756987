"""Audit rules that compare sentences of the paper's text with its tables.

The sentences are data and the verdicts are computed: which table has the numbers, what the same cell is under the other
group size, and what remains of the sentence if AWQ's group sizes are exchanged.
"""

from experiments.audit.book import Book, Found, setting, worse
from experiments.audit.rules_rows import group_order
from qbench.printed.published import HEADERS, Printed

FALLS = (  # the sentence; model, method and weight bits; the metric; its numbers (from, to)
    ("MMLU of the 8B model drops from 74.7 to 69.3 at 4 bits", ("qwen3-8b", "awq", 4), "mmlu", ("74.7", "69.3")),
    ("14B loses 1 % of MMLU under 4-bit GPTQ", ("qwen3-14b", "gptq", 4), "mmlu", ("78.5", "77.4")),
    ("8B-Base goes from 10.4 to 23.8 at AWQ W3 g128", ("qwen3-8b-base", "awq", 3), "c4_ppl", ("10.4", "23.8")),
)
LOSSES = (  # the same with a loss in per cent
    ("0.6B loses around 10 % under 4-bit GPTQ", ("qwen3-0.6b", "gptq", 4), "mmlu", 10),
)
VICTORIES = (  # the sentence; winner and loser; the metric
    ("BiLLM surpasses even 3-bit AWQ in the 32B model", ("qwen3-32b", "billm", 1), ("qwen3-32b", "awq", 3), "mmlu"),
)
SIZES = ("0.6B", "1.8B", "4B", "7B", "14B", "72B")


def claims(book: Book) -> Found:
    """Finds sentences of the text that the tables do not bear out."""
    for rule in (falls, losses, victories, announced):
        yield from rule(book)


def falls(book: Book) -> Found:
    """Finds "from a to b" where not every table with this cell has a and b."""
    swapped = {(cell.method, cell.w_bits) for cells, _ in group_order(book) for cell in cells}
    for said, cell, metric, numbers in FALLS:
        rows = book.all_tables(*cell)
        having = [row.table for row in rows if (book.base(row).text[metric], row.text[metric]) == numbers]
        if len(having) < len(rows):
            verdict = f"the numbers are those of Table {having[0]} only" if having else "no table has these numbers"
            if having and cell[1:] in swapped:
                verdict += "; if the group sizes are exchanged, the sentence is about the other table's row"
            yield _told(rows, metric, f"The text: {said}. {_changes(book, rows, metric)}; {verdict}")


def losses(book: Book) -> Found:
    """Finds a loss in per cent that no table has, neither in points nor relative to 16 bits."""
    for said, cell, metric, percent in LOSSES:
        rows = book.all_tables(*cell)
        points = [(book.base(row).values[metric] - row.values[metric], book.base(row).values[metric]) for row in rows]
        if all(abs(x - percent) >= 0.15 * percent for lost, base in points for x in (lost, 100 * lost / base)):
            verdict = f"neither group size gives {percent:g}, in points or relative"
            yield _told(rows, metric, f"The text: {said}. {_changes(book, rows, metric)}; {verdict}")


def victories(book: Book) -> Found:
    """Finds a victory that does not hold against every printed group size of the loser."""
    for said, winner, loser, metric in VICTORIES:
        first, rows = book.all_tables(*winner)[0], book.all_tables(*loser)
        if unbeaten := [setting(row) for row in rows if worse(metric, first, row)]:
            against = ", ".join(f"{setting(row)} {row.text[metric]} (Table {row.table})" for row in rows)
            verdict = f"{HEADERS[metric]} {first.text[metric]} against {against}; it does not surpass {_list(unbeaten)}"
            yield _told([first, *rows], metric, f"The text: {said}. {verdict}")


def announced(book: Book) -> Found:
    """Finds sizes and weight bits that the text names and no table has."""
    printed = {row.size.split("-")[0] for row in book.rows}
    if lost := [size for size in SIZES if size not in printed]:
        instead = sorted(printed - set(SIZES), key=lambda size: float(size[:-1]))
        rows = [row for row in book.rows if row.method == "none"]
        yield _told(rows, "mmlu", f"The text names {_list(lost)}; the tables have {_list(instead)}")
    bits = {round(row.w_bits) for row in book.quantized}
    if lost := [f"{b} bits" for b in range(1, 9) if b not in bits]:
        yield _told(book.quantized, "mmlu", f"The text announces 1 to 8 bits; no table has {_list(lost)}")


def _told(rows: list[Printed], metric: str, evidence: str) -> tuple:
    return tuple(cell for row in rows for cell in row.cells(metric)), f"{evidence}."


def _changes(book: Book, rows: list[Printed], metric: str) -> str:
    """Each row beside its 16-bit row: the change in points, and in per cent of the 16-bit value."""
    out = []
    for row in rows:
        base = book.base(row)
        change = row.values[metric] - base.values[metric]
        words = f"{base.text[metric]} → {row.text[metric]} ({change:+.1f}, {100 * change / base.values[metric]:+.1f} %)"
        out.append(f"Table {row.table}, {row.size} {row.grouping} {words}")
    return "; ".join(out)


def _list(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
