"""Quality against weight bits, and which figures are drawn: the points are the rows of the table."""

import math
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qbench.render.style import INK, RC, SOFT, handles, heading, looks, losers_band, quality_axis, save
from qbench.report.quality.columns import Column
from qbench.report.quality.heatmap import layer_heatmap
from qbench.report.quality.pareto import pareto_figure
from qbench.report.quality.rows import Cell, Row
from qbench.report.quality.table import Table, one_evaluation
from qbench.report.quality.variants import UNQUANTIZED, quant_labels

INTERVAL = 1.96  # standard errors: a 95 % interval


def draw(t: Table, layers: pd.DataFrame, folder: Path) -> list[Path]:
    """``<name>_bits``, ``<name>_pareto`` and ``<name>_layers`` as far as there are records for them."""
    written, layers, t = [], t.spec.select(layers), one_evaluation(t)
    columns = [c for c in t.choose(t.spec.figures, 4) if any(r.cells[c.key].finite for r in t.rows)]
    with matplotlib.rc_context(RC):
        if columns and any(r.method != UNQUANTIZED for r in t.rows):
            written += save(bits_figure(t, columns), folder, f"{t.spec.name}_bits")
            kinds = {c.log: c for c in reversed(columns) if c.delta}  # first perplexity, first accuracy
            chosen = sorted(kinds.values(), key=columns.index) or columns[:1]
            written += save(pareto_figure(t, chosen), folder, f"{t.spec.name}_pareto")
        if len(layers):
            heatmap = layer_heatmap(layers, quant_labels(list(layers["science"])))
            written += save(heatmap, folder, f"{t.spec.name}_layers")
    return written


def bits_figure(t: Table, columns: list[Column]) -> Figure:
    """A row of panels a metric, a column a model; one line a method over weight bits, 95 % bands."""
    models = list(dict.fromkeys(r.model for r in t.rows))
    rows = [r for r in t.rows if r.method != UNQUANTIZED]
    styles, bits = looks(rows), [r.bits for r in rows if math.isfinite(r.bits)] or [1]
    width = max(4.2 if len(models) == 1 else 7.0, 0.6 + 1.7 * len(models))
    fig = Figure(figsize=(width, 1.0 + 1.75 * len(columns)), layout="constrained")
    axes = fig.subplots(len(columns), len(models), sharex=True, sharey="row", squeeze=False)
    for i, c in enumerate(columns):
        values = [r.cells[c.key].value * c.scale for r in t.rows]
        quality_axis(axes[i, 0], c, values + ([c.chance * c.scale] if c.chance is not None else []))
        axes[i, 0].set_ylabel(f"{c.titled}{', %' if c.scale == 100 else ''}")
        lost = any(_lost(r.cells[c.key]) for r in rows)
        edge = losers_band(axes[i], c) if lost else 0.0
        for ax, model in zip(axes[i], models):
            _panel(ax, c, [r for r in t.rows if r.model == model], styles, edge)
    for top, bottom, model in zip(axes[0], axes[-1], models):
        top.set_title(model)
        bottom.set(xlabel="weight bits", xlim=(min(1, *bits) - 0.35, max(bits) + 0.35))
        bottom.set_xticks(range(1, math.ceil(max(bits)) + 1))
    fig.align_ylabels(axes[:, 0])
    legend = _legend(t.rows, columns, styles)
    fig.legend(handles=legend, loc="outside lower center", ncols=min(len(legend), 2 if width < 5 else 4))
    heading(fig, "Quality against weight bits (bands: 95 % intervals over the items)", t.left_out(columns))
    return fig


def _panel(ax, c: Column, rows: list[Row], styles: dict[tuple, dict], edge: float) -> None:
    for r in rows:
        if r.method == UNQUANTIZED and r.cells[c.key].finite and not (c.log and r.cells[c.key].value <= 0):
            ax.axhline(r.cells[c.key].value * c.scale, color=INK, lw=0.9, zorder=1.5)
    if c.chance is not None:
        ax.axhline(c.chance * c.scale, color=SOFT, lw=0.9, ls=":", zorder=1.5)
    for series, style in styles.items():
        curve = sorted((r for r in rows if r.series == series), key=lambda r: r.bits)
        points = [(r.bits, r.cells[c.key]) for r in curve if math.isfinite(r.bits)]
        lost = [b for b, cell in points if _lost(cell)]
        if lost:
            mark = dict(marker="x", ls="none", ms=4.5, mew=1.2, zorder=4, color=style["color"])
            ax.plot(lost, [edge] * len(lost), transform=ax.get_xaxis_transform(), **mark)
        if curve and curve[0].on_axis:
            x = [b for b, _ in points]
            y = [cell.value * c.scale if cell.finite else math.nan for _, cell in points]
            e = [cell.stderr * c.scale for _, cell in points]
            e = [0.0 if math.isnan(d) else INTERVAL * d for d in e]
            low = [max(v - d, 1e-12) if c.log else v - d for v, d in zip(y, e)]
            ax.fill_between(x, low, [v + d for v, d in zip(y, e)], color=style["color"], alpha=0.15, lw=0)
            if sum(map(math.isfinite, y)) == 1:
                ax.errorbar(x, y, e, color=style["color"], lw=0.8, ls="none", zorder=2.9)
            ax.plot(x, y, zorder=3, **style)
            continue
        for r, (b, cell) in zip(curve, points):
            if cell.finite:
                y = cell.value * c.scale
                ax.plot([b, r.stored_bits], [y, y], color=style["color"], lw=0.8, ls=(0, (1, 1.5)), zorder=2.9)
                ax.errorbar(b, y, INTERVAL * cell.stderr * c.scale, color=style["color"], lw=0.8, zorder=2.9)
                hollow = dict(
                    markerfacecolor="white", markeredgecolor=style["color"], markeredgewidth=0.8, markersize=7
                )
                ax.plot(r.stored_bits, y, zorder=3.1, **style | hollow)
                ax.plot(b, y, zorder=3.2, **style)


def _lost(cell: Cell) -> bool:
    """Measured or tried, but without a finite value."""
    return cell.state != "missing" and not cell.finite


def _legend(rows: list[Row], columns: list[Column], styles: dict[tuple, dict]) -> list[Line2D]:
    out = handles([r for r in rows if r.series in styles], styles)
    for handle, series in zip(out, sorted(styles)):
        one = next(r for r in rows if r.series == series)
        if not one.on_axis and math.isfinite(one.stored_bits):
            nominal, stored = f"{one.bits:.3g}", f"{one.stored_bits:.3g}"
            handle.set_label(f"{one.legend} ({nominal} bits; hollow: stored {stored})")
    if any(r.method == UNQUANTIZED for r in rows):
        out.append(Line2D([], [], color=INK, lw=0.9, label="unquantized"))
    if any(c.chance is not None for c in columns):
        out.append(Line2D([], [], color=SOFT, lw=0.9, ls=":", label="chance"))
    if any(_lost(r.cells[c.key]) for r in rows for c in columns):
        out.append(Line2D([], [], color=SOFT, ls="none", marker="x", ms=4.5, mew=1.2, label="failed, inf or nan"))
    return out
