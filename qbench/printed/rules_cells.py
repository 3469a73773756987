"""Audit rules that look at one printed cell beside its neighbours in the row and its model's 16-bit row.

The number of questions of each task bounds what chance can do: two accuracies p of n questions differ by
chance with a standard error of at most sqrt(2 p (1 - p) / n), and less where the questions are the same ones.
"""

import math
from collections.abc import Iterator

from qbench.printed.finding import HEADERS, Book, Finding, cells, mean, short, where
from qbench.printed.published import METRICS, PERPLEXITIES, TASKS, Printed
from qbench.printed.rules_rows import exchanged_pairs

ITEMS = {"piqa": 1838, "arc_easy": 2376, "arc_challenge": 1172, "hellaswag": 10042, "winogrande": 1267, "boolq": 3270}
ITEMS |= {"mmlu": 14042}
GUESSING = {"piqa": 50, "arc_easy": 25, "arc_challenge": 25, "hellaswag": 25, "winogrande": 50, "boolq": 50, "mmlu": 25}
SIGMAS = 2.5  # about 1,400 cells are looked at and the bound above is generous
TOLERANCE = 0.15  # of a mean of six numbers with one decimal, itself printed with one


def misprints(book: Book) -> Iterator[Finding]:
    """A task far from a 16-bit row that the other five tasks follow closely, and right with one digit changed."""
    partners = {}
    for a, b in exchanged_pairs(book):
        partners |= {(a.table, *a.cell): b, (b.table, *b.cell): a}
    for row in book.quantized:
        partner = partners.get((row.table, *row.cell))
        owners = [row, partner] if partner else [row]
        for owner in owners:
            base = book.base(owner)
            gaps = {t: abs(row.values[t] - base.values[t]) for t in TASKS}
            odd = max(TASKS, key=gaps.get)
            rest = max(gap for t, gap in gaps.items() if t != odd)
            near = [x for x in _one_digit(row.text[odd]) if abs(float(x) - base.values[odd]) <= 1.5]
            if rest <= 1.5 and gaps[odd] > 4 and near:
                digit = min(near, key=lambda x: abs(float(x) - base.values[odd]))
                whose = "its own" if owner is row else f"{short(owner.model)}'s"
                yield Finding(
                    "misprint",
                    cells(row, [odd]),
                    f"{where(row)}, {HEADERS[odd]} {row.text[odd]}: the other five tasks are within {rest:.1f} of "
                    f"{whose} 16-bit row, this one {gaps[odd]:.1f} off ({base.text[odd]}); {digit} would fit.",
                    inference=True,
                )


def impossible(book: Book) -> Iterator[Finding]:
    """One task more than 20 points above guessing while MMLU and the other tasks (BoolQ aside) guess."""
    tested = [t for t in (*TASKS, "mmlu") if t != "boolq"]
    for row in book.quantized:
        above = {t: row.values[t] - GUESSING[t] for t in tested}
        odd = max(tested, key=above.get)
        if above[odd] > 20 and all(gap < 6 for t, gap in above.items() if t != odd):
            others = ", ".join(f"{HEADERS[t]} {row.text[t]}" for t in tested if t != odd)
            peers = [r.values[odd] for r in _same_cell(book, row) if r is not row]
            usual = sum(peers) / len(peers)
            yield Finding(
                "impossible",
                cells(row, [odd, "zeroshot_mean"]),
                f"{where(row)}: {HEADERS[odd]} {row.text[odd]} beside {others}; the other models print {min(peers):g} "
                f"to {max(peers):g} there. The printed mean {row.text['zeroshot_mean']} contains it: with "
                f"{usual:.1f} instead it would be {mean(row) + (usual - row.values[odd]) / len(TASKS):.1f}.",
            )


def above_16_bit(book: Book) -> Iterator[Finding]:
    """A quantized model whose accuracy is above its own 16-bit one by more than sampling can explain."""
    for row in book.quantized:
        base, found = book.base(row), []
        for t, n in ITEMS.items():
            p = base.values[t] / 100
            error = 100 * math.sqrt(2 * p * (1 - p) / n)
            if row.values[t] - base.values[t] > SIGMAS * error:
                found.append((t, (row.values[t] - base.values[t]) / error))
        if found:
            words = ", ".join(
                f"{HEADERS[t]} {row.text[t]} over {base.text[t]} ({s:.1f} standard errors)" for t, s in found
            )
            yield Finding("above_16", cells(row, [t for t, _ in found]), f"{where(row)}: {words}.")


def below_16_bit(book: Book) -> Iterator[Finding]:
    """A perplexity below the 16-bit model's by more than rounding (one unit of the print) and 0.5 %."""
    for row in book.quantized:
        base = book.base(row)
        for m in PERPLEXITIES:
            step = max(row.step(m), base.step(m))
            if base.values[m] - row.values[m] > max(1.5 * step, 0.005 * base.values[m]):
                yield Finding(
                    "below_16_ppl",
                    cells(row, [m]),
                    f"{where(row)}: {HEADERS[m]} {row.text[m]} is below the 16-bit model's {base.text[m]}.",
                )


def means(book: Book) -> Iterator[Finding]:
    """A printed average that is not the mean of the six tasks beside it."""
    for row in book.rows:
        gap, shown = row.values["zeroshot_mean"] - mean(row), row.text["zeroshot_mean"]
        if abs(gap) > TOLERANCE:
            yield Finding(
                "not_mean",
                cells(row, ["zeroshot_mean"]),
                f"{where(row)}: printed {shown}, the six tasks average {mean(row):.2f} ({gap:+.2f}).",
            )


def nans(book: Book) -> Iterator[Finding]:
    for row in book.rows:
        if lost := [m for m in METRICS if math.isnan(row.values[m])]:
            yield Finding("nan", cells(row, lost), f"{where(row)}: {' and '.join(HEADERS[m] for m in lost)}.")


def _one_digit(text: str) -> list[str]:
    """All numbers that differ from ``text`` in one digit."""
    places = [i for i, c in enumerate(text) if c.isdigit()]
    return [text[:i] + d + text[i + 1 :] for i in places for d in "0123456789" if d != text[i]]


def _same_cell(book: Book, row: Printed) -> list[Printed]:
    """The row of each model with the same table, method and bits."""
    return [r for r in book.rows if (r.table, *r.cell[1:]) == (row.table, *row.cell[1:])]
