"""Figures of one GPU's kernels: the roofline, and the speed-up against the number of tokens."""

import math
from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from qbench.latency.record import BF16, Kernel
from qbench.render.style import HALO, INK, heading, log_ticks, plain, styled
from qbench.report.latency.speeds import FUSED, LARGE, Speeds, geomean, label

# the fewer bits, the darker
BITS_LOOK = {
    8: ("#BFA24A", "s"), 7: ("#A9B24E", "v"), 6: ("#7FB060", "<"), 5: ("#52A67A", ">"),
    4: ("#0072B2", "o"), 3: ("#5A4FA3", "^"), 2: ("#8A2A6B", "D"), 1: ("#3B0F3F", "X"),
}  # fmt: skip
KERNEL_LOOK = {"binary": ("#000000", "*", "-"), "dequantize_cublas": ("#7F7F7F", "P", (0, (1, 1)))}
PEER_LOOK = {
    "torch_int4": ("#D55E00", "o"), "torch_scaled_mm_fp8": ("#D55E00", "s"),
    "torch_int_mm": ("#E69F00", "D"), "gemlite": ("#CC79A7", "^"),
}  # fmt: skip
PEER_DASH = (0, (1.2, 1.2))


def look(k: Kernel) -> dict:
    """Line2D keywords of a kernel: ours with 16-bit activations solid, with 8-bit ones dashed, the peers dotted."""
    if k.name in KERNEL_LOOK:
        color, marker, dash = KERNEL_LOOK[k.name]
    elif k == BF16:
        color, marker, dash = INK, "P", "-"
    elif k.name in ("wna16", "wna8"):
        color, marker = BITS_LOOK[k.bits]
        dash = "-" if k.name == "wna16" else (0, (4, 1.6))
    else:
        color, marker = PEER_LOOK.get(k.name, ("#7F7F7F", "h"))
        dash = PEER_DASH
    if k == BF16 or k.name in ("wna16", "binary"):
        face = dict(markeredgecolor="white", markeredgewidth=0.4)
    else:
        face = dict(markerfacecolor="white", markeredgecolor=color, markeredgewidth=0.9)
    size = {"*": 7, "D": 3.6}.get(marker, 4.2)
    return dict(color=color, marker=marker, linestyle=dash, markersize=size) | face


@styled
def roofline(s: Speeds) -> Figure | None:
    """Every measured product by its counted operations and bytes, under the ceilings of the same run."""
    rows = [row for row in s.products.values() if row.us]
    copy, read, peak = (s.ceiling(name) for name in ("copy_gbps", "read_gbps", "bf16_tflops"))
    if not rows or math.isnan(copy) or math.isnan(peak):
        return None
    fig = Figure(figsize=(7.0, 4.3), layout="constrained")
    ax = fig.subplots()
    points = [(row.kernel, row.flops / row.bytes, row.flops / row.us / 1e6) for row in rows]
    largest = max(intensity for _, intensity, _ in points)
    log_ticks(ax, "x", [*(intensity for _, intensity, _ in points), 1.3 * largest])
    log_ticks(ax, "y", [*(rate for *_, rate in points), 1.3 * peak])
    for k in s.kernels:
        style = look(k) | dict(linestyle="none", alpha=0.55, label=label(k), zorder=3 + (k.name == "wna16"))
        xs, ys = [p[1] for p in points if p[0] == k], [p[2] for p in points if p[0] == k]
        ax.plot(xs, ys, clip_on=False, **style | dict(markersize=3.4))
    low, high = ax.get_xlim()
    for gbps, dash in ((copy, "-"), (read, (0, (4, 2)))):
        if not math.isnan(gbps):
            ridge = min(peak / gbps * 1e3, high)
            ax.plot([low, ridge], [low * gbps / 1e3, ridge * gbps / 1e3], color=INK, lw=1.1, ls=dash, zorder=2.5)
    ax.plot([peak / copy * 1e3, high], [peak, peak], color=INK, lw=1.1, zorder=2.5)
    legend = f"slope: copy {copy / 1e3:.2f} TB/s"
    legend += "" if math.isnan(read) else f", dashed: read {read / 1e3:.2f} TB/s"
    legend += f"\nflat: bf16 product {peak:.0f} TFLOP/s (8-bit activations may be above it); all of the same run"
    ax.text(0.01, 0.97, legend, va="top", size=7.5, path_effects=HALO, zorder=6, transform=ax.transAxes)
    ax.set_xlabel("operations per counted byte")
    ax.set_ylabel("TFLOP/s")
    fig.legend(loc="outside lower center", ncols=6, columnspacing=1.2, handletextpad=0.4)
    shapes = len({(row.model, row.layer) for row in s.products.values()})
    heading(fig, f"Products on an {s.gpu}: {shapes} shapes, {s.tokens[0]} to {s.tokens[-1]} tokens", [])
    return fig


