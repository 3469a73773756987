"""Tables of quality as text cells: the whole table, and the compact one that a terminal has room for."""

import math
from collections import Counter, defaultdict

from qbench.protocol import NOT_STORED, OWN, PROTOCOLS
from qbench.render.footnotes import Footnotes
from qbench.render.sheet import Cell, Sheet
from qbench.report.quality.columns import Column
from qbench.report.quality.rows import Row, Value, bits_text
from qbench.report.quality.table import SUMMARY, Table, one_evaluation, winners
from qbench.report.quality.variants import UNQUANTIZED, canon, flatten, short_value

BEST = (
    "Bold: the best method at equal model, #W, #A and #G under the same calibration and evaluation, compared as "
    "printed; nothing is bold where all tie. –: not measured."
)
VALUES = (
    "±: one standard error over the items. #A 16: activations stay in 16 bits. #G: weights per scale; row: one scale "
    "per row. stored: bits per weight, with scales, zeros and masks."
)
DELTAS = "Difference to the unquantized model on the same items, ± its paired standard error."


def matrix_sheet(t: Table) -> Sheet:
    """A row per quantized model, a column per metric; in csv with standard errors, and with notes spelled out."""
    variant, suffix = any(r.variant for r in t.rows), "_delta" if t.delta else ""
    caption = t.spec.caption + (". Difference to the unquantized model" if t.delta else "")
    head = ["Model", "Method", "#W", "#A", "#G", "stored", *["differs in"] * variant]
    head += [("Δ " if t.delta else "") + c.titled for c in t.columns]
    s = Sheet(t.spec.name + suffix, caption, head, "llrrrr" + "l" * variant + "r" * len(t.columns))
    best = set().union(*(winners(t.rows, c, c.text) for c in t.columns))
    rows = []
    for r in t.rows:
        cells = [_model(s, r), Cell(r.name, _marks(s, r)), *map(Cell, bits_text(r)), Cell(_digits(r.stored_bits))]
        cells += [Cell(r.variant)] * variant
        for c in t.columns:
            v = r.cells[c.key]
            cells.append(Cell(v.text(c, t.delta), [s.mark(v.note)] if v.note else [], id(v) in best))
        rows.append(cells)
    s.blocks, s.lines = [("", rows)], [f"{DELTAS if t.delta else VALUES} {BEST}", *_protocol(t), *t.notes]
    s.csv_head = ["model", "method", "w_bits", "a_bits", "group_size", "stored_bits", "variant"]
    s.csv_head += [*(c.key + suffix + x for c in t.columns for x in ("", "_stderr")), "notes"]
    texts = s.footnotes.texts()
    for r, cells in zip(t.rows, rows):
        numbers = [x for c in t.columns for x in _csv(r.cells[c.key])]
        notes = "; ".join(texts[m] for m in dict.fromkeys(m for cell in cells for m in cell.marks))
        who = [r.model, r.method, r.bits, r.act_bits, r.group_size, r.stored_bits, r.variant]
        s.csv_rows.append([*who, *numbers, notes])
    return s


def bits_across(t: Table, columns: list[Column], footnotes: Footnotes | None = None) -> Sheet:
    """A block per metric, a row per model and method, bits across: the unquantized model, then 8 .. 1 bits."""
    bits = sorted({round(r.bits) for r in t.rows if r.on_axis}, reverse=True)
    bits = bits or [1] * any(r.method != UNQUANTIZED for r in t.rows)
    head = ["Model", "Method", "16 bit", *(f"{b} bit" for b in bits)]
    s = Sheet(t.spec.name, t.spec.caption, head, "ll" + "r" * (1 + len(bits)), footnotes=footnotes or Footnotes())
    for c in columns:
        best, rows = winners(t.rows, c, c.short), []

        def shown(v: Value | None, c=c, best=best) -> Cell:
            if v is None:
                return Cell("")
            text = c.short(v.value) if v.state == "ok" else v.text(c)
            return Cell(text, [s.mark(v.note)] if v.note else [], id(v) in best)

        for model in dict.fromkeys(r.model for r in t.rows):
            mine = [r for r in t.rows if r.model == model and r.cells[c.key].state != "missing"]
            full, curves = [r.cells[c.key] for r in mine if r.method == UNQUANTIZED], defaultdict(list)
            for r in mine:
                if r.method != UNQUANTIZED:
                    curves[r.series].append(r)
            for i in range(max(len(full), len(curves))):
                curve = list(curves.values())[i] if i < len(curves) else []
                cells = {round(r.bits) if r.on_axis else bits[-1]: r.cells[c.key] for r in curve}
                values = [full[i] if i < len(full) else None, *map(cells.get, bits)]
                rows.append([_model(s, mine[0]), _curve_name(s, curve), *map(shown, values)])
        s.blocks.append((c.titled, rows))
    return s


