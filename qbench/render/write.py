"""A table as csv, Markdown and LaTeX; the same records give the same bytes."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING

from qbench.render.escape import md, tex

if TYPE_CHECKING:
    from qbench.report.quality.columns import Column
    from qbench.report.quality.rows import Cell, Row
    from qbench.report.quality.table import Table


BEST = (
    "Bold: the best method at equal model, #W, #A and #G under the same calibration and evaluation, as printed (no "
    "bold where all tie). – not measured."
)
VALUES = "± one standard error over the items; #A 16: activations stay in 16 bits; stored: bits a weight."
DELTAS = "Difference to the unquantized model on the same items, ± its paired standard error."


def to_csv(t: Table) -> str:
    """One line a row: six digits, notes spelled out; a failed cell says so, a missing one is empty."""
    out = io.StringIO()
    w = csv.writer(out, lineterminator="\n")
    suffix = "_delta" if t.delta else ""
    head = ["model", "method", "w_bits", "a_bits", "group_size", "stored_bits", "variant"]
    w.writerow([*head, *(c.key + suffix + x for c in t.columns for x in ("", "_stderr")), "notes"])
    for r in t.rows:
        cells = [r.cells[c.key] for c in t.columns]
        marks = dict.fromkeys([*r.marks, *(m for c in cells for m in c.marks)])
        numbers = [x for c in cells for x in _csv_cell(c)]
        bits = map(_number, (r.bits, r.act_bits, r.group_size, r.stored_bits))
        w.writerow([r.model, r.method, *bits, r.variant, *numbers, "; ".join(t.footnotes[m] for m in marks)])
    return out.getvalue()


def to_markdown(t: Table) -> str:
    """A pipe table, then legend, protocol and footnotes."""
    variant = any(r.variant for r in t.rows)
    head = ["Model", "Method", "#W", "#A", "#G", "stored", *["differs in"] * variant]
    lines = [f"**{_caption(t)}**", "", f"| {' | '.join(head + [_header(t, c) for c in t.columns])} |"]
    lines.append("|" + "---|" * 2 + "---:|" * 4 + "---|" * variant + "---:|" * len(t.columns))
    for r in t.rows:
        cells = [md(r.model), md(r.name) + _sup(r.marks), *_bits(r), *[md(r.variant)] * variant]
        for c in t.columns:
            text, cell = cell_text(r.cells[c.key], c, t.delta), r.cells[c.key]
            cells.append((f"**{text}**" if cell.best else text) + _sup(cell.marks))
        lines.append(f"| {' | '.join(cells)} |")
    feet = [*_legend(t), *(f"<sup>{m}</sup> {text}" for m, text in t.footnotes.items())]
    return "\n".join([*lines, "", *(f"- {line}" for line in feet)]) + "\n"


def to_latex(t: Table) -> str:
    """A longtable that breaks over pages; needs booktabs and longtable."""
    variant = any(r.variant for r in t.rows)
    head = ["Model", "Method", "#W", "#A", "#G", "stored", *["differs in"] * variant]
    head = " & ".join(tex(h) for h in head + [_header(t, c) for c in t.columns]) + r" \\"
    label = t.spec.name + ("_delta" if t.delta else "")
    lines = [
        r"% \usepackage{booktabs,longtable}",
        r"\begingroup\scriptsize\setlength{\tabcolsep}{3pt}",
        r"\begin{longtable}{llrrrr" + "l" * variant + "r" * len(t.columns) + "}",
        rf"\caption{{{tex(_caption(t))}}}\label{{tab:{label}}}\\",
        *(r"\toprule", head, r"\midrule", r"\endfirsthead", r"\toprule", head, r"\midrule", r"\endhead"),
        *(r"\bottomrule", r"\endfoot"),
    ]
    last = None
    for r in t.rows:
        if last is not None and r.model != last:
            lines.append(r"\midrule")
        cells = [tex(r.model) if r.model != last else "", tex(r.name) + _tex_sup(r.marks)]
        cells += map(tex, [*_bits(r), *[r.variant] * variant])
        for c in t.columns:
            text, cell = tex(cell_text(r.cells[c.key], c, t.delta)), r.cells[c.key]
            cells.append((rf"\textbf{{{text}}}" if cell.best else text) + _tex_sup(cell.marks))
        lines.append(" & ".join(cells) + r" \\")
        last = r.model
    feet = [*map(tex, _legend(t)), *(rf"$^{{{m}}}$ {tex(text)}" for m, text in t.footnotes.items())]
    return "\n".join([*lines, r"\end{longtable}", r"\noindent " + "\\\\\n".join(feet), r"\par\endgroup"]) + "\n"


def cell_text(cell: Cell, c: Column, signed: bool = False) -> str:
    if cell.state == "ok":
        return c.text(cell.value, cell.stderr, signed)
    return "failed" if cell.state == "failed" else "–"


def _caption(t: Table) -> str:
    return t.spec.caption + (". Difference to the unquantized model" if t.delta else "")


def _header(t: Table, c: Column) -> str:
    return ("Δ " if t.delta else "") + c.titled


def _legend(t: Table) -> list[str]:
    return [f"{DELTAS if t.delta else VALUES} {BEST}", *t.protocol]


def _bits(r: Row) -> list[str]:
    group = "–" if math.isnan(r.group_size) else "row" if r.group_size < 0 else f"{r.group_size:.0f}"
    w, a, stored = ("–" if math.isnan(x) else f"{x:.3g}" for x in (r.bits, r.act_bits, r.stored_bits))
    return [w, a, group, stored]


def _csv_cell(c: Cell) -> tuple[str, str]:
    if c.state != "ok":
        return ("failed" if c.state == "failed" else "", "")
    return (_number(c.value) or "nan", _number(c.stderr))


def _number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.6g}"


def _sup(marks: list[str]) -> str:
    return f"<sup>{','.join(marks)}</sup>" if marks else ""


def _tex_sup(marks: list[str]) -> str:
    return f"$^{{{','.join(marks)}}}$" if marks else ""
