"""What the figures of quality share: their table, one look per series of rows, the legend, and the axis of a metric."""

import math
from collections import Counter
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from qbench.render.style import SOFT, look, plain, value_axis
from qbench.report.quality.columns import Column
from qbench.report.quality.rows import Row
from qbench.report.quality.table import Table, make_table
from qbench.report.quality.variants import UNQUANTIZED

PANELS = ("nano/ppl", "wikitext2/ppl", "*/kl", "nano_world/acc", "mmlu/acc", "*/ppl", "*/acc")  # the first four
BEYOND = 4.0  # a perplexity axis ends at this multiple of the worst unquantized model's perplexity


class NothingToShow(ValueError):
    """The records lack what a figure shows."""


def chosen(df: pd.DataFrame, metrics: tuple[str, ...], *, delta: bool = False) -> tuple[Table, list[Column]]:
    """The compact table of ``df``, and its columns of ``metrics`` (default: at most four) that have a finite value.

    ValueError where ``df`` has several families of models; NothingToShow without a column or a quantized model.
    """
    t = make_table(df, delta=delta, compact=True)
    columns = [c for c in t.choose(metrics or PANELS, 4) if any(r.cells[c.key].finite for r in t.rows)]
    if not columns or not quantized(t.rows):
        what = f"no value of {', '.join(metrics) or 'any metric'}" if not columns else "no quantized model"
        raise NothingToShow(f"{what} in the {len(t.rows)} rows of the figure")
    return t, columns


def quantized(rows: list[Row]) -> list[Row]:
    """The rows without the unquantized models."""
    return [r for r in rows if r.method != UNQUANTIZED]


def looks(rows: list[Row]) -> dict[tuple, dict]:
    """Line2D keywords per series among ``rows``, in order; variants of a method after the first are hollow."""
    methods = {r.series: r.method for r in sorted(rows, key=lambda r: r.series)}
    seen, out = Counter(), {}
    for series, method in methods.items():
        out[series] = look(method, seen[method])
        seen[method] += 1
    return out


def handles(rows: list[Row], styles: dict[tuple, dict], lines: bool = True) -> list[Line2D]:
    """One legend handle per series of ``styles``, without lines where the series is outside the bits axis."""
    out, first = [], {r.series: r for r in reversed(rows)}
    for series, style in styles.items():
        r = first[series]
        label = "unquantized" if r.method == UNQUANTIZED else r.legend
        out.append(Line2D([], [], label=label, **style if lines and r.on_axis else style | {"linestyle": "none"}))
    return out


def value(r: Row, c: Column, end: float = math.inf) -> float:
    """A cell's value in the unit of its axis; one beyond ``end`` is drawn there."""
    return min(end, r.cells[c.key].value) * c.scale


def quality_axis(line: Sequence[Axes], c: Column, rows: list[Row]) -> float:
    """The y axis that the panels of ``line`` share, with its label and the level of guessing.

    Returns where a perplexity axis is cut off; inf for other metrics and where no unquantized model is measured.
    """
    rows = [r for r in rows if r.cells[c.key].finite]
    full = [r.cells[c.key].value for r in rows if r.method == UNQUANTIZED]
    end = BEYOND * max(full, default=math.inf) if c.log and c.delta else math.inf
    end, chance = float(f"{end:.2g}"), [] if c.chance is None else [c.chance * c.scale]
    value_axis(line[0], [*chance, *(value(r, c, end) for r in rows)], c.log)
    cut = any(r.cells[c.key].value > end for r in rows)
    line[0].set_ylabel(c.titled + (f"\n(≥ {plain(end)} on the edge)" if cut else ""))
    for ax, y in ((ax, y) for ax in line for y in chance):
        ax.axhline(y, color=SOFT, lw=0.9, ls=":", zorder=1.5)
    return end
