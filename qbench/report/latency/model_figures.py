"""Figures of one GPU's decoders: speed and memory against size, and quality against speed.

A quality record is of a model, a method, a grid and activation bits; a latency row is of a model's shape and a kernel
with its bits and group. Times do not depend on the values of the weights, so the two are joined where the model's name
is the same ("-base" has the same shape) and the method runs on that kernel with these bits and groups: no method on
bfloat16; a uniform grid with 16-bit activations (RTN, GPTQ, AWQ) on wna16; one with 8-bit activations (SmoothQuant) on
wna8; BiLLM on binary. Only points that have both are drawn.
"""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from qbench.latency.record import BF16, Kernel, ModelRow
from qbench.record import Measurement
from qbench.render.style import HALO, INK, heading, log_ticks, styled, value_axis
from qbench.report.latency.figures import look
from qbench.report.latency.speeds import Speeds, label, size_order
from qbench.report.quality.columns import Column, column
from qbench.report.quality.frame import frame
from qbench.report.quality.pareto import front
from qbench.report.quality.rows import Row
from qbench.report.quality.series import handles, looks
from qbench.report.quality.table import make_table, matrix, one_evaluation
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
        _name_lines(ax, ends)
    contexts = " or ".join(f"{c}" for c in sorted({r.context for r in rows}))
    heading(fig, f"Decoding on an {s.gpu}, {contexts} tokens in the cache (bars: the memory floor)", [])
    return fig


def _name_lines(ax, ends: list[tuple[float, float, Kernel]]) -> None:
    """Writes the name of each line to the right of its end, at least a ``step`` apart from the next."""
    to_axes = ax.transData + ax.transAxes.inverted()
    placed = sorted(((*to_axes.transform((x, y)), k) for x, y, k in ends), key=lambda p: p[1])
    step = 0.056
    lowest = min(placed[0][1], 1.02 - step * len(placed)) - step
    for i, (x, y, k) in enumerate(placed):
        lowest = min(max(y, lowest + step), 1.02 - step * (len(placed) - i))
        style = dict(size=7, va="center", path_effects=HALO, color=look(k)["color"])
        style |= dict(textcoords="axes fraction", xycoords="axes fraction")
        thin = dict(arrowstyle="-", lw=0.4, color=look(k)["color"], shrinkA=0, shrinkB=2)
        ax.annotate(label(k), (x, y), (x + 0.06, lowest), arrowprops=thin, **style)


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
        k = kernel_of(next(iter(r.records.values()))["science"])
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
    quantized = [r for r, _ in pairs if r.method != UNQUANTIZED]
    styles = looks(quantized)
    for ax, c in zip(axes, columns):
        _panel(ax, c, [(r, d.ms) for r, d in pairs if r.cells[c.key].finite], styles)
    legend = handles(quantized, styles, lines=False)
    legend += [Line2D([], [], color=INK, ls="none", marker="P", ms=5, label="bf16")]
    legend += [Line2D([], [], color=INK, lw=0.9, label="front")]
    fig.legend(handles=legend, loc="outside lower center", ncols=4)
    heading(fig, f"Quality against decoding time on an {s.gpu} (numbers: weight bits)", t.left_out(columns))
    return fig


def _metrics(t, pairs: list[tuple[Row, ModelRow]]) -> list[str]:
    """The first perplexity and the first accuracy with at least two points."""
    there = {c.key for c in t.columns if sum(r.cells[c.key].finite for r, _ in pairs) > 1}
    kinds = {c.log: c.key for c in reversed(t.choose(t.spec.figures, 99)) if c.delta and c.key in there}
    return [kinds[log] for log in (True, False) if log in kinds]


def _panel(ax, c: Column, points: list[tuple[Row, float]], styles: dict) -> None:
    value_axis(ax, [r.cells[c.key].value * c.scale for r, _ in points], c.log)
    log_ticks(ax, "x", [ms for _, ms in points])
    ax.set_xlim(ax.get_xlim()[0] / 1.15, ax.get_xlim()[1] * 1.8)  # room for bits and names
    ax.set_xlabel("ms per token, one sequence (measured)")
    ax.set_ylabel(c.titled)
    best = [points[i] for i in front([(ms, r.cells[c.key].value) for r, ms in points], c.higher_is_better)]
    ax.plot([ms for _, ms in best], [r.cells[c.key].value * c.scale for r, _ in best],
            color=INK, lw=0.9, drawstyle="steps-post", zorder=2)  # fmt: skip
    models = sorted({r.model for r, _ in points}, key=lambda m: size_order(m.removesuffix("-base")))
    for r, ms in points:
        style = styles.get(r.series) or dict(color=INK, marker="P", markersize=5, markeredgecolor="white")
        size = style["markersize"] * (0.8 + 0.5 * models.index(r.model) / max(1, len(models) - 1))
        on_front = any(r is b for b, _ in best)
        y = r.cells[c.key].value * c.scale
        ax.plot(ms, y, zorder=4 if on_front else 3, alpha=1 if on_front else 0.35, clip_on=False,
                **style | dict(linestyle="none", markersize=size, markeredgewidth=0.4))  # fmt: skip
        if on_front and r.method != UNQUANTIZED:
            style = dict(textcoords="offset points", size=6, path_effects=HALO, zorder=5, ha="right", va="center")
            ax.annotate(f"{r.bits:.3g}", (ms, y), (-4, 4 if c.higher_is_better else -4), **style)
    for model in models:
        ms, y = max((ms, r.cells[c.key].value * c.scale) for r, ms in points if r.model == model)
        style = dict(textcoords="offset points", size=7, path_effects=HALO, zorder=5, ha="left")
        style |= dict(va="top" if c.higher_is_better else "bottom")
        ax.annotate(model, (ms, y), (3, -4 if c.higher_is_better else 4), **style)
