"""Where quantization hurts: the output error of every linear, by method and bits."""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from qbench.render.style import INK, SOFT, log_locator, plain
from qbench.report.quality.columns import METHODS, method_order

BITS, MODELS = (4, 3, 2), 3
WIDTH, LEFT, RIGHT, TOP, BOTTOM, ROW, HEAD = 7.0, 1.45, 0.1, 0.32, 0.5, 0.125, 0.28  # inches
_SHORT = re.compile(r"^.*\.|_proj$")


def layer_heatmap(layers: pd.DataFrame, variants: dict[str, str]) -> Figure:
    """A strip a model: linears in network order across, methods at 4, 3 and 2 bits down, one log scale.

    Of more than three models the smallest, the middle one and the largest are shown; ``variants`` names what
    sets quantizations apart beyond model, method and bits. Cells without a finite error are grey.
    """
    on_axis = set(layers["bits"].dropna())
    bits = [b for b in BITS if b in on_axis] or sorted(on_axis, reverse=True)[:3]
    layers = layers[layers["bits"].isna() | layers["bits"].isin(bits)]
    sizes = layers.groupby("model")["model_bytes"].max().sort_values(kind="stable")
    chosen = np.linspace(0, len(sizes) - 1, min(len(sizes), MODELS)).round().astype(int)
    strips = [_strip(layers[layers["model"] == sizes.index[i]], variants) for i in chosen]
    errors = np.concatenate([s.errors[np.isfinite(s.errors) & (s.errors > 0)] for s in strips])
    low, high = np.quantile(errors, [0.01, 0.99]) if len(errors) else (0.1, 1.0)
    norm = LogNorm(low, max(high, low * 1.01))
    cmap = LinearSegmentedColormap.from_list("error", colormaps["magma_r"](np.linspace(0.03, 0.9, 256)))
    cell = (WIDTH - LEFT - RIGHT) / max(s.errors.shape[1] for s in strips)
    cell, named = min(cell, 0.2), cell > 0.1
    foot = 0.42 if named else 0.18
    height = TOP + BOTTOM + sum(HEAD + foot + ROW * len(s.errors) for s in strips)
    fig, y = Figure(figsize=(WIDTH, height)), height - TOP
    for s in strips:
        y -= HEAD + ROW * len(s.errors)
        box = (LEFT, y, cell * s.errors.shape[1], ROW * len(s.errors))
        ax = fig.add_axes([box[0] / WIDTH, box[1] / height, box[2] / WIDTH, box[3] / height])
        _draw(ax, s, norm, cmap, named)
        y -= foot
    bar = fig.add_axes([LEFT / WIDTH, 0.3 / height, 2.4 / WIDTH, 0.09 / height])
    colorbar = fig.colorbar(ScalarMappable(norm, cmap), cax=bar, orientation="horizontal", extend="both")
    colorbar.outline.set_visible(False)
    bar.xaxis.set_major_locator(log_locator(norm.vmin, norm.vmax))
    bar.xaxis.set_minor_locator(NullLocator())
    bar.xaxis.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))
    fig.text(
        (LEFT + 2.55) / WIDTH,
        0.345 / height,
        "relative output error  ‖(Q − W)X‖ / ‖WX‖",
        va="center",
        size=7.5,
    )
    fig.text(0.01, 1 - 0.16 / height, "Output error of every linear, on calibration data", size=9, va="center")
    return fig


@dataclass
class _Strip:
    """One model's errors: a row a method and bits, a column a linear; a group is (name, first row, rows)."""

    model: str
    errors: np.ndarray
    groups: list[tuple[str, int, int]]
    bits: list[str]
    linears: list[tuple[int, str]]


def _strip(layers: pd.DataFrame, variants: dict[str, str]) -> _Strip:
    layers = layers.sort_values(["order", "quant"])
    linears = list(dict.fromkeys(zip(layers["block"], layers["name"])))
    lines = []
    for _, part in layers.groupby("quant"):
        r, found = part.iloc[0], dict(zip(zip(part["block"], part["name"]), part["error"]))
        bits = r["nominal_bits"] if np.isnan(r["bits"]) else r["bits"]
        order = (*method_order(r["method"]), -r["act_bits"], _name(r, variants), -bits)
        lines.append((order, f"{bits:.3g}", [found.get(linear, np.nan) for linear in linears]))
    lines.sort(key=lambda line: line[0])
    names = [order[3] for order, _, _ in lines]
    groups = [(name, names.index(name), names.count(name)) for name in dict.fromkeys(names)]
    errors = np.array([errors for *_, errors in lines], float)
    return _Strip(layers["model"].iloc[0], errors, groups, [bits for _, bits, _ in lines], linears)


def _name(r: pd.Series, variants: dict[str, str]) -> str:
    acts = f" A{r['act_bits']:.0f}" if r["act_bits"] < 16 else ""
    group = f" g{r['group_size']:.0f}" if r["group_size"] > 0 else ""
    return f"{METHODS.get(r['method'], r['method'])}{acts}{group} {variants.get(r['quant'], '')}".strip()


def _draw(ax, s: _Strip, norm: LogNorm, cmap, named: bool) -> None:
    n, k = s.errors.shape
    ax.set_facecolor("#D9D9D9")
    shown = np.ma.masked_where(~np.isfinite(s.errors), np.maximum(s.errors, norm.vmin / 10))
    ax.pcolormesh(shown, norm=norm, cmap=cmap, rasterized=True)
    ax.set(xlim=(0, k), ylim=(n, 0))
    ax.grid(False)
    ax.tick_params(length=0, pad=1.5)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_yticks(np.arange(n) + 0.5, [f"{b} bit" for b in s.bits], size=6)
    for name, first, rows in s.groups:
        ax.annotate(name, (0, first + rows / 2), (-29, 0), textcoords="offset points", ha="right", va="center", size=7)
        if first:
            ax.axhline(first, color="white", lw=2)
    starts = [i for i in range(k) if i == 0 or s.linears[i][0] != s.linears[i - 1][0]]
    for i in starts[1:] if named else starts[4::4]:
        ax.axvline(i, color="white", lw=1.6 if named else 0.8)
    for i, end in zip(starts, [*starts[1:], k]):
        if named or s.linears[i][0] % 4 == 0:
            text = f"block {s.linears[i][0]}" if named else str(s.linears[i][0])
            where = ((i + end) / 2, 0), (0, 2.5)
            ax.annotate(text, *where, textcoords="offset points", ha="center", va="bottom", size=6.5, color=SOFT)
    labels = [_SHORT.sub("", name) for _, name in s.linears] if named else []
    ax.set_xticks(np.arange(len(labels)) + 0.5, labels, rotation=90, size=6)
    ax.annotate(s.model, (0, 1), (-LEFT * 72 + 5, 4), xycoords="axes fraction", textcoords="offset points",
                weight="bold", size=8.5, color=INK, va="bottom")  # fmt: skip
