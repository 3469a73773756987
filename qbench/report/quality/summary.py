"""The table a terminal or a README has room for: a block a metric, a line a model and method, bits across."""

import math
import textwrap

from qbench.report.quality.columns import Column
from qbench.report.quality.rows import Cell, Row
from qbench.report.quality.table import Table, one_evaluation, winners
from qbench.report.quality.variants import UNQUANTIZED

WIDTH, _CELL = 100, 7


def summarize(t: Table) -> str:
    """Plain text at most 100 columns wide: the unquantized model, then 8 .. 1 bits; * marks the best."""
    t = one_evaluation(t)
    columns = t.choose(t.spec.summary, 2)
    bits = sorted({round(r.bits) for r in t.rows if r.on_axis}, reverse=True)
    if not any(r.on_axis for r in t.rows):
        bits = [1] if any(r.method != UNQUANTIZED for r in t.rows) else []
    lines = [t.spec.caption, ""]
    for c in columns:
        block = [(c.titled, "".join(f"{text:>{_CELL}}" for text in ("16 bit", *(f"{b} bit" for b in bits))))]
        lines += [*_align(block + _block(t, c, bits), WIDTH - _CELL * (1 + len(bits))), ""]
    if not columns:
        return f"{t.spec.caption}: nothing measured yet\n"
    if bits:
        lines.append("* best of the methods with equally many bits for weights and for activations")
    lines += t.left_out(columns)
    if any(r.method == "billm" for r in t.rows):
        lines.append("BiLLM is outside the bits axis: in the last column, with nominal / stored bits a weight")
    used = {m for r in t.rows for m in (*r.marks, *(x for c in columns for x in r.cells[c.key].marks))}
    lines += [f"{_raised(m)} {text}" for m, text in t.footnotes.items() if m in used]
    return "\n".join(_fold(line) for line in "\n".join(lines).split("\n")) + "\n"


def _align(block: list[tuple[str, str]], most: int) -> list[str]:
    """Names and their cells; a name longer than ``most`` has a line of its own above its cells."""
    width = max([len(name) for name, _ in block if len(name) < most], default=most - 1) + 1
    return [f"{name:<{width}}{cells}" if len(name) < most else f"{name}\n{'':<{width}}{cells}" for name, cells in block]


def _block(t: Table, c: Column, bits: list[int]) -> list[tuple[str, str]]:
    """The lines of one metric; a model's unquantized value stands in the first of its lines."""
    stars = {id(x) for x in winners([r for r in t.rows if r.method != UNQUANTIZED], c, lambda v: short(c, v))}
    lines, indent = [], max(len(r.model) for r in t.rows) + 2
    for model in dict.fromkeys(r.model for r in t.rows):
        mine = [r for r in t.rows if r.model == model and r.cells[c.key].state != "missing"]
        full = [r for r in mine if r.method == UNQUANTIZED]
        curves: dict[tuple, list[Row]] = {}
        for r in mine:
            if r.method != UNQUANTIZED:
                curves.setdefault(r.series, []).append(r)
        heads = [*full, *[None] * max(0, len(curves) - len(full))]
        for i, reference in enumerate(heads):
            rows = list(curves.values())[i] if i < len(curves) else []
            cells = {round(r.bits) if r.on_axis else bits[-1]: r.cells[c.key] for r in rows}
            name = f"{model if i == 0 else '':<{indent}}{_name(rows)}"
            first = _fit(reference.cells[c.key] if reference else None, c, stars)
            lines.append((name, first + "".join(_fit(cells.get(b), c, stars) for b in bits)))
    return lines


def _name(rows: list[Row]) -> str:
    if not rows:
        return "unquantized"
    r, marks = rows[0], "".join(_raised(m) for m in sorted({m for r in rows for m in r.marks}))
    if r.on_axis or math.isnan(r.stored_bits):
        return r.legend + marks
    return f"{r.name} {r.bits:.3g} / {r.stored_bits:.3g}{marks} {r.variant}"


def _fit(cell: Cell | None, c: Column, stars: set[int]) -> str:
    if cell is None:
        return " " * _CELL
    text = {"failed": "fail", "missing": "–"}.get(cell.state) or short(c, cell.value)
    tail = "*" if id(cell) in stars else _raised(cell.marks[0]) if cell.marks else " "
    return f"{text + tail:>{_CELL}}"


def short(c: Column, value: float) -> str:
    """At most five characters."""
    value *= c.scale
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1e4:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    if c.scale == 100 or 100 <= abs(value) < 1000:
        return f"{value:.1f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _raised(mark: str) -> str:
    """A footnote letter as a superscript, where Unicode has it."""
    return mark.translate(str.maketrans("abcdefghijklmnop", "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖ"))


def _fold(line: str) -> str:
    """A line too long for a terminal goes on below, indented."""
    return line.rstrip() if len(line) <= WIDTH else textwrap.fill(line, WIDTH, subsequent_indent="  ")