def summary_sheet(t: Table, footnotes: Footnotes) -> Sheet:
    """The first two metrics of SUMMARY that have a value, with bits across; one evaluation of each."""
    t = one_evaluation(t)
    columns = t.choose(SUMMARY, 2)
    s = bits_across(t, columns, footnotes)
    if not columns:
        s.lines = ["Nothing is measured yet."]
        return s
    if len(s.head) > 3:
        s.lines = ["* the best method at equal bits of weights and of activations and equal group size"]
    s.lines += t.left_out(columns)
    if apart := dict.fromkeys(r.name for r in t.rows if not r.on_axis and r.method != UNQUANTIZED):
        s.lines.append(f"{', '.join(apart)} in the last column: nominal bits per weight, in brackets the stored ones")
    return s


def model_cell(s: Sheet, name: str, science: dict) -> Cell:
    """The model's name, with a footnote where its weights were made of a file in another format."""
    note = f"weights from {science['model'].get('from')}: they lie on its grid, so its bits and more lose little"
    return Cell(name, [s.mark(note)] if "from" in science["model"] else [])


def _model(s: Sheet, r: Row) -> Cell:
    return model_cell(s, r.model, next(v.record["science"] for v in r.cells.values() if v.record))


def _curve_name(s: Sheet, curve: list[Row]) -> Cell:
    if not curve:
        return Cell("unquantized")
    r, marks = curve[0], sorted({m for r in curve for m in _marks(s, r)})
    if r.on_axis or math.isnan(r.stored_bits):
        return Cell(r.legend, marks)
    return Cell(f"{r.name} {r.bits:.3g} ({r.stored_bits:.3g}) {r.variant}".strip(), marks)


def _marks(s: Sheet, r: Row) -> list[str]:
    return sorted({s.mark(text, n) for text, n in sorted(r.notes.items())})


def _digits(x: float) -> str:
    return "–" if math.isnan(x) else f"{x:.3g}"


def _csv(v: Value) -> tuple:
    if v.state != "ok":
        return ("failed" if v.state == "failed" else None, None)
    return ("nan" if math.isnan(v.value) else v.value, v.stderr)


def _protocol(t: Table) -> list[str]:
    """A line per evaluation and calibration in use: its columns and fields, digests shortened."""

    def say(d: dict) -> str:
        short: dict = {k: f"{len(v)} items" if isinstance(v, dict | list) and len(v) > 3 else v for k, v in d.items()}
        fields = sorted((k, v) for k, v in flatten(short).items() if k != "name" and v is not None)
        return ", ".join(f"{k}={short_value(v)}" for k, v in fields)

    evals: dict[str, dict] = defaultdict(dict)
    for c in t.columns:
        for x in (r.cells[c.key].record for r in t.rows):
            if ev := x and x["science"].get("eval"):
                evals[f"{ev.get('name', 'eval')}: {say(ev)}"][c.header] = None
    calibs = {canon(s["calib"]): s["calib"] for s in t.records["science"] if s.get("calib")}
    named = Counter(t.records["protocol"])
    which = [f"{p} ({named[p]} records)" if len(named) > 1 else p for p in (*PROTOCOLS, OWN, NOT_STORED) if named[p]]
    lines = [f"Protocol: {', '.join(which)}."] if which else []
    lines += [f"{', '.join(headers)} by {text}." for text, headers in sorted(evals.items())]
    return lines + [f"Calibration: {say(calibs[k])}." for k in sorted(calibs)]
