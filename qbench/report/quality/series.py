"""What the figures of quality share: a look per series of rows, the legend, and where a perplexity axis ends."""

import math
from collections import Counter

from matplotlib.lines import Line2D

from qbench.render.style import look
from qbench.report.quality.columns import Column
from qbench.report.quality.rows import Row
from qbench.report.quality.variants import UNQUANTIZED

BEYOND = 4.0  # a perplexity axis ends at this multiple of the worst unquantized model's perplexity


def quantized(rows: list[Row]) -> list[Row]:
    return [r for r in rows if r.method != UNQUANTIZED]


def looks(rows: list[Row]) -> dict[tuple, dict]:
    """Line2D keywords per series among ``rows``, in order; variants of a method after the first are hollow."""
    methods = {r.series: r.method for r in sorted(rows, key=lambda r: r.series)}
    seen: Counter = Counter()
    out = {}
    for series, method in methods.items():
        out[series] = look(method, seen[method])
        seen[method] += 1
    return out


def handles(rows: list[Row], styles: dict[tuple, dict], lines: bool = True) -> list[Line2D]:
    """One legend handle per series of ``styles``, without lines where the series is outside the bits axis."""
    first = {r.series: r for r in reversed(rows)}
    out = []
    for series, style in styles.items():
        r = first[series]
        style = style if lines and r.on_axis else style | dict(linestyle="none")
        out.append(Line2D([], [], label=r.legend, **style))
    return out


def value(r: Row, c: Column, end: float = math.inf) -> float:
    """A cell's value in the unit of its axis; one beyond ``end`` is drawn there."""
    return min(end, r.cells[c.key].value) * c.scale


def axis_end(c: Column, rows: list[Row]) -> float:
    """Where the bad end of a perplexity axis is cut off; inf for other metrics and without an unquantized model."""
    full = [r.cells[c.key].value for r in rows if r.method == UNQUANTIZED and r.cells[c.key].finite]
    end = BEYOND * max(full, default=math.inf) if c.log and c.delta else math.inf
    return float(f"{end:.2g}")
