"""Audit rules that compare one printed cell with its row and with the 16-bit row of its model.

The number of questions of a task bounds what chance can do: two accuracies p on n questions differ by chance with a
standard error of at most sqrt(2 p (1 - p) / n), and of less where the questions are the same.
"""

import math

from experiments.audit.book import Book, Found, place
from experiments.audit.rules_rows import exchanged_pairs
from qbench.printed.published import HEADERS, METRICS, PERPLEXITIES, TASKS, Printed

QUESTIONS = dict(zip((*TASKS, "mmlu"), (1838, 2376, 1172, 10042, 1267, 3270, 14042)))
GUESSING = dict(zip((*TASKS, "mmlu"), (50, 25, 25, 25, 50, 50, 25)))
SIGMAS = 2.5  # about 1,400 cells are compared, and the bound above is generous
TOLERANCE = 0.15  # of a mean of six numbers with one decimal, itself printed with one


def misprints(book: Book) -> Found:
    """Finds a task far from a 16-bit row that the other five tasks follow, where one changed digit would fit."""
    partner: dict[tuple, Printed] = {}
    for a, b in exchanged_pairs(book):
        partner |= {(a.table, *a.cell): b, (b.table, *b.cell): a}
    for row in book.quantized:
        for owner in filter(None, (row, partner.get((row.table, *row.cell)))):
            base = book.base(owner)
            gaps = {t: abs(row.values[t] - base.values[t]) for t in TASKS}
            odd = max(TASKS, key=gaps.__getitem__)
            rest = max(gap for t, gap in gaps.items() if t != odd)
            fit = min(_one_digit_changed(row.text[odd]), key=lambda x: abs(float(x) - base.values[odd]))
            if rest <= 1.5 and gaps[odd] > 4 and abs(float(fit) - base.values[odd]) <= 1.5:
                whose = "its own" if owner is row else f"{owner.size}'s"
                evidence = (
                    f"{place(row)}, {HEADERS[odd]} {row.text[odd]}: the other five tasks are within {rest:.1f} of "
                    f"{whose} 16-bit row, this one is {gaps[odd]:.1f} off ({base.text[odd]}); {fit} would fit."
                )
                yield row.cells(odd), evidence


def impossible(book: Book) -> Found:
    """Finds a task more than 20 points above guessing where MMLU and the other tasks (BoolQ aside) guess."""
    tested = [t for t in GUESSING if t != "boolq"]
    for row in book.quantized:
        above = {t: row.values[t] - GUESSING[t] for t in tested}
        odd = max(tested, key=above.__getitem__)
        if above[odd] > 20 and all(gap < 6 for t, gap in above.items() if t != odd):
            others = ", ".join(f"{HEADERS[t]} {row.text[t]}" for t in tested if t != odd)
            peers = [r.values[odd] for r in book.same_setting(row)]
            usual = sum(peers) / len(peers)
            evidence = (
                f"{place(row)}: {HEADERS[odd]} {row.text[odd]} beside {others}; the other models print {min(peers):g} "
                f"to {max(peers):g} there. The printed mean {row.text['zeroshot_mean']} contains it: with "
                f"{usual:.1f} instead it would be {row.task_mean + (usual - row.values[odd]) / len(TASKS):.1f}."
            )
            yield row.cells(odd, "zeroshot_mean"), evidence


def above_16_bit(book: Book) -> Found:
    """Finds a quantized model whose accuracy is above its own 16-bit accuracy by more than chance can explain."""
    for row in book.quantized:
        base, found = book.base(row), {}
        for task, n in QUESTIONS.items():
            p = base.values[task] / 100
            sigmas = (row.values[task] - base.values[task]) / (100 * math.sqrt(2 * p * (1 - p) / n))
            if sigmas > SIGMAS:
                found[task] = f"{HEADERS[task]} {row.text[task]} over {base.text[task]} ({sigmas:.1f} standard errors)"
        if found:
            yield row.cells(*found), f"{place(row)}: {', '.join(found.values())}."


def below_16_bit(book: Book) -> Found:
    """Finds a perplexity below the 16-bit model's by more than rounding (one unit of the print) and 0.5 %."""
    for row in book.quantized:
        base = book.base(row)
        for m in PERPLEXITIES:
            unit = max(row.step(m), base.step(m))
            if base.values[m] - row.values[m] > max(1.5 * unit, 0.005 * base.values[m]):
                evidence = f"{place(row)}: {HEADERS[m]} {row.text[m]} is below the 16-bit model's {base.text[m]}."
                yield row.cells(m), evidence


def means(book: Book) -> Found:
    """Finds a printed mean that is not the mean of the six tasks beside it; the largest difference comes first."""
    gaps = [(row.values["zeroshot_mean"] - row.task_mean, row) for row in book.rows]
    for gap, row in sorted(gaps, key=lambda pair: -abs(pair[0])):
        if abs(gap) > TOLERANCE:
            words = f"printed {row.text['zeroshot_mean']}, the six tasks average {row.task_mean:.2f} ({gap:+.2f})"
            yield row.cells("zeroshot_mean"), f"{place(row)}: {words}."


def nans(book: Book) -> Found:
    """Finds rows that print NaN."""
    for row in book.rows:
        if lost := [m for m in METRICS if math.isnan(row.values[m])]:
            yield row.cells(*lost), f"{place(row)}: {' and '.join(HEADERS[m] for m in lost)}."


def _one_digit_changed(text: str) -> list[str]:
    """All numbers that differ from ``text`` in one digit."""
    places = [i for i, c in enumerate(text) if c.isdigit()]
    return [text[:i] + d + text[i + 1 :] for i in places for d in "0123456789" if d != text[i]]
