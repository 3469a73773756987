"""Ours against printed: one point a measured cell, perplexities and accuracies, and their differences."""

import math
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qbench.printed.published import HEADERS, NAMES, PERPLEXITIES
from qbench.render.style import INK, LOOK, SOFT, log_ticks, save, styled
from qbench.report.reproduction.compare import Reproduction


def draw(tables: list[Reproduction], folder: Path) -> list[Path]:
    """reproduction.png and .pdf (with the protocol's name behind it unless it is ``paper``); none without a value."""
    points = [p for t in tables for p in _points(t)]
    if not points:
        return []
    name = "reproduction" + ("" if tables[0].protocol == "paper" else f"_{tables[0].protocol}")
    return save(figure(points, tables[0].protocol), Path(folder), name)


def _points(t: Reproduction):
    """(metric, method, printed, ours, difference, whether the print is in doubt) of the finite cells."""
    for line in t.lines:
        for m, ours in line.ours.items():
            a = line.printed[m]
            if math.isfinite(ours.value) and math.isfinite(a.reference):
                yield m, line.row.method, a.reference, ours.value, a.difference, bool(a.doubts)


@styled
def figure(points: list[tuple], protocol: str) -> Figure:
    """Above: ours over printed, perplexity and accuracy; below: the differences, a strip a metric."""
    fig = Figure(figsize=(7.0, 5.6), layout="constrained")
    upper, lower = fig.subfigures(2, 1, height_ratios=(1.25, 1.0))
    left, right = upper.subplots(1, 2)
    for ax, log in ((left, True), (right, False)):
        mine = [p for p in points if (p[0] in PERPLEXITIES) == log]
        _scatter(ax, mine, log)
    upper.suptitle(f"Ours against the printed tables, protocol {protocol}", x=0.01, ha="left", size=9)
    _strip(lower.subplots(1, 1), points)
    shown = [m for m in NAMES if any(p[1] == m for p in points)]
    handles = [Line2D([], [], label="16 bit" if m == "none" else NAMES[m], **_style(m, False)) for m in shown]
    if any(p[5] for p in points):
        handles.append(Line2D([], [], label="hollow: print in doubt", **_style("none", True)))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.2, columnspacing=1.2)
    return fig


def _style(method: str, doubt: bool) -> dict:
    color, marker, _ = LOOK.get(method, (SOFT, "o", None))
    size = 7 if marker == "*" else 4.5
    return dict(color=color, marker=marker, ls="none", ms=size, markerfacecolor="none" if doubt else color)


def _scatter(ax, points: list[tuple], log: bool) -> None:
    for _, method, printed, ours, _, doubt in points:
        ax.plot(printed, ours, zorder=3, **_style(method, doubt))
    ax.set(xlabel="printed", ylabel="ours", title="Perplexity" if log else "Accuracy, %")
    values = [v for p in points for v in p[2:4]]
    if not values:
        ax.text(0.5, 0.5, "nothing measured", transform=ax.transAxes, ha="center", color=SOFT)
        return
    if log:
        log_ticks(ax, "x", values)
        log_ticks(ax, "y", values)
    else:
        room = 0.05 * (max(values) - min(values) or 1)
        ax.set(xlim=(min(values) - room, max(values) + room), ylim=(min(values) - room, max(values) + room))
    ax.axline((values[0], values[0]), (2 * values[0], 2 * values[0]), color=INK, lw=0.8, zorder=2)


def _strip(ax, points: list[tuple]) -> None:
    """Per cent of the printed perplexity, points of accuracy; each metric a column, each method beside the next."""
    metrics = [m for m in HEADERS if any(p[0] == m for p in points)]
    methods = [m for m in NAMES if any(p[1] == m for p in points)]
    for metric, method, printed, _, difference, doubt in points:
        x = metrics.index(metric) + 0.7 * ((methods.index(method) + 0.5) / len(methods) - 0.5)
        ax.plot(x, 100 * difference / printed if metric in PERPLEXITIES else difference, **_style(method, doubt))
    ax.axhline(0, color=INK, lw=0.8, zorder=1.5)
    if any(abs(line.get_ydata()[0]) > 30 for line in ax.lines[:-1]):
        ax.set_yscale("symlog", linthresh=5)
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    ax.set_xticks(
        range(len(metrics)), [HEADERS[m].replace(" PPL", "\nPPL, %").replace(" mean", "\nmean") for m in metrics]
    )
    ax.grid(axis="x", visible=False)
    ax.set(ylabel="ours − printed", xlim=(-0.6, len(metrics) - 0.4))
