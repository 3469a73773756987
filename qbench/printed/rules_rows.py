"""Audit rules that compare a printed row with other rows.

Two models never give the same ten numbers; a quantized model at 8 bits is near its own 16-bit row and far from
another's; and the same method with finer groups has more freedom, so it cannot be worse in model after model.
"""

import math
from collections.abc import Iterator

from qbench.printed.finding import HEADERS, NAMES, Book, Finding, bits, cells, mean, short, size, where, worse
from qbench.printed.published import METRICS, PERPLEXITIES, TASKS, Printed

ORDERED = ("c4_ppl", "mmlu")  # the two metrics with the most items behind them


def group_order(book: Book) -> Iterator[Finding]:
    """A method whose groups of 128 lose to a scale a row in nearly all models, and how another method does."""
    found, tally = {}, {}
    for row in book.quantized:
        fine = book.regrouped(row)
        if row.table in (1, 2) and fine:
            found.setdefault((row.method, row.w_bits), []).append((row, fine))
    for key, pairs in found.items():
        tally[key] = {m: [0, 0] for m in METRICS}
        for row, fine in pairs:
            for m in METRICS:
                lost = worse(m, fine.values[m], row.values[m])
                tally[key][m][0] += bool(lost)
                tally[key][m][1] += lost is not None
    for (method, w), count in tally.items():
        if not all(count[m][0] >= 0.9 * count[m][1] > 3 for m in ORDERED):
            continue
        lost = sum(c[0] for c in count.values())
        says = [f"{count[m][0]}/{count[m][1]} models in {text}" for m, text in zip(ORDERED, ("C4 PPL", "MMLU"))]
        others = sorted(((v, o) for o, v in tally if o != method and v < 8), key=lambda x: (abs(x[0] - w), -x[0], x[1]))
        controls = []
        for v, other in others[:1]:
            kept = [tally[other, v][m][1] - tally[other, v][m][0] for m in ORDERED]
            controls.append(f"{NAMES[other]} W{v:g} keeps the order in {kept[0]} and {kept[1]}")
        pairs = found[method, w]
        row, fine = max(pairs, key=lambda p: math.log(p[1].values["c4_ppl"] / p[0].values["c4_ppl"]))
        example = (
            f"Farthest apart: {short(row.model)}, C4 {row.text['c4_ppl']} per row and {fine.text['c4_ppl']} g128, "
            f"MMLU {row.text['mmlu']} and {fine.text['mmlu']}"
        )
        yield Finding(
            "group_order",
            tuple(c for pair in pairs for r in pair for c in cells(r)),
            f"{NAMES[method]} W{w:g}: g128 is worse than per row in {' and '.join(says)}, {lost} of "
            f"{sum(c[1] for c in count.values())} cells in all; {', '.join(controls)}. {example}. A finer group "
            "cannot cost that much: Tables 1 and 3, and 2 and 4, look swapped for this method.",
            inference=True,
        )


def repeated_rows(book: Book) -> Iterator[Finding]:
    """A row with at least eight cells of another model's; the one farther from its own 16 bits is doubted."""
    for a, b in book.pairs():
        same = [m for m in METRICS if a.text[m] == b.text[m] != "NaN"]
        if len(same) >= 8:
            strange, home = sorted((a, b), key=lambda r: -_ppl_distance(r, book.base(r)))
            own, c4 = book.base(strange), strange.text["c4_ppl"]
            yield Finding(
                "repeated_row",
                cells(strange),
                f"{where(strange)} repeats {short(home.model)}'s row in {len(same)} of {len(METRICS)} cells "
                f"(C4 {c4}, MMLU {strange.text['mmlu']}); {short(strange.model)}'s own 16-bit row has C4 "
                f"{own.text['c4_ppl']} and MMLU {own.text['mmlu']}.",
            )


def exchanged(book: Book) -> Iterator[Finding]:
    """Six tasks of two models that fit the 16-bit row of the other model better, both of them."""
    clear = list(exchanged_pairs(book))
    for a, b in clear:
        own = [_task_distance(r, book.base(r)) for r in (a, b)]
        cross = [_task_distance(a, book.base(b)), _task_distance(b, book.base(a))]
        yield Finding(
            "exchanged",
            (*cells(a, (*TASKS, "zeroshot_mean")), *cells(b, (*TASKS, "zeroshot_mean"))),
            f"Table {a.table}, {bits(a)}: the six tasks of {short(a.model)} are {own[0]:.1f} points a task from its "
            f"own 16-bit row and {cross[0]:.1f} from {short(b.model)}'s; those of {short(b.model)} {own[1]:.1f} from "
            f"its own and {cross[1]:.1f} from {short(a.model)}'s. {_unexchanged(book, a, b)}",
            inference=True,
        )
    known = {(a.table, a.method, a.model, b.model) for a, b in clear}
    for a, b in book.pairs():
        told = (a.table, a.method, a.model, b.model) in known and (a, b) not in clear
        if told and mean(a) > mean(b) + 1 and all(worse(m, a.values[m], b.values[m]) for m in (*PERPLEXITIES, "mmlu")):
            yield Finding(
                "exchanged",
                (*cells(a, (*TASKS, "zeroshot_mean")), *cells(b, (*TASKS, "zeroshot_mean"))),
                f"Table {a.table}, {bits(a)}: probably too. {short(a.model)} is ahead of {short(b.model)} in the six "
                f"tasks ({mean(a):.1f} and {mean(b):.1f}) and behind in both perplexities and MMLU "
                f"({a.text['mmlu']} and {b.text['mmlu']}), as where the exchange is clear.",
                inference=True,
            )


