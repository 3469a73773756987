"""The audit as a picture: what finer groups cost by model, and which printed means are not means."""

import math
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from qbench.printed.finding import NAMES, Book, bits, mean, short, worse
from qbench.printed.published import Printed
from qbench.printed.rules_cells import TOLERANCE
from qbench.render.style import INK, LOOK, SOFT, save, styled

SERIES = (("awq", 3), ("awq", 4), ("gptq", 4))
WORSE = "#FBEDE6"


def draw(rows: list[Printed], folder: Path) -> list[Path]:
    """audit.png and audit.pdf in ``folder``."""
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
    upper.suptitle("Groups of 128 against one scale per row, as printed: AWQ gets worse, GPTQ better", **_title())
    _means(lower.subplots(1, 1), rows)
    lower.suptitle("The zero-shot means against the six tasks beside them", **_title())
    return fig


def _title() -> dict:
    return dict(x=0.01, ha="left", size=9)


def _groups(ax, book: Book, metric: str) -> None:
    log = metric == "c4_ppl"
    order = book.models
    for method, w in SERIES:
        color, marker, _ = LOOK[method]
        points = []
        for x, model in enumerate(order):
            row = next(r for k in (1, 2) if (r := book.get(k, model, method, w)))
            fine = book.regrouped(row)
            if worse(metric, fine.values[metric], row.values[metric]) is not None:
                a, b = fine.values[metric], row.values[metric]
                points.append((x, a / b if log else a - b))
        face = "white" if w == 3 else color
        style = dict(color=color, marker=marker, ls="none", markerfacecolor=face, ms=5.5, zorder=3)
        ax.plot(*zip(*points), label=f"{NAMES[method]}, {w} bits", **style)
    ax.set_xticks(range(len(order)), [short(m) for m in order], rotation=60, ha="right", rotation_mode="anchor")
    ax.grid(axis="x", visible=False)
    ax.axhline(1 if log else 0, color=INK, lw=0.9, zorder=2)
    low, high = ax.get_ylim()
    if log:
        ax.set_yscale("log")
        low, high = 0.55, max(high, 2.6)
        ax.yaxis.set_major_locator(FixedLocator([0.6, 0.8, 1, 1.5, 2, 2.5]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"×{v:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_title("C4 perplexity, g128 / per row")
    else:
        low -= 0.12 * (high - low)
        ax.set_title("MMLU, g128 − per row, points")
    ax.set_ylim(low, high)
    ax.axhspan(1 if log else low, high if log else 0, color=WORSE, lw=0, zorder=0.1)
    place = dict(transform=ax.transAxes, color=SOFT, size=7.5, ha="right")
    ax.text(0.985, 0.96 if log else 0.04, "finer groups are worse", va="top" if log else "bottom", **place)


def _means(ax, rows: list[Printed]) -> None:
    ax.axhspan(-TOLERANCE, TOLERANCE, color="#EDEDED", lw=0, zorder=0.1)
    gaps = [(mean(r), r.values["zeroshot_mean"] - mean(r), r) for r in rows]
    for method in NAMES:
        color, marker, _ = LOOK.get(method, (SOFT, "o", None))
        points = [(x, y) for x, y, r in gaps if r.method == method]
        label = "16 bit" if method == "none" else NAMES[method]
        ax.plot(*zip(*points), color=color, marker=marker, ls="none", ms=6.5 if marker == "*" else 4.2, label=label)
    named = {}
    for x, y, r in gaps:
        if abs(y) > 1.25:
            named.setdefault((round(x, 2), round(y, 2)), []).append(r)
    for (x, y), same in named.items():
        ahead = [(u - x, v - y) for u, v in named if 0 < u - x < 14 and abs(v - y) < 0.4]
        left = any(gap < 5 for gap, _ in ahead)  # no room before the next point: write on the other side
        shift = 4 if left else 0 if not ahead else -5 if ahead[0][1] > 0 else 6
        tables = f"Table{'s' * (len(same) > 1)} {' and '.join(str(r.table) for r in same)}"
        style = dict(textcoords="offset points", ha="right" if left else "left", va="center", size=6.8)
        text = f"{short(same[0].model)} {bits(same[0])}, {tables}"
        ax.annotate(text, (x, y), (-6 if left else 6, shift), color=INK, **style)
    most = max(abs(y) for _, y, _ in gaps)
    ax.set(ylim=(-1.12 * most, 1.12 * most), xlabel="mean of the six tasks, %", ylabel="printed − recomputed, points")
    ax.set_xlim(math.floor(min(x for x, _, _ in gaps)) - 4, 88)
    ax.legend(loc="upper left", ncols=3, handletextpad=0.2, columnspacing=1.0)
