"""How figures look: one colour, marker and dash a method, legible in grey print and to the colour-blind."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

if TYPE_CHECKING:
    from qbench.report.quality.columns import Column
    from qbench.report.quality.rows import Row


# Okabe and Ito's colours (2008); order, marker and dash tell the methods apart without colour too.
LOOK = {
    "rtn": ("#D55E00", "s", (0, (4, 1.6))),
    "gptq": ("#0072B2", "o", "-"),
    "awq": ("#009E73", "^", (0, (6, 1.4, 1.2, 1.4))),
    "smoothquant": ("#CC79A7", "D", (0, (1.2, 1.2))),
    "billm": ("#000000", "*", "-"),
}
_MORE = ((("#E69F00", "v"), ("#56B4E9", "P"), ("#8C6D31", "X"), ("#7F7F7F", "h")), (0, (3, 1, 1, 1, 1, 1)))
INK, SOFT, FAINT = "#222222", "#6B6B6B", "#E3E3E3"

RC = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.2,
    "pdf.fonttype": 42,
    "svg.hashsalt": "qbench",
}


def look(row: Row, rank: int = 0) -> dict:
    """Line2D keywords of a row's method; ``rank`` > 0 (another variant of the method) has hollow markers."""
    more, dash = _MORE
    color, marker, style = LOOK.get(row.method) or (*more[sum(map(ord, row.method)) % len(more)], dash)
    face = color if rank == 0 else "white"
    edge = dict(markeredgecolor="white", markeredgewidth=0.5) if rank == 0 else dict(markeredgecolor=color)
    size = {"*": 8.5, "D": 3.8, "^": 4.8}.get(marker, 4.2)
    return dict(color=color, marker=marker, linestyle=style, markerfacecolor=face, markersize=size) | edge


def looks(rows: list[Row]) -> dict[tuple, dict]:
    """The look of each series among ``rows``; the first of a method is solid, its variants are hollow."""
    seen, out = {}, {}
    for r in sorted(rows, key=lambda r: r.series):
        if r.series not in out:
            rank = seen[r.method] = seen.get(r.method, -1) + 1
            out[r.series] = look(r, rank)
    return out


def handles(rows: list[Row], styles: dict[tuple, dict], lines: bool = True) -> list[Line2D]:
    """Legend handles, one a series, in order."""
    first = {r.series: r for r in reversed(rows)}
    out = []
    for series in sorted(styles):
        style = dict(styles[series])
        if not lines or not first[series].on_axis:
            style["linestyle"] = "none"
        out.append(Line2D([], [], label=first[series].legend, **style))
    return out


def heading(fig: Figure, title: str, notes: list[str]) -> None:
    """The title of a figure, and below it notes in lines that its width has room for."""
    lines = [line for note in notes for line in textwrap.wrap(note, int(14 * fig.get_figwidth()))]
    fig.suptitle("\n".join([title, *lines]), x=0.01, ha="left", size=9)


def quality_axis(ax, c: Column, values: list[float]) -> None:
    """Scale, limits and plain numbers on the y axis for those of ``values`` (already scaled) it can show."""
    values = [v for v in values if math.isfinite(v) and (v > 0 or not c.log)]
    if not values:
        return
    low, high = min(values), max(values)
    if c.log:
        ax.set_yscale("log")
        log_ticks(ax, "y", values)
    else:
        pad = 0.06 * (high - low or abs(high) or 1)
        ax.set_ylim(low - pad, high + pad)


def losers_band(axes, c: Column) -> float:
    """Grey room at the bad end of a row of panels for points not finite; its middle, 0 to 1."""
    low, high = axes[0].get_ylim()
    ticks = [t for t in axes[0].yaxis.get_majorticklocs() if low <= t <= high]
    to, back = (math.log, math.exp) if c.log else (float, float)
    room = 0.12 * (to(high) - to(low))
    axes[0].set_ylim(back(to(low) - room * c.higher_is_better), back(to(high) + room * (not c.higher_is_better)))
    axes[0].yaxis.set_major_locator(FixedLocator(ticks))
    height = 0.12 / 1.12
    bottom = 0.0 if c.higher_is_better else 1 - height
    for ax in axes:
        ax.add_artist(Rectangle((0, bottom), 1, height, transform=ax.transAxes, color="#F0F0F0", lw=0, zorder=0.1))
    return bottom + height / 2


def log_ticks(ax, which: str, values: list[float]) -> None:
    """A log axis around ``values`` with few round ticks in plain numbers, also within less than a decade."""
    low, high = min(values), max(values)
    pad = (high / low) ** 0.06 if high > low else 1.1
    low, high = low / pad, high * pad
    axis = ax.xaxis if which == "x" else ax.yaxis
    getattr(ax, f"set_{which}scale")("log")
    getattr(ax, f"set_{which}lim")(low, high)
    axis.set_major_locator(log_locator(low, high))
    axis.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))
    axis.set_minor_locator(NullLocator())


def log_locator(low: float, high: float) -> Locator:
    """Round ticks, the fewer a decade the more decades there are."""
    decades = math.log10(high / low)
    ladder = ((3.5, (1,)), (1.2, (1, 3)), (0.8, (1, 2, 5)), (0.35, (1, 1.5, 2, 3, 4, 6)))
    steps = next((s for least, s in ladder if decades > least), None)
    return LogLocator(subs=steps, numticks=20) if steps else MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])


def plain(v: float) -> str:
    """10 000 as 10k, 0.001 as 0.001, 1e-5 as 10⁻⁵."""
    if v >= 1e6 or 0 < v < 1e-3:
        exponent = round(math.log10(v))
        if abs(v / 10**exponent - 1) < 1e-6:
            return f"$10^{{{exponent}}}$"
        return f"{v:.0e}"
    return f"{v / 1000:g}k" if v >= 1e4 else f"{v:g}"


def save(fig: Figure, folder: Path, name: str) -> list[Path]:
    """PNG at 200 dpi and PDF, without dates or versions, so that the same figure is the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    fig.draw_without_rendering()  # one layout serves both files
    fig.set_layout_engine("none")
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    fig.savefig(paths[0], dpi=200, facecolor="white", metadata={"Software": None})
    fig.savefig(paths[1], facecolor="white", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return paths
