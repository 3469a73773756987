"""Tables of quality as text cells: the whole table, and the compact one that a terminal has room for."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import zip_longest

import pandas as pd

from qbench.protocol import NOT_STORED, OWN, PROTOCOLS
from qbench.render.sheet import Cell, Sheet
from qbench.report.quality.columns import METHODS, Column, curve_name
from qbench.report.quality.comparison import winners
from qbench.report.quality.rows import Row, Value, bits_text
from qbench.report.quality.table import SUMMARY, Table
from qbench.report.quality.variants import UNQUANTIZED, flatten, method_of, short_value

BEST = (
    "Bold: the best method at equal model, #W, #A and #G under the same calibration and evaluation, if it differs from "
    "each other one by more than noise: paired tests at 5 % with Holm's correction over this table. –: not measured."
)
VALUES = (
    "±: one standard error over the items. #A 16: activations stay in 16 bits. #G: weights per scale; row: one scale "
    "per row. stored: bits per weight, with scales, zeros and masks."
)
DELTAS = "Difference to the unquantized model on the same items, ± its paired standard error."


def matrix_sheet(t: Table) -> Sheet:
    """A row per quantized model, a column per metric; in csv with standard errors, and with notes spelled out."""
    variant, suffix = any(r.variant for r in t.rows), "_delta" if t.delta else ""
    caption = t.caption + (". Difference to the unquantized model" if t.delta else "")
    head = ["Model", "Method", "#W", "#A", "#G", "stored", *["differs in"] * variant]
    head += [("Δ " if t.delta else "") + c.titled for c in t.columns]
    s = Sheet(t.name + suffix, caption, head, "llrrrr" + "l" * variant + "r" * len(t.columns))
    s.csv_head = ["model", "method", "w_bits", "a_bits", "group_size", "stored_bits", "variant"]
    grouped = {} if t.delta else {c.key: ratios for c in t.columns if (ratios := _by_subject(t, c))}
    for c in t.columns:
        s.csv_head += [c.key + suffix + x for x in ("", "_stderr", *["_stderr_by_subject"] * (c.key in grouped))]
    s.csv_head.append("notes")
    best = winners(t)
    rows: list[list[Cell]] = []
    for r in t.rows:
        stored = "–" if math.isnan(r.stored_bits) else f"{r.stored_bits:.3g}"
        cells = [_model(s, r), Cell(r.name, _marks(s, r)), *map(Cell, [*bits_text(r), stored, *[r.variant] * variant])]
        for v, c in ((r.cells[c.key], c) for c in t.columns):
            cells.append(Cell(v.text(c, t.delta), [s.mark(v.note)] if v.note else [], id(v) in best))
        rows.append(cells)
    texts = s.footnotes.texts()
    for r, cells in zip(t.rows, rows):
        numbers = [x for c in t.columns for x in _csv(r.cells[c.key], c.key in grouped)]
        notes = "; ".join(texts[m] for m in dict.fromkeys(m for cell in cells for m in cell.marks))
        who = [r.model, r.method, r.bits, r.act_bits, r.group_size, r.stored_bits, r.variant]
        s.csv_rows.append([*who, *numbers, notes])
    s.blocks, s.lines = [("", rows)], [f"{DELTAS if t.delta else VALUES} {BEST}", *_protocol(t), *t.notes]
    for c, ratios in ((c, grouped[c.key]) for c in t.columns if c.key in grouped):
        s.lines.append(
            f"{c.header}: if the questions of a subject depend on each other, the standard errors (in the csv) are "
            f"{min(ratios):.1f} to {max(ratios):.1f} times as large."
        )
    return s


def divergence_sheet(t: Table, kernels: pd.DataFrame) -> Sheet:
    """The table of single tokens, and below it the models' noise floors, which are in the frame of ``kernels``."""
    s, rows = matrix_sheet(t), []
    floors = kernels[kernels["metric"].isin([c.key for c in t.columns])]
    for model in dict.fromkeys(r.model for r in t.rows):
        for _, part in floors[floors["model"] == model].groupby("id"):
            found = {r["metric"]: Value.of(r, False) for r in part.to_dict("records")}
            values = [found.get(c.key, Value()) for c in t.columns]
            r, numbers = part.iloc[0], [x for v in values for x in _csv(v)]
            name = f"{METHODS.get(r.method, r.method)} in {r.science['eval']['dtype']}"
            who = [model, name, *bits_text(r), f"{r.stored_bits:.3g}", *[""] * (len(s.head) - len(values) - 6)]
            rows.append([*map(Cell, who), *(Cell(v.text(c)) for v, c in zip(values, t.columns))])
            floor = f"noise floor of {r.science['eval']['dtype']}"
            s.csv_rows.append([model, r.method, r.bits, r.act_bits, r.group_size, r.stored_bits, floor, *numbers, ""])
    if rows:
        s.blocks.append(("Noise floor: a model in 16 bits against itself in float32", rows))
    return s


