"""Ours against printed: the difference of every measured cell, by metric and method."""

import math
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qbench.printed.published import HEADERS, NAMES, PERPLEXITIES
from qbench.render.style import INK, heading, look, save, styled
from qbench.report.reproduction.compare import Reproduction


def draw(tables: list[Reproduction], folder: Path) -> list[Path]:
    """Writes reproduction.png and .pdf of one protocol, named after it unless it is ``paper``; none without a value."""
    if not any(math.isfinite(a.difference) for t in tables for line in t.lines for a in line.printed.values()):
        return []
    protocol = tables[0].protocol
    return save(figure(tables), folder, "reproduction" + ("" if protocol == "paper" else f"_{protocol}"))


@styled
def figure(tables: list[Reproduction]) -> Figure:
    """Differences in per cent of a printed perplexity, in points of accuracy; a column per metric, methods apart."""
    points = [  # metric, method, difference, whether the printed cell is in doubt
        (m, line.row.method, a.difference * (100 / a.reference if m in PERPLEXITIES else 1), bool(a.doubts))
        for t in tables
        for line in t.lines
        for m, a in line.printed.items()
        if math.isfinite(a.difference)
    ]
    metrics = [m for m in HEADERS if any(m == p[0] for p in points)]
    methods = [m for m in NAMES if any(m == p[1] for p in points)]
    fig = Figure(figsize=(7.0, 3.2), layout="constrained")
    ax = fig.subplots()
    for metric, method, difference, doubt in points:
        x = metrics.index(metric) + 0.7 * ((methods.index(method) + 0.5) / len(methods) - 0.5)
        ax.plot(x, difference, **look(method, rank=doubt) | dict(linestyle="none"))
    ax.axhline(0, color=INK, lw=0.8, zorder=1.5)
    if max(abs(p[2]) for p in points) > 30:
        ax.set_yscale("symlog", linthresh=5)
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    names = [HEADERS[m].replace(" PPL", "\nPPL, %").replace(" mean", "\nmean") for m in metrics]
    ax.set_xticks(range(len(metrics)), names)
    ax.grid(axis="x", visible=False)
    ax.set(ylabel="ours − printed", xlim=(-0.6, len(metrics) - 0.4))
    shown = {"16 bit" if m == "none" else NAMES[m]: look(m) for m in methods}
    if any(doubt for *_, doubt in points):
        shown["hollow: printed cell in doubt"] = look("none", rank=1)
    handles = [Line2D([], [], label=label, **style | dict(linestyle="none")) for label, style in shown.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.2, columnspacing=1.2)
    heading(fig, f"Ours against the printed tables, protocol {tables[0].protocol}")
    return fig
