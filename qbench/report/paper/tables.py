"""The tables that only paper/ has: the nano study with bits across, its ablations, and records shown as they are."""

import json
from pathlib import Path

from qbench.record import Measurement
from qbench.render.escape import tex
from qbench.report.paper.json_values import leaves, plain
from qbench.report.paper.numbers import in_study
from qbench.report.quality.columns import column
from qbench.report.quality.frame import frame
from qbench.report.quality.rows import Row
from qbench.report.quality.table import Table, make_table, matrix, winners
from qbench.report.quality.variants import UNQUANTIZED

BLOCKS = {"nano/ppl": "perplexity, lower is better", "nano_world/acc": "questions answered, \\%, higher is better"}
MOST = 40  # rows of a record that are shown


def compact(measurements: list[Measurement]) -> str:
    """The nano study as one table: a block a metric, a line a model and method, bits across."""
    t = make_table(matrix("nano"), frame(m for m in measurements if in_study(m)))
    bits = sorted({round(r.bits) for r in t.rows if r.on_axis}, reverse=True)
    head = " & ".join(["Model", "Method", "16 bit", *(f"{b} bit" for b in bits)])
    lines = [r"\begin{tabular}{ll" + "r" * (1 + len(bits)) + "}", r"\toprule", head + r" \\"]
    for key, title in BLOCKS.items():
        lines += [r"\midrule", rf"\multicolumn{{{3 + len(bits)}}}{{l}}{{\emph{{{title}}}}} \\"]
        lines += _block(t, key, bits)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _block(t: Table, key: str, bits: list[int]) -> list[str]:
    c, lines = column(key), []
    quantized = [r for r in t.rows if r.method != UNQUANTIZED]
    bold = winners(quantized, c, c.short)

    def shown(r: Row | None) -> str:
        if r is None or r.cells[key].state == "missing":
            return ""
        if r.cells[key].state == "failed":
            return "failed"
        text = tex(c.short(r.cells[key].value))
        return rf"\textbf{{{text}}}" if id(r.cells[key]) in bold else text

    for model in dict.fromkeys(r.model for r in t.rows):
        full = next((r for r in t.rows if r.model == model and r.method == UNQUANTIZED), None)
        curves: dict[tuple, dict[int, Row]] = {}
        for r in quantized:
            if r.model == model:
                curves.setdefault(r.series, {})[round(r.bits) if r.on_axis else bits[-1]] = r
        lines += [r"\addlinespace"] * bool(lines)
        for i, by_bits in enumerate(curves.values()):
            first = next(iter(by_bits.values()))
            name = first.legend if first.on_axis else f"{first.name} {first.bits:.3g} ({first.stored_bits:.3g})"
            cells = [tex(model), tex(name), shown(full)] if i == 0 else ["", tex(name), ""]
            lines.append(" & ".join([*cells, *(shown(by_bits.get(b)) for b in bits)]) + r" \\")
    return lines


def ablations(measurements: list[Measurement]) -> str:
    """What one changed field of a method does: a line a method, field value and bits; perplexity and accuracy."""
    t = make_table(matrix("nano"), frame(measurements))
    models = list(dict.fromkeys(r.model for r in t.rows))
    spans = [rf"\multicolumn{{{len(models)}}}{{c}}{{{what}}}" for what in ("perplexity", r"questions answered, \%")]
    rules = rf"\cmidrule(lr){{4-{3 + len(models)}}}\cmidrule(lr){{{4 + len(models)}-{3 + 2 * len(models)}}}"
    lines = [r"\begin{tabular}{lrl" + "r" * 2 * len(models) + "}", r"\toprule"]
    lines += [" & & & " + " & ".join(spans) + r" \\", rules]
    lines += [" & ".join(["Method", r"\#W", "Setting", *map(tex, models * 2)]) + r" \\", r"\midrule"]
    found: dict[tuple, dict[str, Row]] = {}
    for r in t.rows:
        if r.method != UNQUANTIZED:
            found.setdefault((r.name, f"{r.bits:g}", r.variant), {})[r.model] = r
    last = None
    for (name, bits, variant), rows in found.items():
        lines += [r"\addlinespace"] * (last not in (None, name))
        cells = [tex(column(k).short(rows[m].cells[k].value)) if m in rows else "--" for k in BLOCKS for m in models]
        lines.append(" & ".join([tex(name) if name != last else "", bits, tex(variant), *cells]) + r" \\")
        last = name
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def shown(path: Path, inputs: str) -> str:
    """The tables and figures of a results folder, which LaTeX reaches as ``inputs``; "" where there is none."""
    lines = [rf"\input{{{inputs}/{p.name}}}" for p in sorted(path.glob("*.tex"))]
    lines += [rf"\whole{{{inputs}/{p.name}}}{{{tex(_title(p))}}}" for p in sorted(path.glob("*.pdf"))]
    return "\n".join([*lines, ""]) if lines else ""


def records(path: Path) -> str:
    """The JSON records of a results folder as they are; "" where there is none."""
    return "\n".join([line for p in sorted(path.glob("*.json")) for line in [*_record(p), ""]])


def _record(path: Path) -> list[str]:
    """A JSON record as a table of names and values, without its provenance but for the machine."""
    d = json.loads(path.read_text())
    about = d.pop("provenance", {}) if isinstance(d, dict) else {}
    rows, where = list(leaves(d)), ", ".join(str(about[k]) for k in ("device", "time") if about.get(k))
    more = f" The first {MOST} of {len(rows)} values." if len(rows) > MOST else ""
    caption = f"The record {tex(_title(path))}{tex(f' ({where})') if where else ''}.{more}"
    lines = [r"\begingroup\footnotesize", r"\begin{longtable}{@{}p{0.55\linewidth}p{0.4\linewidth}@{}}"]
    lines += [rf"\caption{{{caption}}}\\", r"\toprule", r"\endhead", r"\bottomrule", r"\endfoot"]
    lines += [f"{tex(key.replace('_', ' '))} & {tex(plain(value))} \\\\" for key, value in rows[:MOST]]
    return [*lines, r"\end{longtable}", r"\endgroup"]


def _title(path: Path) -> str:
    return f"{path.parent.name.replace('_', ' ')}: {path.stem.replace('_', ' ')}"
