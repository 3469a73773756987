"""Figures of each GPU that experiments/latency.py measured: the roofline of its products, and their speed-up against
tokens.

    python -m experiments.gpu_timing.figures [--results results]
"""

import argparse
import math
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from qbench.latency.record import BF16, Kernel
from qbench.render.style import HALO, INK, heading, log_ticks, plain, save, styled
from qbench.report.latency.speeds import FUSED, LARGE, OWN, Speeds, geomean, label, load

# the fewer bits, the darker
BITS_LOOK = {
    8: ("#BFA24A", "s"), 7: ("#A9B24E", "v"), 6: ("#7FB060", "<"), 5: ("#52A67A", ">"),
    4: ("#0072B2", "o"), 3: ("#5A4FA3", "^"), 2: ("#8A2A6B", "D"), 1: ("#3B0F3F", "X"),
}  # fmt: skip
OTHER_LOOK = {
    "cublas_bf16": (INK, "P"), "binary": ("#000000", "*"), "dequantize_cublas": ("#7F7F7F", "P"),
    "torch_int4": ("#D55E00", "o"), "torch_scaled_mm_fp8": ("#D55E00", "s"),
    "torch_int_mm": ("#E69F00", "D"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    results = parser.parse_args().results
    for speeds in load(results):
        print(*draw(speeds, results / "figures"), sep="\n")


def draw(s: Speeds, folder: Path) -> list[Path]:
    """Writes the figures that the record has rows for; returns the paths."""
    figures = {"roofline": roofline(s), "tokens": tokens_figure(s)}
    shown = {name: fig for name, fig in figures.items() if fig is not None}
    return [path for name, fig in shown.items() for path in save(fig, folder, f"latency_{s.name}_{name}")]


def look(k: Kernel) -> dict:
    """Line2D keywords of a kernel: ours with 16-bit activations solid, with 8-bit ones dashed, the peers dotted."""
    color, marker = OTHER_LOOK.get(k.name) or BITS_LOOK.get(k.bits, ("#7F7F7F", "h"))
    solid = k == BF16 or k.name in ("wna16", "binary")
    dash = "-" if solid else (0, (4, 1.6)) if k.name in OWN else (0, (1.2, 1.2))
    face, edge = (color, "white") if solid else ("white", color)
    size = {"*": 7, "D": 3.6}.get(marker, 4.2)
    style = dict(color=color, marker=marker, linestyle=dash, linewidth=1.2, markersize=size, label=label(k))
    return style | dict(markerfacecolor=face, markeredgecolor=edge, markeredgewidth=0.4 if solid else 0.9)


@styled
def roofline(s: Speeds) -> Figure | None:
    """Every measured product by its counted operations and bytes, under the ceilings of the same run."""
    rows = [row for row in s.products.values() if row.us]
    copy, peak = s.ceiling("copy_gbps"), s.ceiling("bf16_tflops")
    if not rows or math.isnan(copy) or math.isnan(peak):
        return None
    fig = Figure(figsize=(7.0, 4.3), layout="constrained")
    ax = fig.subplots()
    points = [(row.kernel, row.flops / row.bytes, row.flops / row.us / 1e6) for row in rows]
    ridge = peak / copy * 1e3
    log_ticks(ax, "x", [1.3 * ridge, *(intensity for _, intensity, _ in points)])
    log_ticks(ax, "y", [1.3 * peak, *(rate for *_, rate in points)])
    for k in s.kernels:
        xs, ys = [x for of, x, _ in points if of == k], [y for of, _, y in points if of == k]
        ax.plot(xs, ys, clip_on=False, **look(k) | dict(linestyle="none", alpha=0.55, markersize=3.4))
    low, high = ax.get_xlim()
    ax.plot([low, ridge, high], [low * copy / 1e3, peak, peak], color=INK, lw=1.1, zorder=2.5)
    legend = f"copy {copy / 1e3:.2f} TB/s, bf16 product {peak:.0f} TFLOP/s (8-bit activations may be above it)"
    ax.text(0.01, 0.97, legend, va="top", size=7.5, path_effects=HALO, zorder=6, transform=ax.transAxes)
    ax.set_xlabel("operations per counted byte")
    ax.set_ylabel("TFLOP/s")
    fig.legend(loc="outside lower center", ncols=6, columnspacing=1.2, handletextpad=0.4)
    shapes = len({(row.model, row.layer) for row in s.products.values()})
    heading(fig, f"Products on an {s.gpu}: {shapes} shapes, {s.tokens[0]} to {s.tokens[-1]} tokens")
    return fig


@styled
def tokens_figure(s: Speeds) -> Figure | None:
    """Speed-up over bfloat16 against tokens, one panel per large model.

    A point is there where all products of a layer have a time, so that every point is a mean over the same shapes.
    """
    curves = {}
    for model in [m for m in LARGE if m in s.sizes] or s.sizes[-3:]:
        for k in (k for k in s.kernels if k != BF16):
            gains = {M: [s.gain(model, layer, M, k) for layer in FUSED] for M in s.tokens}
            points = [(M, geomean(found)) for M, found in gains.items() if not any(map(math.isnan, found))]
            if points:
                curves[model, k] = points
    if not curves:
        return None
    models, kernels = (list(dict.fromkeys(names)) for names in zip(*curves))
    tokens = sorted({M for points in curves.values() for M, _ in points})
    fig = Figure(figsize=(max(4.4, 0.5 + 2.3 * len(models)), 3.9), layout="constrained")
    axes = fig.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for ax, model in zip(axes, models):
        ax.set_title(model)
        log_ticks(ax, "y", [0.9, 1.1, *(g for points in curves.values() for _, g in points)])
        ax.set(xlabel="tokens M", xlim=(tokens[0] / 1.3, tokens[-1] * 1.3))
        ax.set_xscale("log", base=8)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.axhline(1, color=INK, lw=0.9, zorder=2)
        for k in (k for k in kernels if (model, k) in curves):
            ax.plot(*zip(*curves[model, k]), zorder=4 if k.name == "wna16" else 3, **look(k))
    axes[0].set_ylabel("times as fast as cuBLAS in bfloat16")
    handles = [Line2D([], [], **look(k)) for k in sorted(kernels, key=s.kernels.index)]
    fig.legend(handles=handles, loc="outside lower center", ncols=6 if len(models) > 2 else 3, columnspacing=1.2)
    heading(fig, f"Geometric mean over a layer's products on an {s.gpu}")
    return fig


if __name__ == "__main__":
    main()
