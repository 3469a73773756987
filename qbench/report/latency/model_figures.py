"""Figures of one GPU's decoders: speed and memory against size, and quality against speed.

A quality record is of a model, a method, a grid and activation bits; a latency row is of a model's shape and a kernel
with its bits and group. Times do not depend on the values of the weights, so the two are joined where the model's name
is the same ("-base" has the same shape) and the method runs on that kernel with these bits and groups: no method on
bfloat16; a uniform grid with 16-bit activations (RTN, GPTQ, AWQ) on wna16; one with 8-bit activations (SmoothQuant) on
wna8; BiLLM on binary. Only points that have both are drawn.
"""

import json

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from qbench.latency.record import BF16, Kernel, ModelRow
from qbench.record import Measurement
from qbench.render.style import HALO, INK, heading, log_ticks, name_apart, styled
from qbench.report.latency.figures import look
from qbench.report.latency.speeds import Speeds, label, size_order
from qbench.report.quality.columns import Column, column
from qbench.report.quality.frame import frame
from qbench.report.quality.pareto import draw_front, marker_sizes
from qbench.report.quality.rows import Row
from qbench.report.quality.series import handles, looks, quality_axis, value
from qbench.report.quality.table import FIGURES, make_table, matrix, one_evaluation
from qbench.report.quality.variants import UNQUANTIZED
from qbench.shape import QWEN3


@styled
def models_figure(s: Speeds) -> Figure | None:
    """Tokens per second and peak memory of decoding one sequence, against parameters; one line per kernel."""
    rows = [r for r in s.models if (r.what, r.batch) == ("decode", 1) and r.ms is not None]
    rows = [r for r in rows if r.model.removeprefix("qwen3-") in QWEN3]
    if not rows:
        return None
    kernels = sorted({r.kernel for r in rows}, key=lambda k: (-k.bits, k.name, k.group or 0))
    sizes = {r.model: QWEN3[r.model.removeprefix("qwen3-")].parameters / 1e9 for r in rows}
    fig = Figure(figsize=(7.0, 3.4), layout="constrained")
    left, right = fig.subplots(1, 2)
    floors = [(sizes[r.model], 1e3 / r.floor_ms, r.kernel) for r in rows if r.floor_ms]
    for ax, of, name, beside in (
        (left, lambda r: r.tokens_per_s, "tokens/s, one sequence", floors),
        (right, lambda r: r.peak_bytes and r.peak_bytes / 1e9, "peak memory, GB", []),
    ):
        shown = [r for r in rows if of(r) is not None]
        ax.set_title(name)
        log_ticks(ax, "x", list(sizes.values()))
        ax.set_xlim(ax.get_xlim()[0] / 1.05, ax.get_xlim()[1] * 1.6)  # room for the names
        ax.xaxis.set_major_locator(FixedLocator(sorted(sizes.values())))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.2g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("parameters, billions")
        if not shown:
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center")
            continue
        log_ticks(ax, "y", [*(of(r) for r in shown), *(y for _, y, _ in beside)])
        ends = []
        for k in kernels:
            mine = sorted((r for r in shown if r.kernel == k), key=lambda r: (sizes[r.model], r.context))
            if mine:
                ax.plot([sizes[r.model] for r in mine], [of(r) for r in mine], **look(k) | dict(linewidth=1.2))
                ends.append((sizes[mine[-1].model], of(mine[-1]), k))
        for x, y, k in beside:
            ax.plot(x, y, marker="_", ms=7, mew=1.0, color=look(k)["color"], zorder=2)
        name_apart(ax, [(x, y, label(k), look(k)["color"]) for x, y, k in ends])
    contexts = " or ".join(f"{c}" for c in sorted({r.context for r in rows}))
    heading(fig, f"Decoding on an {s.gpu}, {contexts} tokens in the cache (bars: the memory floor)", [])
    return fig


