"""Quality against stored bits per weight and against the bytes of the checkpoint, with the Pareto fronts."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from qbench.render.style import HALO, INK, heading, log_ticks, name_apart, styled
from qbench.report.figures.panels import NothingToShow, chosen, handles, looks, quality_axis, value
from qbench.report.quality.columns import Column

MB = 1e6


@styled
def pareto(df: pd.DataFrame, metrics: tuple[str, ...] = ()) -> Figure:
    """Each metric against stored bits per weight and against the size of the checkpoint, with the Pareto fronts.

    Left there is one front per model, right one over all. Points that are not on the front are pale; points beyond the
    end of a perplexity axis are drawn on its edge. By default the first perplexity and the first accuracy.
    """
    t, columns = chosen(df, metrics)
    directed = [c for c in columns if c.higher_is_better is not None]
    if not directed or (metrics and directed != columns):
        unknown = ", ".join(c.key for c in columns if c not in directed)
        raise NothingToShow(f"no front over {unknown}: its measure does not say whether more is better")
    if not metrics:
        kinds = {c.log: c for c in reversed(directed) if c.delta}
        columns = sorted(kinds.values(), key=directed.index) or directed[:1]
    rows = [r for r in t.rows if math.isfinite(r.stored_bits) and math.isfinite(r.model_bytes)]
    styles, models = looks(rows), list(dict.fromkeys(r.model for r in rows))
    sizes = marker_sizes(models)
    fig = Figure(figsize=(7.0, 1.0 + 2.3 * len(columns)), layout="constrained")
    axes = fig.subplots(len(columns), 2, sharex="col", sharey="row", squeeze=False)
    for (left, right), c in zip(axes, columns):
        shown, end = [r for r in rows if r.cells[c.key].finite], quality_axis((left, right), c, rows)
        log_ticks(left, "x", [r.stored_bits for r in rows])
        log_ticks(right, "x", [r.model_bytes / MB for r in rows])
        left.set_xlim(left.get_xlim()[0], left.get_xlim()[1] * 1.5)  # room for the models' names
        left.xaxis.set_major_locator(FixedLocator([1, 2, 3, 4, 6, 8, 16]))
        left.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ends = []
        for model in models:
            mine = [(r.stored_bits, value(r, c, end), r) for r in shown if r.model == model]
            if mine:
                best = draw_front(left, c, mine, styles, sizes)
                ends.append((max(x for x, _, _ in mine), best[-1][1], model, INK))
        name_apart(left, ends)
        best = draw_front(right, c, [(r.model_bytes / MB, value(r, c, end), r) for r in shown], styles, sizes)
        _name_parts(right, best, c.higher_is_better)
    axes[0, 0].set_title("the front of each model")
    axes[0, 1].set_title("the front over all sizes")
    axes[-1, 0].set_xlabel("stored bits per weight (with scales, zeros and masks)")
    axes[-1, 1].set_xlabel("size of the whole checkpoint, MB")
    fig.align_ylabels(axes[:, 0])
    legend = [*handles(rows, styles, lines=False), Line2D([], [], color=INK, lw=1.0, label="Pareto front")]
    fig.legend(handles=legend, loc="outside lower center", ncols=4)
    title = "Quality against what is stored (larger markers: larger models; pale: not on the front)"
    heading(fig, title, t.left_out)
    return fig


def marker_sizes(models: list[str]) -> dict[str, float]:
    """A factor for each of ``models``, from the smallest model to the largest."""
    return {model: 0.8 + 0.5 * i / max(1, len(models) - 1) for i, model in enumerate(models)}


def draw_front(
    ax: Axes, c: Column, points: list[tuple], styles: dict[tuple, dict], sizes: dict[str, float]
) -> list[tuple]:
    """Draws the points (cost, quality, row) and their front as steps; the points of the front, by rising cost.

    On the front are those that no other one beats or equals in both; the others are pale.
    """
    sign, best = 1 if c.higher_is_better else -1, []
    for point in sorted(points, key=lambda p: (p[0], -sign * value(p[2], c))):
        if not best or sign * value(point[2], c) > sign * value(best[-1][2], c):
            best.append(point)
    ax.plot([x for x, _, _ in best], [y for _, y, _ in best], color=INK, lw=0.9, drawstyle="steps-post", zorder=2)
    for x, y, r in points:
        size = styles[r.series]["markersize"] * sizes[r.model]
        style = styles[r.series] | dict(linestyle="none", markersize=size, markeredgewidth=0.4)
        on_front = any(r is other for _, _, other in best)
        ax.plot(x, y, zorder=4 if on_front else 3, alpha=1 if on_front else 0.3, clip_on=False, **style)
    return best


def _name_parts(ax: Axes, best: list[tuple], higher_is_better: bool) -> None:
    """Each model's name at the last of its points on the common front, on the worse side of it."""
    down = -1 if higher_is_better else 1
    for x, y, r in {r.model: (x, y, r) for x, y, r in best}.values():
        right = x > 0.6 * ax.get_xlim()[1]
        style = dict(ha="right" if right else "left", va="top" if down < 0 else "bottom", size=7, path_effects=HALO)
        ax.annotate(r.model, (x, y), (5 if right else 2, down * 5), textcoords="offset points", zorder=5, **style)
