"""Quality over weight bits, and its paired differences to the unquantized model.

Both figures have one row of panels per metric and one column per model. Intervals are 95 % of the normal
distribution, from the standard error over the items of an evaluation.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qbench.render.style import INK, SOFT, heading, plain, styled
from qbench.report.figures.panels import chosen, handles, looks, quality_axis, quantized, value
from qbench.report.quality.columns import Column
from qbench.report.quality.rows import Row
from qbench.report.quality.table import Table
from qbench.report.quality.variants import UNQUANTIZED

INTERVAL = 1.96  # standard errors on each side
LOST = dict(marker="x", linestyle="none", markersize=4.5, markeredgewidth=1.2)
STORED = dict(markerfacecolor="white", markeredgewidth=0.8, markersize=7)


@styled
def quality_by_bits(df: pd.DataFrame, metrics: tuple[str, ...] = ()) -> Figure:
    """Each metric over weight bits, one line per method, with 95 % intervals over the items."""
    t, columns = chosen(df, metrics)
    fig, axes, models = _panels(t, columns)
    styles, levels = looks(quantized(t.rows)), dict(color=INK, lw=0.9, zorder=1.5)
    for c, line in zip(columns, axes):
        end = quality_axis(line, c, t.rows)
        for ax, model in zip(line, models):
            rows = [r for r in t.rows if r.model == model]
            _values(ax, c, rows, styles, end)
            for r in rows:
                if r.method == UNQUANTIZED and r.cells[c.key].finite and (r.cells[c.key].value > 0 or not c.log):
                    ax.axhline(value(r, c), **levels)
    legend = handles(t.rows, styles)
    if len(quantized(t.rows)) < len(t.rows):
        legend.append(Line2D([], [], label="unquantized", **levels))
    if any(c.chance is not None for c in columns):
        legend.append(Line2D([], [], color=SOFT, lw=0.9, ls=":", label="chance"))
    hollow = "; hollow: at stored bits" if any(not r.on_axis for r in quantized(t.rows)) else ""
    _finish(fig, t, columns, legend, f"Quality against weight bits (bands: 95 % intervals over the items{hollow})")
    return fig


@styled
def differences(df: pd.DataFrame, metrics: tuple[str, ...] = ()) -> Figure:
    """Differences to the unquantized model, paired item by item, with their 95 % intervals; axes linear around 0."""
    t, columns = chosen(df, metrics, delta=True)
    fig, axes, models = _panels(t, columns)
    styles = looks(t.rows)
    for c, line in zip(columns, axes):
        line[0].set_yscale("symlog", linthresh=0.01 * c.scale, linscale=0.6)
        line[0].yaxis.get_major_locator().set_params(numticks=8)  # more would overlap
        line[0].yaxis.set_major_formatter(lambda v, _: f"{'+' if v > 0 else '−' if v else ''}{plain(abs(v))}")
        line[0].set_ylabel(f"Δ {c.titled.replace('%', 'points')}")
        for ax, model in zip(line, models):
            ax.axhline(0, color=INK, lw=0.9, zorder=1.5)
            for i, (series, style) in enumerate(styles.items()):
                rows = [r for r in t.rows if r.model == model and r.series == series]
                x, y, half, _ = _points(c, rows)
                x += 0.7 * ((i + 0.5) / len(styles) - 0.5)  # the methods side by side
                ax.errorbar(x, y, half, **style | dict(linestyle="none", elinewidth=0.9))
                _mark_lost(ax, c, rows, style)
    title = "Paired differences to the unquantized model (bars: 95 % intervals; a bar across 0 may be chance)"
    _finish(fig, t, columns, handles(t.rows, styles, lines=False), title)
    return fig


def _panels(t: Table, columns: list[Column]) -> tuple[Figure, np.ndarray, list[str]]:
    """The figure, its axes (one row per column of ``t``, one column per model) and the models."""
    models = list(dict.fromkeys(r.model for r in t.rows))
    width = max(4.2 if len(models) == 1 else 7.0, 0.6 + 1.7 * len(models))
    fig = Figure(figsize=(width, 1.0 + 1.75 * len(columns)), layout="constrained")
    axes = fig.subplots(len(columns), len(models), sharex=True, sharey="row", squeeze=False)
    bits = [r.bits for r in quantized(t.rows) if math.isfinite(r.bits)] or [1]
    axes[0, 0].set_xlim(min(bits) - 0.5, max(bits) + 0.5)
    axes[0, 0].set_xticks(range(math.floor(min(bits)), math.ceil(max(bits)) + 1))
    for top, bottom, model in zip(axes[0], axes[-1], models):
        top.set_title(model)
        bottom.set_xlabel("weight bits")
    return fig, axes, models


def _values(ax: Axes, c: Column, rows: list[Row], styles: dict[tuple, dict], end: float) -> None:
    """One line per series; a method outside the bits axis is drawn at its nominal and, hollow, its stored bits."""
    for series, style in styles.items():
        mine, color = [r for r in rows if r.series == series], style["color"]
        x, y, half, stored = _points(c, mine, end)
        if len(stored):
            style = style | dict(linestyle="none")
            ax.hlines(y, x, stored, linestyles=(0, (1, 1.5)), zorder=2.9, color=color, lw=0.8)
            ax.plot(stored, y, zorder=3.1, clip_on=False, **style | STORED | dict(markeredgecolor=color))
        ax.fill_between(x, y - half, y + half, color=color, alpha=0.15, lw=0)
        ax.errorbar(x, y, half, color=color, ls="none", elinewidth=0.8, zorder=2.9)
        ax.plot(x, y, zorder=3.2, clip_on=False, **style)
        _mark_lost(ax, c, mine, style)


def _points(c: Column, rows: list[Row], end: float = math.inf) -> tuple[np.ndarray, ...]:
    """Bits, values, halves of the intervals, and stored bits where the rows are outside the bits axis."""
    rows = sorted((r for r in rows if math.isfinite(r.bits)), key=lambda r: r.bits)
    cells = [r.cells[c.key] for r in rows]
    y = [value(r, c, end) if r.cells[c.key].finite else math.nan for r in rows]
    half = [0.0 if math.isnan(x.stderr) or x.value > end else INTERVAL * c.scale * x.stderr for x in cells]
    stored = [r.stored_bits for r in rows if not r.on_axis]
    return np.array([r.bits for r in rows]), np.array(y), np.array(half), np.array(stored)


def _lost(r: Row, c: Column) -> bool:
    """Measured or tried, but without a finite value."""
    return r.cells[c.key].state != "missing" and not r.cells[c.key].finite


def _mark_lost(ax: Axes, c: Column, rows: list[Row], style: dict) -> None:
    """Crosses on the bad edge."""
    if lost := [r.bits for r in rows if _lost(r, c) and math.isfinite(r.bits)]:
        edge = [0.0 if c.higher_is_better else 1.0] * len(lost)
        ax.plot(lost, edge, transform=ax.get_xaxis_transform(), clip_on=False, zorder=4, color=style["color"], **LOST)


def _finish(fig: Figure, t: Table, columns: list[Column], legend: list[Line2D], title: str) -> None:
    if any(_lost(r, c) for r in quantized(t.rows) for c in columns):
        legend.append(Line2D([], [], color=SOFT, label="failed, inf or nan", **LOST))
    fig.align_ylabels()
    ncols = 2 if fig.get_figwidth() < 5 else 5 if len(legend) == 5 else 4
    fig.legend(handles=legend, loc="outside lower center", ncols=ncols)
    heading(fig, title, t.left_out)