def kernel_of(science: dict) -> Kernel | None:
    """The kernel that runs a quantized model; None where no kernel does."""
    method, grid = science.get("method") or {"name": UNQUANTIZED}, science.get("grid") or {}
    acts = (method.get("acts") or {}).get("bits", 16)
    if method["name"] == UNQUANTIZED:
        return BF16
    if method["name"] == "billm":
        return Kernel("binary", 1, 128)
    if "bits" not in grid or acts not in (8, 16):
        return None
    return Kernel("wna16" if acts == 16 else "wna8", grid["bits"], grid["group_size"])


def joined(s: Speeds, rows: list[Row]) -> list[tuple[Row, ModelRow]]:
    """The rows of a quality table, each with the latency row of its decoder; rows without one are left out."""
    out = []
    for r in rows:
        k = kernel_of(json.loads(r.quant))
        found = s.decoding(r.model.removesuffix("-base"), k) if k else None
        if found:
            out.append((r, found))
    return out


@styled
def quality_figure(s: Speeds, measurements: list[Measurement]) -> Figure | None:
    """Quality against the measured time per token, one panel per metric, with the Pareto front over all models."""
    df = frame(m for m in measurements if m.science["model"]["name"].startswith("qwen3-"))
    if df.empty:
        return None
    t = one_evaluation(make_table(matrix("qwen3"), df))
    pairs = joined(s, t.rows)
    columns = [column(key) for key in _metrics(t, pairs)]
    if not columns:
        return None
    fig = Figure(figsize=(max(4.2, 3.5 * len(columns)), 3.6), layout="constrained")
    axes = fig.subplots(1, len(columns), squeeze=False)[0]
    rows = [r for r, _ in pairs]
    styles = looks(rows)
    for ax, c in zip(axes, columns):
        _panel(ax, c, [(d.ms, r) for r, d in pairs if r.cells[c.key].finite], styles)
    legend = [*handles(rows, styles, lines=False), Line2D([], [], color=INK, lw=0.9, label="Pareto front")]
    fig.legend(handles=legend, loc="outside lower center", ncols=4)
    heading(fig, f"Quality against decoding time on an {s.gpu} (numbers: weight bits)", t.left_out(columns))
    return fig


def _metrics(t, pairs: list[tuple[Row, ModelRow]]) -> list[str]:
    """The first perplexity and the first accuracy with at least two points."""
    there = {c.key for c in t.columns if sum(r.cells[c.key].finite for r, _ in pairs) > 1}
    kinds = {c.log: c.key for c in reversed(t.choose(FIGURES, 99)) if c.delta and c.key in there}
    return [kinds[log] for log in (True, False) if log in kinds]


def _panel(ax: Axes, c: Column, pairs: list[tuple[float, Row]], styles: dict[tuple, dict]) -> None:
    end = quality_axis([ax], c, [r for _, r in pairs])
    log_ticks(ax, "x", [ms for ms, _ in pairs])
    ax.set_xlim(ax.get_xlim()[0] / 1.15, ax.get_xlim()[1] * 1.8)  # room for bits and names
    ax.set_xlabel("ms per token, one sequence (measured)")
    points = [(ms, value(r, c, end), r) for ms, r in pairs]
    models = sorted({r.model for _, r in pairs}, key=lambda m: size_order(m.removesuffix("-base")))
    best = draw_front(ax, c, points, styles, marker_sizes(models))
    down, text = -4 if c.higher_is_better else 4, dict(textcoords="offset points", path_effects=HALO, zorder=5)
    for ms, y, r in best:
        if r.method != UNQUANTIZED:
            ax.annotate(f"{r.bits:.3g}", (ms, y), (-4, -down), size=6, ha="right", va="center", **text)
    for model in models:
        ms, y = max((ms, y) for ms, y, r in points if r.model == model)
        ax.annotate(model, (ms, y), (3, down), size=7, va="top" if down < 0 else "bottom", **text)
