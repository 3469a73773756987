"""Quality against stored bits a weight and against bytes, with the Pareto fronts."""

import math
from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from qbench.render.style import INK, SOFT, handles, heading, log_ticks, looks, plain, quality_axis
from qbench.report.quality.columns import Column
from qbench.report.quality.rows import Row
from qbench.report.quality.table import Table
from qbench.report.quality.variants import UNQUANTIZED

HALO = [withStroke(linewidth=2, foreground="white")]
BEYOND = 3.0  # a perplexity axis ends at this multiple of the worst unquantized model's


def pareto_figure(t: Table, columns: list[Column]) -> Figure:
    """A row of panels a metric: left over stored bits with a front a model, right over bytes with one front.

    Points off the front are pale. A log axis ends where no front goes; points
    beyond it sit on its edge.
    """
    rows = [r for r in t.rows if math.isfinite(r.stored_bits) and math.isfinite(r.model_bytes)]
    quantized = [r for r in rows if r.method != UNQUANTIZED]
    styles, models = looks(quantized), list(dict.fromkeys(r.model for r in rows))
    fig = Figure(figsize=(7.0, 1.0 + 2.3 * len(columns)), layout="constrained")
    axes = fig.subplots(len(columns), 2, sharex="col", sharey="row", squeeze=False)
    unit, unit_name = _unit([r.model_bytes for r in rows])
    for (left, right), c in zip(axes, columns):
        shown = [r for r in rows if r.cells[c.key].finite]
        full = [r.cells[c.key].value for r in shown if r.method == UNQUANTIZED]
        limit = BEYOND * max(full) if c.log and full else math.inf
        values = [min(limit, r.cells[c.key].value) * c.scale for r in shown]
        quality_axis(left, c, values + ([c.chance * c.scale] if c.chance is not None else []))
        edge = "" if all(r.cells[c.key].value <= limit for r in shown) else f" (≥ {plain(_round(limit))} on the edge)"
        left.set_ylabel(f"{c.titled}{', %' if c.scale == 100 else ''}{edge}")
        for ax in (left, right):
            if c.chance is not None:
                ax.axhline(c.chance * c.scale, color=SOFT, lw=0.9, ls=":", zorder=1.5)
        log_ticks(left, "x", [r.stored_bits for r in rows])
        log_ticks(right, "x", [r.model_bytes / unit for r in rows])
        left.set_xlim(left.get_xlim()[0], left.get_xlim()[1] * 1.35)  # room for the models' names
        for model in models:
            mine = [r for r in shown if r.model == model]
            _draw(left, c, mine, lambda r: r.stored_bits, limit, styles, models)
        _draw(right, c, shown, lambda r: r.model_bytes / unit, limit, styles, models)
        _name_ends(left, c, shown, limit)
        _name_parts(right, c, shown, lambda r: r.model_bytes / unit, limit)
    axes[0, 0].xaxis.set_major_locator(FixedLocator([1, 2, 3, 4, 6, 8, 16]))
    axes[0, 0].xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes[0, 0].xaxis.set_minor_locator(NullLocator())
    axes[0, 0].set_title("each model's front")
    axes[0, 1].set_title("the front over all sizes")
    axes[-1, 0].set_xlabel("stored bits a weight (with scales, zeros and masks)")
    axes[-1, 1].set_xlabel(f"bytes of the whole checkpoint, {unit_name}")
    fig.align_ylabels(axes[:, 0])
    legend = handles(quantized, styles, lines=False)
    if len(quantized) < len(rows):
        legend += [Line2D([], [], color=INK, ls="none", marker="P", ms=5, label="unquantized")]
    legend += [Line2D([], [], color=INK, lw=1.0, label="Pareto front")]
    fig.legend(handles=legend, loc="outside lower center", ncols=4)
    title = "Quality against what is stored (larger markers: larger models; pale: off the front)"
    heading(fig, title, t.left_out(columns))
    return fig


def front(points: list[tuple[float, float]], higher_is_better: bool) -> list[int]:
    """Indices of the points (cost, quality) that no other one beats or equals in both, by rising cost."""
    sign = 1 if higher_is_better else -1
    out: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1])):
        if not out or sign * points[i][1] > sign * points[out[-1]][1]:
            out.append(i)
    return out


def _draw(
    ax, c: Column, rows: list[Row], x: Callable, limit: float, styles: dict[tuple, dict], models: list[str]
) -> None:
    """The rows as points, the best of them joined by steps; a model's name stands where its part begins."""

    def y(r: Row) -> float:
        return min(limit, r.cells[c.key].value) * c.scale

    chosen = [rows[i] for i in front([(x(r), r.cells[c.key].value) for r in rows], c.higher_is_better)]
    ax.plot([x(r) for r in chosen], [y(r) for r in chosen], color=INK, lw=0.9, drawstyle="steps-post", zorder=2)
    for r in rows:
        size = 0.8 + 0.5 * models.index(r.model) / max(1, len(models) - 1)
        style = styles.get(r.series) or dict(color=INK, marker="P", markersize=5, markeredgecolor="white")
        style = style | dict(linestyle="none", markersize=style["markersize"] * size, markeredgewidth=0.4)
        best = any(r is other for other in chosen)
        ax.plot(
            x(r),
            _height(r, c, limit),
            zorder=4 if best else 3,
            alpha=1 if best else 0.3,
            clip_on=False,
            **style,
        )


def _front(c: Column, rows: list[Row], x: Callable) -> list[Row]:
    return [rows[i] for i in front([(x(r), r.cells[c.key].value) for r in rows], c.higher_is_better)]


def _height(r: Row, c: Column, limit: float) -> float:
    return min(limit, r.cells[c.key].value) * c.scale


def _name_ends(ax, c: Column, rows: list[Row], limit: float) -> None:
    """Each model's name right of its points at the height of its best, kept apart from one another."""
    ends = []
    for model in dict.fromkeys(r.model for r in rows):
        mine = [r for r in rows if r.model == model]
        y = (max if c.higher_is_better else min)(_height(r, c, limit) for r in mine)
        point = ax.transData.transform((max(r.stored_bits for r in mine), y))
        ends.append([*ax.transAxes.inverted().transform(point), model])
    lowest = -1.0
    for x, y, model in sorted(ends, key=lambda e: e[1]):
        lowest = max(y, lowest + 0.065)
        ax.text(x + 0.02, lowest, model, transform=ax.transAxes, va="center", size=7, path_effects=HALO, zorder=5)


def _name_parts(ax, c: Column, rows: list[Row], x: Callable, limit: float) -> None:
    """Each model's name at the last of its points on the common front, on the worse side of it."""
    chosen = _front(c, rows, x)
    down = -1 if c.higher_is_better else 1
    for model in dict.fromkeys(r.model for r in chosen):
        last = [r for r in chosen if r.model == model][-1]
        right = x(last) > 0.6 * ax.get_xlim()[1]
        style = dict(ha="right" if right else "left", va="top" if down < 0 else "bottom", size=7)
        style |= dict(textcoords="offset points", path_effects=HALO, zorder=5)
        ax.annotate(model, (x(last), _height(last, c, limit)), (5 if right else 2, down * 5), **style)


def _unit(sizes: list[float]) -> tuple[float, str]:
    largest = max(sizes, default=1)
    return next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if largest >= u), (1, "bytes"))


def _round(v: float) -> float:
    return float(f"{v:.2g}")