@styled
def tokens_figure(s: Speeds) -> Figure | None:
    """Speed-up over bfloat16 against tokens, one panel per large model; a bar marks where a line falls through 1."""
    models = [m for m in LARGE if m in s.layers] or list(s.layers)[-3:]
    kernels = [k for k in s.kernels if k != BF16]
    curves = {(m, k): _curve(s, m, k) for m in models for k in kernels}
    curves = {key: points for key, points in curves.items() if points}
    if not curves:
        return None
    shown = [m for m in models if any(key[0] == m for key in curves)]
    fig = Figure(figsize=(max(4.4, 0.5 + 2.3 * len(shown)), 3.9), layout="constrained")
    axes = fig.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    tokens = sorted({M for points in curves.values() for M, _ in points})
    for ax, model in zip(axes, shown):
        ax.set_title(model)
        ax.set_xlabel("tokens M")
        log_ticks(ax, "y", [0.9, 1.1, *(g for points in curves.values() for _, g in points)])
        ax.set_xscale("log", base=2)
        ax.set_xlim(tokens[0] / 1.3, tokens[-1] * 1.3)
        ax.xaxis.set_major_locator(FixedLocator(_apart(tokens)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.axhline(1, color=INK, lw=0.9, zorder=2)
        crossings = []
        for k in (k for k in kernels if (model, k) in curves):
            points = curves[model, k]
            ax.plot(*zip(*points), zorder=4 if k.name == "wna16" else 3, **look(k) | dict(linewidth=1.2))
            if k.name in ("wna16", "wna8", "binary") and (at := crossing(points)):
                crossings.append((at, k))
        _mark_crossings(ax, crossings)
    axes[0].set_ylabel("times as fast as cuBLAS in bfloat16")
    drawn = [k for k in kernels if any(key[1] == k for key in curves)]
    handles = [Line2D([], [], label=label(k), **look(k) | dict(linewidth=1.2)) for k in drawn]
    handles.append(Line2D([], [], color=INK, ls="none", marker="|", ms=8, mew=1.4, label="falls behind bf16, at M"))
    fig.legend(handles=handles, loc="outside lower center", ncols=6 if len(shown) > 2 else 3, columnspacing=1.2)
    heading(fig, f"Geometric mean over a layer's products on an {s.gpu}", [])
    return fig


def _curve(s: Speeds, model: str, k: Kernel) -> list[tuple[int, float]]:
    """(M, mean gain) where all products of a layer have one, so that every point is over the same shapes."""
    out = []
    for M in s.tokens:
        gains = [s.gain(model, layer, M, k) for layer in FUSED]
        if not any(map(math.isnan, gains)):
            out.append((M, geomean(gains)))
    return out


def crossing(points: list[tuple[int, float]]) -> float | None:
    """The M at which a curve first falls through 1, interpolated in logarithms; None if it never does."""
    for (a, high), (b, low) in pairwise(points):
        if high >= 1 > low:
            return a * (b / a) ** (math.log(high) / (math.log(high) - math.log(low)))
    return None


def _mark_crossings(ax, crossings: list[tuple[float, Kernel]]) -> None:
    """One bar per crossing on the line of bfloat16, and its number of tokens; near ones share a number."""
    labelled = 0.0
    for at, k in sorted(crossings, key=lambda c: c[0]):
        ax.plot(at, 1, marker="|", ms=9, mew=1.4, color=look(k)["color"], zorder=5)
        if at > 1.6 * labelled:
            style = dict(size=6.5, ha="right", va="top", path_effects=HALO, zorder=6, textcoords="offset points")
            ax.annotate(f"{at:.0f}", (at, 1), (-1, -4), **style)
            labelled = at


def _apart(tokens: list[int]) -> list[int]:
    """Ticks at least a factor of four apart."""
    out: list[int] = []
    for M in tokens:
        if not out or 4 * out[-1] <= M:
            out.append(M)
    return out
