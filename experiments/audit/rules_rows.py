"""Audit rules that compare a printed row with other rows.

Two models never give the same ten numbers. A quantized model at 8 bits is near its own 16-bit row and far from
another model's. The same method with finer groups has more freedom, so it cannot be worse in model after model.
"""

import math
from collections import defaultdict

from experiments.audit.book import Book, Found, billions, place, setting, worse
from qbench.printed.published import HEADERS, METRICS, NAMES, PERPLEXITIES, TASKS, Printed

OTHERS = (*PERPLEXITIES, "mmlu")  # what stands beside the six tasks
MOST_ITEMS = ("c4_ppl", "mmlu")  # the two metrics with the most items behind them


def group_order(book: Book) -> Found:
    """Finds a method whose groups of 128 are worse than one scale per row in at least 90 % of the models."""
    pairs = defaultdict(list)  # (method, bits): [(row, the same with groups of 128), ...]
    for row in book.quantized:
        if row.group_size is None and (fine := book.regrouped(row)):
            pairs[row.method, row.w_bits].append((row, fine))
    lost = {  # per (method, bits) and metric: whether groups lose, for every model with both numbers
        key: {m: [x for row, fine in both if (x := worse(m, fine, row)) is not None] for m in METRICS}
        for key, both in pairs.items()
    }
    for (method, w), by_metric in lost.items():
        if not all(sum(by_metric[m]) >= 0.9 * len(by_metric[m]) > 3 for m in MOST_ITEMS):
            continue
        says = [f"{sum(by_metric[m])}/{len(by_metric[m])} models in {HEADERS[m]}" for m in MOST_ITEMS]
        others = [key for key in lost if key[0] != method and key[1] < 8]
        control = ""
        for other, v in sorted(others, key=lambda key: (abs(key[1] - w), -key[1], key[0]))[:1]:
            kept = [lost[other, v][m].count(False) for m in MOST_ITEMS]
            control = f"; {NAMES[other]} W{v:g} keeps the order in {kept[0]} and {kept[1]}"
        row, fine = max(pairs[method, w], key=lambda pair: pair[1].values["c4_ppl"] / pair[0].values["c4_ppl"])
        evidence = (
            f"{NAMES[method]} W{w:g}: g128 is worse than per row in {' and '.join(says)}, in "
            f"{sum(map(sum, by_metric.values()))} of {sum(map(len, by_metric.values()))} cells in all{control}. "
            f"Farthest apart: {row.size}, C4 {row.text['c4_ppl']} per row and {fine.text['c4_ppl']} g128, MMLU "
            f"{row.text['mmlu']} and {fine.text['mmlu']}. A finer group cannot cost that much: Tables 1 and 3, and 2 "
            "and 4, look exchanged for this method."
        )
        both = [cell for pair in pairs[method, w] for r in pair for cell in r.cells()]
        yield tuple(both), evidence


def repeated_rows(book: Book) -> Found:
    """Finds rows with at least eight cells of another model's row; the one farther from its own 16 bits is doubted."""
    for a, b in book.pairs():
        same = [m for m in METRICS if a.text[m] == b.text[m] != "NaN"]
        if len(same) >= 8:
            strange, home = sorted((a, b), key=lambda r: -_perplexity_distance(r, book.base(r)))
            own = book.base(strange).text
            evidence = (
                f"{place(strange)} repeats {home.size}'s row in {len(same)} of {len(METRICS)} cells (C4 "
                f"{strange.text['c4_ppl']}, MMLU {strange.text['mmlu']}); {strange.size}'s own 16-bit row has C4 "
                f"{own['c4_ppl']} and MMLU {own['mmlu']}."
            )
            yield strange.cells(), evidence


