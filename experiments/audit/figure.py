"""The audit as a picture: what finer groups cost by model, and which printed means are not the mean of their tasks."""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.audit.book import Book, billions, setting
from experiments.audit.rules_cells import TOLERANCE
from qbench.printed.published import NAMES, Printed
from qbench.render.style import INK, SOFT, heading, look, save, styled

SERIES = (("awq", 3), ("awq", 4), ("gptq", 4))
WORSE = "#FBEDE6"


def draw(rows: list[Printed], folder: Path) -> list[Path]:
    """Writes audit.png and audit.pdf in ``folder``."""
    return save(figure(rows), Path(folder), "audit")


@styled
def figure(rows: list[Printed]) -> Figure:
    """Above: C4 perplexity and MMLU of g128 against per row by model; below: printed minus recomputed means."""
    book = Book(rows)
    fig = Figure(figsize=(7.0, 6.2), layout="constrained")
    upper, lower = fig.subfigures(2, 1, height_ratios=(1.0, 0.9))
    left, right = upper.subplots(1, 2)
    _groups(left, book, "c4_ppl")
    _groups(right, book, "mmlu")
    handles, labels = left.get_legend_handles_labels()
    upper.legend(handles, labels, loc="outside lower center", ncols=3)
    heading(upper, "Groups of 128 against one scale per row, as printed: AWQ gets worse, GPTQ better")
    _means(lower.subplots(1, 1), rows)
    heading(lower, "The printed zero-shot means against the mean of the six tasks in the same row")
    return fig


def _groups(ax: Axes, book: Book, metric: str) -> None:
    """Groups of 128 against one scale per row, one point per model: a ratio of perplexities or a difference of MMLU."""
    ratio = metric == "c4_ppl"
    sizes = {r.model: r.size for r in sorted(book.rows, key=lambda r: billions(r.model))}
    for method, w in SERIES:
        points = []
        for x, model in enumerate(sizes):
            row, fine = book.all_tables(model, method, w)
            a, b = fine.values[metric], row.values[metric]
            points.append((x, a / b if ratio else a - b))
        style = look(method, rank=w == 3) | dict(linestyle="none", markersize=5.5)
        ax.plot(*zip(*points), label=f"{NAMES[method]}, {w} bits", zorder=3, **style)
    ax.set_xticks(range(len(sizes)), sizes.values(), rotation=60, ha="right", rotation_mode="anchor")
    ax.grid(axis="x", visible=False)
    ax.axhline(1 if ratio else 0, color=INK, lw=0.9, zorder=2)
    low, high = ax.get_ylim()
    if ratio:
        ax.set_yscale("log")
        low, high = 0.55, max(high, 2.6)
        ax.yaxis.set_major_locator(FixedLocator([0.6, 0.8, 1, 1.5, 2, 2.5]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"×{v:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        low -= 0.12 * (high - low)
    ax.set(ylim=(low, high), title="C4 perplexity, g128 / per row" if ratio else "MMLU, g128 − per row, points")
    ax.axhspan(1 if ratio else low, high if ratio else 0, color=WORSE, lw=0, zorder=0.1)
    y, va = (0.96, "top") if ratio else (0.04, "bottom")
    ax.text(0.985, y, "finer groups are worse", va=va, ha="right", transform=ax.transAxes, color=SOFT, size=7.5)


def _means(ax: Axes, rows: list[Printed]) -> None:
    """Printed minus recomputed means, one point per row; those off by more than 1.25 points are named."""
    ax.axhspan(-TOLERANCE, TOLERANCE, color="#EDEDED", lw=0, zorder=0.1)
    gaps = [(r.task_mean, r.values["zeroshot_mean"] - r.task_mean, r) for r in rows]
    for method in NAMES:
        style = look(method) | dict(linestyle="none")
        points = [(x, y) for x, y, r in gaps if r.method == method]
        ax.plot(*zip(*points), label="16 bit" if method == "none" else NAMES[method], **style)
    named: dict[tuple, list[Printed]] = {}
    for x, y, r in gaps:
        if abs(y) > 1.25:
            named.setdefault((round(x, 2), round(y, 2)), []).append(r)
    for (x, y), same in named.items():
        ahead = [(u - x, v - y) for u, v in named if 0 < u - x < 14 and abs(v - y) < 0.4]
        left = any(gap < 5 for gap, _ in ahead)  # no room before the next point: write on the other side
        shift = 4 if left else 0 if not ahead else -5 if ahead[0][1] > 0 else 6
        tables = f"Table{'s' * (len(same) > 1)} {' and '.join(str(r.table) for r in same)}"
        style = dict(textcoords="offset points", ha="right" if left else "left", va="center", size=6.8, color=INK)
        ax.annotate(f"{same[0].size} {setting(same[0])}, {tables}", (x, y), (-6 if left else 6, shift), **style)
    most = max(abs(y) for _, y, _ in gaps)
    ax.set(ylim=(-1.12 * most, 1.12 * most), xlabel="mean of the six tasks, %", ylabel="printed − recomputed, points")
    ax.set_xlim(math.floor(min(x for x, _, _ in gaps)) - 4, 88)
    ax.legend(loc="upper left", ncols=3, handletextpad=0.2, columnspacing=1.0)
