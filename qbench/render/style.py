"""How figures look: each method has one colour, marker and dash, which stay apart in grey and to the colour-blind."""

import functools
import math
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

STYLE = "qbench.render.qbench"  # qbench.mplstyle beside this file
INK, SOFT = "#222222", "#6B6B6B"
HALO = [withStroke(linewidth=2, foreground="white")]  # keeps a text legible on top of lines
# The colours of Okabe and Ito (2008).
LOOK = {
    "none": (INK, "P", "-"),
    "rtn": ("#D55E00", "s", (0, (4, 1.6))),
    "gptq": ("#0072B2", "o", "-"),
    "awq": ("#009E73", "^", (0, (6, 1.4, 1.2, 1.4))),
    "smoothquant": ("#CC79A7", "D", (0, (1.2, 1.2))),
    "billm": ("#000000", "*", "-"),
}
OTHERS = (("#E69F00", "v"), ("#56B4E9", ">"), ("#8C6D31", "X"), ("#7F7F7F", "h"))
OTHERS_DASH = (0, (3, 1, 1, 1, 1, 1))
MARKER_SIZE = {"*": 8.5, "D": 3.8, "^": 4.8, "P": 5.0}


def styled(draw: Callable[..., Figure | None]) -> Callable[..., Figure | None]:
    """Decorates a function that returns a figure: it draws in this project's style, whatever the caller's is."""

    @functools.wraps(draw)
    def draws(*args, **kwargs):
        with matplotlib.style.context(STYLE):
            figure = draw(*args, **kwargs)
            if figure is not None:
                figure.draw_without_rendering()  # ticks take their style when they are first drawn
            return figure

    return draws


def save(fig: Figure, folder: Path, name: str) -> list[Path]:
    """Writes PNG and PDF without dates or versions, so that the same figure gives the same bytes; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    with matplotlib.style.context(STYLE):
        fig.draw_without_rendering()
        fig.set_layout_engine("none")  # one layout serves both files
        fig.savefig(paths[0], metadata={"Software": None})
        fig.savefig(paths[1], metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return paths


def look(method: str, rank: int = 0) -> dict:
    """Line2D keywords of a method; ``rank`` > 0, another variant of the same method, has hollow markers."""
    other = OTHERS[sum(map(ord, method)) % len(OTHERS)]  # the same for a new method in every figure
    color, marker, dash = LOOK.get(method) or (*other, OTHERS_DASH)
    face, edge = (color, "white") if rank == 0 else ("white", color)
    style = dict(color=color, marker=marker, linestyle=dash, markersize=MARKER_SIZE.get(marker, 4.2))
    return style | dict(markerfacecolor=face, markeredgecolor=edge, markeredgewidth=0.5 if rank == 0 else 1.0)


def heading(fig: FigureBase, title: str, notes: Iterable[str] = ()) -> None:
    """The title of a figure or of a part of one, and below it notes, in lines that its width has room for."""
    lines = [line for text in (title, *notes) for line in textwrap.wrap(text, int(14 * fig.bbox.width / fig.dpi))]
    fig.suptitle("\n".join(lines), x=0.01, ha="left", size=9)


def name_apart(ax: Axes, ends: Iterable[tuple[float, float, str, str]], gap: float = 0.06) -> None:
    """Writes each text right of its point (x, y, text, colour), at least ``gap`` of the axis above the one below.

    Call it when the limits of both axes are final.
    """
    to_axes = ax.transData + ax.transAxes.inverted()
    placed = sorted((*to_axes.transform((x, y))[::-1], x, y, text, color) for x, y, text, color in ends)
    height = -math.inf
    for i, (at, across, x, y, text, color) in enumerate(placed):
        height = min(max(at, height + gap), 1.02 - gap * (len(placed) - 1 - i))
        line = dict(arrowstyle="-", lw=0.4, color=color, shrinkA=0, shrinkB=2) if abs(height - at) > gap / 2 else None
        style = dict(size=7, color=color, va="center", path_effects=HALO, zorder=5)
        ax.annotate(text, (x, y), (across + 0.04, height), textcoords="axes fraction", arrowprops=line, **style)


def value_axis(ax: Axes, values: Iterable[float], log: bool) -> None:
    """Scale, limits and plain numbers of the y axis for those of ``values`` that it can show."""
    values = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if values and log:
        log_ticks(ax, "y", values)
    elif values:
        low, high = min(values), max(values)
        pad = 0.06 * (high - low or abs(high) or 1)
        ax.set_ylim(low - pad, high + pad)


def log_ticks(ax: Axes, which: str, values: Iterable[float]) -> None:
    """A log axis around ``values`` with few round ticks in plain numbers, also within less than a decade."""
    low, high = min(values), max(values)
    pad = (high / low) ** 0.06 if high > low else 1.1
    low, high = low / pad, high * pad
    axis = ax.xaxis if which == "x" else ax.yaxis
    ax.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis.set_major_locator(log_locator(low, high))
    axis.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))
    axis.set_minor_locator(NullLocator())


def log_locator(low: float, high: float) -> Locator:
    """Round ticks: the more decades, the fewer ticks per decade."""
    decades = math.log10(high / low)
    ladder = ((3.5, (1,)), (1.2, (1, 3)), (1.0, (1, 2, 5)), (0.35, (1, 1.5, 2, 3, 4, 6)))
    steps = next((s for least, s in ladder if decades > least), None)
    return LogLocator(subs=steps, numticks=20) if steps else MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])


def plain(v: float) -> str:
    """10 000 as 10k, 0.001 as 0.001, 1e-5 as 10⁻⁵."""
    if v >= 1e6 or 0 < v < 1e-3:
        exponent = round(math.log10(v))
        return f"$10^{{{exponent}}}$" if math.isclose(v, 10.0**exponent, rel_tol=1e-6) else f"{v:.0e}"
    return f"{v / 1000:g}k" if v >= 1e4 else f"{v:g}"