def exchanged(book: Book) -> Found:
    """Finds two models whose six tasks each fit the other model's 16-bit row better than their own.

    At fewer bits, where no 16-bit row is near, the same two models are called exchanged if one is ahead in the tasks
    and behind in perplexities and MMLU.
    """
    clear = exchanged_pairs(book)
    known = {(a.table, a.method, a.model, b.model) for a, b in clear}
    for a, b in clear:
        base_a, base_b = book.base(a), book.base(b)
        kept = sum(worse(m, a, b) == worse(m, base_a, base_b) for m in OTHERS)
        evidence = (
            f"Table {a.table}, {setting(a)}: the six tasks of {a.size} are {_task_distance(a, base_a):.1f} points per "
            f"task from its own 16-bit row and {_task_distance(a, base_b):.1f} from {b.size}'s; those of {b.size} are "
            f"{_task_distance(b, base_b):.1f} from its own and {_task_distance(b, base_a):.1f} from {a.size}'s. "
            f"Of perplexities and MMLU, {kept} of {len(OTHERS)} keep the order of the two models."
        )
        yield _tasks(a, b), evidence
    for a, b in book.pairs():
        if (a.table, a.method, a.model, b.model) not in known or (a, b) in clear:
            continue
        if a.task_mean > b.task_mean + 1 and all(worse(m, a, b) for m in OTHERS):
            evidence = (
                f"Table {a.table}, {setting(a)}: probably too. {a.size} is ahead of {b.size} in the six tasks "
                f"({a.task_mean:.1f} and {b.task_mean:.1f}) and behind in both perplexities and MMLU "
                f"({a.text['mmlu']} and {b.text['mmlu']}), as where the exchange is clear."
            )
            yield _tasks(a, b), evidence


def exchanged_pairs(book: Book) -> list[tuple[Printed, Printed]]:
    """The pairs of rows whose six tasks clearly fit the other model's 16-bit row better."""
    found = []
    for a, b in book.pairs():
        base_a, base_b = book.base(a), book.base(b)
        own = _task_distance(a, base_a), _task_distance(b, base_b)
        cross = _task_distance(a, base_b), _task_distance(b, base_a)
        if cross[0] < own[0] and cross[1] < own[1] and sum(cross) < 0.75 * sum(own):
            found.append((a, b))
    return found


def near_equal(book: Book) -> Found:
    """Finds broken models whose two perplexities agree within 1 %, though two models break in different ways."""
    for a, b in book.pairs():
        gaps = [abs(math.log(a.values[m] / b.values[m])) for m in PERPLEXITIES]
        broken = all(r.values[m] > 100 * book.base(r).values[m] for r in (a, b) for m in PERPLEXITIES)
        if broken and max(gaps) < 0.01:
            evidence = f"Table {a.table}, {setting(a)}: {a.size} and {b.size} print {_both(a)} and {_both(b)}."
            yield a.cells(*PERPLEXITIES) + b.cells(*PERPLEXITIES), evidence


def larger_worse(book: Book) -> Found:
    """Finds rounding to 4 bits per row that leaves a larger model behind a smaller one in both perplexities."""
    beaten = defaultdict(list)
    for a, b in book.pairs():
        rtn = (a.method, a.w_bits, a.group_size) == ("rtn", 4, None)
        larger_is_better = billions(a.model) < billions(b.model) and not worse("c4_ppl", book.base(b), book.base(a))
        if rtn and larger_is_better and all(worse(m, b, a) for m in PERPLEXITIES):
            beaten[place(b)].append((a, b))
    for where, pairs in beaten.items():
        larger = pairs[0][1]
        smaller = ", ".join(f"{a.size} {_both(a)}" for a, _ in pairs)
        evidence = f"{where}: {_both(larger)} on WikiText2 / C4, worse than {smaller}; at 16 bits it has "
        yield larger.cells(*PERPLEXITIES), f"{evidence}{_both(book.base(larger))}."


def base_rows(book: Book) -> Found:
    """Finds an unquantized model that two tables print with different digits."""
    for row in book.rows:
        if row.method == "none" and row.table in (1, 2) and (other := book.regrouped(row)):
            for m in (m for m in METRICS if row.text[m] != other.text[m]):
                shown = f"{row.text[m]} in Table {row.table}, {other.text[m]} in Table {other.table}"
                yield row.cells(m) + other.cells(m), f"{row.size}, 16 bit, {HEADERS[m]}: {shown}."


def _task_distance(row: Printed, base: Printed) -> float:
    return sum(abs(row.values[t] - base.values[t]) for t in TASKS) / len(TASKS)


def _perplexity_distance(row: Printed, base: Printed) -> float:
    return sum(abs(math.log(row.values[m] / base.values[m])) for m in PERPLEXITIES)


def _tasks(a: Printed, b: Printed) -> tuple:
    return a.cells(*TASKS, "zeroshot_mean") + b.cells(*TASKS, "zeroshot_mean")


def _both(row: Printed) -> str:
    return f"{row.text['wikitext2_ppl']} / {row.text['c4_ppl']}"
