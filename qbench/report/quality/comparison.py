"""Which method is better: pairs of methods at equal bits, tested on the same items.

A table compares many pairs, so that some would differ by chance: every p below is corrected by Holm's procedure over
all tests of its table.
"""

import math
from collections import defaultdict

from qbench.render.sheet import Cell, Sheet
from qbench.report.quality.columns import Column
from qbench.report.quality.rows import Row, Value, bits_text
from qbench.report.quality.table import Table
from qbench.report.quality.variants import UNQUANTIZED, canon
from qbench.significance import LEVEL, Comparison, compare, holm

LINES = [
    "Difference: the method minus the one that it is compared with, on the same items, ± its paired standard error. p: "
    "of no difference, by McNemar's exact test for questions and the paired t test for windows of text, with Holm's "
    "correction over this table; bold below 5 %. Visible: the smallest true difference that one such test, before the "
    "correction, finds with a probability of 80 %.",
    "Flips: answers that went from right to wrong / from wrong to right. By subject: the standard error if the "
    "questions of a subject depend on each other.",
]


def bracket(r: Row, record: dict) -> tuple:
    """What rivals have in common: model, weight and activation bits, group size and calibration."""
    said = record["science"]
    return canon(said["model"]), canon(said.get("calib")), f"{r.bits:.3g}", r.act_bits, str(r.group_size)


def against(a: Value, b: Value) -> Comparison:
    """What the outcomes behind cell ``a`` are against those behind ``b``."""
    if a.state != "ok" or b.state != "ok":
        return Comparison()
    return compare(a.record["outcomes"], b.record["outcomes"], a.record["subjects"])


def winners(t: Table) -> set[int]:
    """The ``id`` of each cell that is better than every rival under the same evaluation by more than noise.

    The largest p of its tests against them is below 5 %, after Holm's correction over all best cells of the table.
    Rivals that failed or diverged are beaten without a test.
    """
    best, p = [], []
    for c in (c for c in t.columns if c.higher_is_better is not None):
        rivals = defaultdict(list)
        for r in t.rows:
            if x := r.cells[c.key].record:
                rivals[*bracket(r, x), x["evaluation"]].append(r.cells[c.key])
        for cells in rivals.values():
            finite = sorted((v for v in cells if v.finite), key=lambda v: v.value, reverse=bool(c.higher_is_better))
            tests = [against(finite[0], v).p for v in finite[1:]]
            if len(cells) > 1 and finite and not any(map(math.isnan, tests)):
                best.append(finite[0])
                p.append(max(tests, default=0.0))
    return {id(v) for v, corrected in zip(best, holm(p)) if corrected <= LEVEL}


def comparison_sheet(t: Table, columns: list[Column]) -> Sheet:
    """A row per quantized model of the compact table ``t`` and what it is compared with: the unquantized model, and
    its rivals."""
    rows, keys = [], [bracket(r, next(v.record for v in r.cells.values() if v.record)) for r in t.rows]
    for i, r in enumerate(t.rows):
        for a, key in zip(t.rows[:i], keys):
            is_base = a.method == UNQUANTIZED and key[0] == keys[i][0]
            if r.method != UNQUANTIZED and (is_base or key == keys[i]):
                rows.append((r, a, [against(r.cells[c.key], a.cells[c.key]) for c in columns]))
    models = list(dict.fromkeys(r.model for r in t.rows))
    rows.sort(key=lambda row: (models.index(row[0].model), -row[0].bits))
    tests = [x for *_, found in rows for x in found if not math.isnan(x.p)]
    corrected = dict(zip(map(id, tests), holm([x.p for x in tests])))
    answers = [any(found[i].flips for *_, found in rows) for i in range(len(columns))]
    s = Sheet(t.name.replace("_matrix", "_comparison"), f"{t.caption}. Pairs of methods on the same items", [], "")
    s.lines = LINES[: 1 + any(answers)]
    s.head, s.blocks = ["Model", "#W", "#A", "#G", "Method", "compared with"], [("", [])]
    for c, has_answers in zip(columns, answers):
        s.head += [f"Δ {c.titled}", "p", "visible", *["± by subject", "flips"] * has_answers]
    s.align = "lrrrll" + "r" * (len(s.head) - 6)
    s.csv_head = ["model", "w_bits", "a_bits", "group_size", "variant", "method", "against", "metric", "difference"]
    s.csv_head += ["stderr", "p", "p_holm", "visible", "stderr_by_subject", "right_to_wrong", "wrong_to_right"]
    for r, a, found in rows:
        cells = [Cell(text) for text in (r.model, *bits_text(r), f"{r.name} {r.variant}".strip(), a.name)]
        for c, x, has_answers in zip(columns, found, answers):
            p = corrected.get(id(x), math.nan)
            cells.append(Cell("–" if math.isnan(x.difference) else c.text(x.difference, x.stderr, signed=True)))
            cells += [Cell(_p(p), bold=p <= LEVEL), Cell(_size(c, x.visible))]
            if has_answers:
                cells += [Cell(_size(c, x.clustered)), Cell(f"{x.flips[0]} / {x.flips[1]}" if x.flips else "–")]
            who = [r.model, r.bits, r.act_bits, r.group_size, r.variant, r.method, a.method, c.key]
            s.csv_rows.append([*who, x.difference, x.stderr, x.p, p, x.visible, x.clustered, *(x.flips or (None,) * 2)])
        s.blocks[0][1].append(cells)
    return s


def _p(p: float) -> str:
    return "–" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _size(c: Column, x: float) -> str:
    x *= c.scale
    return "–" if math.isnan(x) else f"{x:.0f}" if x >= 100 else f"{x:.2g}"
