"""Ours against printed: one point per measured cell, perplexities and accuracies, and their differences."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qbench.printed.published import HEADERS, NAMES, PERPLEXITIES
from qbench.render.style import INK, SOFT, heading, log_ticks, look, save, styled
from qbench.report.reproduction.compare import Reproduction


class Point(NamedTuple):
    """One cell with two finite numbers; ``doubt``: whether the printed one is in doubt."""

    metric: str
    method: str
    printed: float
    ours: float
    doubt: bool


def draw(tables: list[Reproduction], folder: Path) -> list[Path]:
    """Writes reproduction.png and .pdf, named after the protocol unless it is ``paper``; none without a value."""
    points, protocol = [p for t in tables for p in _points(t)], tables[0].protocol
    name = "reproduction" + ("" if protocol == "paper" else f"_{protocol}")
    return save(figure(points, protocol), Path(folder), name) if points else []


def _points(t: Reproduction) -> Iterator[Point]:
    for line in t.lines:
        for metric, ours in line.ours.items():
            a = line.printed[metric]
            if math.isfinite(ours.value) and math.isfinite(a.reference):
                yield Point(metric, line.row.method, a.reference, ours.value, bool(a.doubts))


@styled
def figure(points: list[Point], protocol: str) -> Figure:
    """Above: ours over printed, perplexity and accuracy; below: the differences, one strip per metric."""
    fig = Figure(figsize=(7.0, 5.6), layout="constrained")
    upper, lower = fig.subfigures(2, 1, height_ratios=(1.25, 1.0))
    for ax, log in zip(upper.subplots(1, 2), (True, False)):
        _scatter(ax, [p for p in points if (p.metric in PERPLEXITIES) == log], log)
    heading(upper, f"Ours against the printed tables, protocol {protocol}")
    _strip(lower.subplots(1, 1), points)
    shown = [m for m in NAMES if any(p.method == m for p in points)]
    handles = [Line2D([], [], label="16 bit" if m == "none" else NAMES[m], **_style(m)) for m in shown]
    if any(p.doubt for p in points):
        handles.append(Line2D([], [], label="hollow: printed cell in doubt", **_style("none", doubt=True)))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.2, columnspacing=1.2)
    return fig


def _style(method: str, doubt: bool = False) -> dict:
    return look(method, rank=doubt) | dict(linestyle="none")


def _scatter(ax: Axes, points: list[Point], log: bool) -> None:
    for p in points:
        ax.plot(p.printed, p.ours, zorder=3, **_style(p.method, p.doubt))
    ax.set(xlabel="printed", ylabel="ours", title="Perplexity" if log else "Accuracy, %")
    values = [v for p in points for v in (p.printed, p.ours)]
    if not values:
        ax.text(0.5, 0.5, "nothing measured", transform=ax.transAxes, ha="center", color=SOFT)
        return
    if log:
        log_ticks(ax, "x", values)
        log_ticks(ax, "y", values)
    else:
        room = 0.05 * (max(values) - min(values) or 1)
        limits = (min(values) - room, max(values) + room)
        ax.set(xlim=limits, ylim=limits)
    ax.axline((values[0], values[0]), (2 * values[0], 2 * values[0]), color=INK, lw=0.8, zorder=2)


def _strip(ax: Axes, points: list[Point]) -> None:
    """Differences in per cent of a printed perplexity, in points of accuracy; a column per metric, methods apart."""
    metrics = [m for m in HEADERS if any(p.metric == m for p in points)]
    methods = [m for m in NAMES if any(p.method == m for p in points)]
    differences = [(p.ours - p.printed) * (100 / p.printed if p.metric in PERPLEXITIES else 1) for p in points]
    for p, difference in zip(points, differences):
        x = metrics.index(p.metric) + 0.7 * ((methods.index(p.method) + 0.5) / len(methods) - 0.5)
        ax.plot(x, difference, **_style(p.method, p.doubt))
    ax.axhline(0, color=INK, lw=0.8, zorder=1.5)
    if max(map(abs, differences)) > 30:
        ax.set_yscale("symlog", linthresh=5)
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    names = [HEADERS[m].replace(" PPL", "\nPPL, %").replace(" mean", "\nmean") for m in metrics]
    ax.set_xticks(range(len(metrics)), names)
    ax.grid(axis="x", visible=False)
    ax.set(ylabel="ours − printed", xlim=(-0.6, len(metrics) - 0.4))