def bits_across(t: Table, columns: list[Column]) -> Sheet:
    """A block per metric, a row per model and method, bits across: the unquantized model, then 8 .. 1 bits.

    A method without a choice of bits stands in the column nearest to its nominal bits.
    """
    bits = _bits(t)
    head = ["Model", "Method", "16 bit", *(f"{b} bit" for b in bits)]
    s = Sheet(t.name, t.caption, head, "ll" + "r" * (1 + len(bits)))
    best = winners(t)
    for c in columns:
        rows = []

        def shown(v: Value | None, c=c) -> Cell:
            if v is None:
                return Cell("")
            text = c.short(v.value) if v.state == "ok" else v.text(c)
            return Cell(text, [s.mark(v.note)] if v.note else [], id(v) in best)

        for model in dict.fromkeys(r.model for r in t.rows):
            full, curves = [], defaultdict(list)
            mine = [r for r in t.rows if r.model == model and r.cells[c.key].state != "missing"]
            for r in mine:
                if r.method == UNQUANTIZED:
                    full.append(r.cells[c.key])
                else:
                    curves[r.series].append(r)
            for unquantized, curve in zip_longest(full, curves.values()):
                cells = {_nearest(bits, r): r.cells[c.key] for r in curve or ()}
                rows.append(
                    [_model(s, mine[0]), _curve_name(s, curve), *map(shown, (unquantized, *map(cells.get, bits)))]
                )
        s.blocks.append((c.titled, rows))
    return s


def summary_sheet(t: Table) -> Sheet:
    """The first two metrics of SUMMARY that have a value in the compact table ``t``, with bits across."""
    columns = t.choose(SUMMARY, 2)
    s = bits_across(t, columns)
    if not columns:
        s.lines = ["Nothing is measured yet."]
        return s
    if len(s.head) > 3:
        s.lines = ["* the best method at equal bits of weights and of activations and equal group size, beyond noise"]
    s.lines += t.left_out
    if apart := dict.fromkeys(r.name for r in t.rows if not r.on_axis and r.method != UNQUANTIZED):
        bits = _bits(t)
        is_last = all(_nearest(bits, r) == bits[-1] for r in t.rows if r.name in apart)
        where = "last column" if is_last else "column of the nearest bits"
        s.lines.append(f"{', '.join(apart)} in the {where}: nominal bits per weight, in brackets the stored ones")
    return s


def model_cell(s: Sheet, name: str, science: dict) -> Cell:
    """The model's name, with a footnote where its weights were made of a file in another format."""
    note = f"weights from {science['model'].get('from')}: they lie on its grid, so its bits and more lose little"
    return Cell(name, [s.mark(note)] if "from" in science["model"] else [])


def _model(s: Sheet, r: Row) -> Cell:
    return model_cell(s, r.model, next(v.record["science"] for v in r.cells.values() if v.record))


def _curve_name(s: Sheet, curve: list[Row] | None) -> Cell:
    if not curve:
        return Cell("unquantized")
    r, marks = curve[0], sorted({m for r in curve for m in _marks(s, r)})
    if r.on_axis or math.isnan(r.stored_bits):
        return Cell(r.legend, marks)
    name = curve_name(r.name, r.act_bits, -1, f"{r.bits:.3g} ({r.stored_bits:.3g})")
    return Cell(f"{name} {r.variant}".strip(), marks)


def _bits(t: Table) -> list[int]:
    """The columns of bits: those of the methods on the bits axis, or of the others where there are none."""
    rows = [r for r in t.rows if r.on_axis] or [r for r in t.rows if r.method != UNQUANTIZED]
    return sorted({round(r.bits) if r.bits > 0 else 1 for r in rows}, reverse=True)


def _nearest(bits: list[int], r: Row) -> int:
    """The column of ``bits`` that ``r`` stands in; the last one where its own bits are not known."""
    return min(reversed(bits), key=lambda b: abs(b - r.bits) if r.bits > 0 else 0)


def _marks(s: Sheet, r: Row) -> list[str]:
    return sorted({s.mark(text, n) for text, n in sorted(r.notes.items())})


def _csv(v: Value, by_subject: bool = False) -> tuple:
    own = (v.record.get("stderr_by_subject"),) * by_subject
    if v.state != "ok":
        return ("failed" if v.state == "failed" else None, None, *own)
    return ("nan" if math.isnan(v.value) else v.value, v.stderr, *own)


def _by_subject(t: Table, c: Column) -> list[float]:
    """How much larger the standard errors are if the questions of a subject depend on each other, per row."""
    values = [v for v in (r.cells[c.key] for r in t.rows) if v.state == "ok" and v.stderr > 0]
    return [x for v in values if not math.isnan(x := v.record["stderr_by_subject"] / v.stderr)]


def _protocol(t: Table) -> list[str]:
    """The protocols of the records, and the settings of those that are shown."""
    named = Counter(t.records["protocol"])
    which = [f"{p} ({named[p]} records)" if len(named) > 1 else p for p in (*PROTOCOLS, OWN, NOT_STORED) if named[p]]
    shown = ((r.cells[c.key].record, c.header) for c in t.columns for r in t.rows)
    lines = [f"Protocol: {', '.join(which)}."] if which else []
    return lines + settings((record["science"], header) for record, header in shown if record)


def settings(found: Iterable[tuple[dict, str]]) -> list[str]:
    """A line per evaluation and calibration of ``found``, pairs of a science and what it measured."""

    def say(d: dict) -> str:
        short: dict = {k: f"{len(v)} items" if isinstance(v, dict | list) and len(v) > 3 else v for k, v in d.items()}
        fields = sorted((k, v) for k, v in flatten(short).items() if k != "name" and v is not None)
        return ", ".join(f"{k}={short_value(v)}" for k, v in fields)

    evals, calibs = defaultdict(dict), defaultdict(dict)  # per text what it holds for, in order
    for s, what in found:
        if ev := s.get("eval"):
            evals[f"{ev.get('name', 'eval')}: {say(ev)}"][what] = None
        if s.get("calib"):
            calibs[say(s["calib"])][method_of(s)["name"]] = None
    lines = [f"{', '.join(of)} by {text}." for text, of in sorted(evals.items())]
    for text, of in sorted(calibs.items()):
        lines.append(f"Calibration: {text}" + (f" ({', '.join(of)})." if len(calibs) > 1 else "."))
    return lines