def exchanged_pairs(book: Book) -> Iterator[tuple[Printed, Printed]]:
    for a, b in book.pairs():
        base_a, base_b = book.base(a), book.base(b)
        own = _task_distance(a, base_a), _task_distance(b, base_b)
        cross = _task_distance(a, base_b), _task_distance(b, base_a)
        if cross[0] < own[0] and cross[1] < own[1] and sum(cross) < 0.75 * sum(own):
            yield a, b


def _unexchanged(book: Book, a: Printed, b: Printed) -> str:
    """Which other metrics have the two models in the order of their 16-bit rows."""
    at_16 = book.base(a).values, book.base(b).values
    metrics = (*PERPLEXITIES, "mmlu")
    kept = [m for m in metrics if worse(m, a.values[m], b.values[m]) == worse(m, at_16[0][m], at_16[1][m])]
    if len(kept) < len(metrics):
        return f"Of perplexities and MMLU, {len(kept)} of {len(metrics)} keep the order of the two models."
    return f"{', '.join(HEADERS[m] for m in kept)} keep the order of the two models."


def near_equal(book: Book) -> Iterator[Finding]:
    """Broken models whose two perplexities agree within 1 %: what is left of a model is its own noise."""
    for a, b in book.pairs():
        gaps = [abs(math.log(a.values[m] / b.values[m])) for m in PERPLEXITIES]
        broken = all(r.values[m] > 100 * book.base(r).values[m] for r in (a, b) for m in PERPLEXITIES)
        if broken and max(gaps) < 0.01:
            yield Finding(
                "near_equal",
                (*cells(a, PERPLEXITIES), *cells(b, PERPLEXITIES)),
                f"Table {a.table}, {bits(a)}: {short(a.model)} and {short(b.model)} print "
                f"{a.text['wikitext2_ppl']} / {a.text['c4_ppl']} and {b.text['wikitext2_ppl']} / {b.text['c4_ppl']}.",
                inference=True,
            )


def larger_worse(book: Book) -> Iterator[Finding]:
    """Plain rounding to 4 bits a row that leaves a larger model behind a smaller one in both perplexities."""
    beaten = {}
    for a, b in book.pairs():
        if (a.method, a.w_bits, a.group_size) == ("rtn", 4, None) and size(a.model) < size(b.model):
            order = [worse(m, b.values[m], a.values[m]) for m in PERPLEXITIES]
            if all(order) and not worse("c4_ppl", book.base(b).values["c4_ppl"], book.base(a).values["c4_ppl"]):
                beaten.setdefault((b.table, b.model), (b, []))[1].append(a)
    for b, smaller in beaten.values():
        lists = ", ".join(f"{short(a.model)} {a.text['wikitext2_ppl']} / {a.text['c4_ppl']}" for a in smaller)
        yield Finding(
            "larger_worse",
            cells(b, PERPLEXITIES),
            f"{where(b)}: {b.text['wikitext2_ppl']} / {b.text['c4_ppl']} on WikiText2 / C4, worse than {lists}; "
            f"at 16 bits it has {book.base(b).text['wikitext2_ppl']} / {book.base(b).text['c4_ppl']}.",
        )


def base_rows(book: Book) -> Iterator[Finding]:
    """The same unquantized model, printed twice with different digits."""
    for row in book.rows:
        other = book.get({1: 3, 2: 4}.get(row.table, 0), row.model, "none")
        if row.method == "none" and other:
            differ = [m for m in METRICS if row.text[m] != other.text[m]]
            for m in differ:
                yield Finding(
                    "base_differs",
                    (*cells(row, [m]), *cells(other, [m])),
                    f"{short(row.model)}, 16 bit, {HEADERS[m]}: {row.text[m]} in Table {row.table}, {other.text[m]} in "
                    f"Table {other.table}.",
                )


def _task_distance(row: Printed, base: Printed) -> float:
    return sum(abs(row.values[t] - base.values[t]) for t in TASKS) / len(TASKS)


def _ppl_distance(row: Printed, base: Printed) -> float:
    return sum(abs(math.log(row.values[m] / base.values[m])) for m in PERPLEXITIES)
