"""Where quantization hurts: the output error of every linear, by method and bits."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from qbench.render.style import SOFT, heading, log_locator, plain, styled
from qbench.report.figures.panels import NothingToShow
from qbench.report.quality.columns import METHODS, curve_name, method_order

BITS, MODELS = (4, 3, 2), 3
NAMED = 60  # of more linears than these only the blocks are named


@styled
def layer_errors(layers: pd.DataFrame) -> Figure:
    """The relative output error of every linear as a heat map; ``layers`` is a ``layer_frame``.

    One strip per model: linears in network order across, methods at 4, 3 and 2 bits down, one log scale. Of more than
    three models the smallest, the middle one and the largest are shown. Cells without a finite error are grey.
    """
    if layers.empty:
        raise NothingToShow("no errors of linears: only quantized models have them")
    on_axis = set(layers["bits"].dropna())
    bits = [b for b in BITS if b in on_axis] or sorted(on_axis, reverse=True)[:3]
    layers = layers[layers["bits"].isna() | layers["bits"].isin(bits)]
    sizes = layers.groupby("model")["model_bytes"].max().sort_values(kind="stable")
    chosen = np.linspace(0, len(sizes) - 1, min(len(sizes), MODELS)).round().astype(int)
    strips = [_strip(layers[layers["model"] == sizes.index[i]]) for i in chosen]
    errors = np.concatenate([s.to_numpy().ravel() for s in strips])
    errors = errors[np.isfinite(errors) & (errors > 0)]
    low, high = np.quantile(errors, [0.01, 0.99]) if len(errors) else (0.1, 1.0)
    norm = LogNorm(low, max(high, low * 1.01))
    cmap = LinearSegmentedColormap.from_list("error", colormaps["magma_r"](np.linspace(0.03, 0.9, 256)))
    fig = Figure(figsize=(7.0, 0.9 + sum(0.72 + 0.125 * len(s) for s in strips)), layout="constrained")
    axes = fig.subplots(len(strips), height_ratios=[len(s) for s in strips], squeeze=False)[:, 0]
    for ax, strip, i in zip(axes, strips, chosen):
        shown = np.ma.masked_invalid(strip.to_numpy(float))
        mesh = ax.pcolormesh(np.ma.maximum(shown, norm.vmin / 10), norm=norm, cmap=cmap, rasterized=True)
        ax.set_title(sizes.index[i])
        _name(ax, strip)
    colorbar = fig.colorbar(mesh, ax=axes, location="bottom", shrink=0.5, aspect=30, extend="both")
    colorbar.set_label("relative output error  ‖(Q − W)X‖ / ‖WX‖")
    colorbar.outline.set_visible(False)
    colorbar.ax.xaxis.set(major_locator=log_locator(norm.vmin, norm.vmax), minor_locator=NullLocator())
    colorbar.ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))
    heading(fig, "Output error of every linear, on calibration data")
    return fig


def _strip(layers: pd.DataFrame) -> pd.DataFrame:
    """One model's errors: rows by (method's name, bits), columns by (block, linear)."""
    layers = layers.sort_values(["order", "quant"])
    errors = layers.pivot(index="quant", columns=["block", "name"], values="error")
    rows = layers.drop_duplicates("quant").set_index("quant")
    rows["bits"] = rows["bits"].fillna(rows["nominal_bits"])
    rows["legend"] = [
        curve_name(METHODS.get(r.method, r.method), r.act_bits, r.group_size, r.variant) for r in rows.itertuples()
    ]
    rows["rank"] = [method_order(method) for method in rows["method"]]
    rows = rows.sort_values(["rank", "act_bits", "legend", "bits"], ascending=[True, False, True, False])
    errors = errors.loc[rows.index, list(dict.fromkeys(zip(layers["block"], layers["name"])))]
    return errors.set_axis(pd.MultiIndex.from_frame(rows[["legend", "bits"]]))


def _name(ax: Axes, strip: pd.DataFrame) -> None:
    """Names rows by bits and methods, columns by linears and blocks: major and minor ticks; white lines between."""
    methods, bits = zip(*strip.index)
    blocks, linears = zip(*strip.columns)
    named = len(linears) <= NAMED
    ax.set_facecolor("#D9D9D9")
    ax.set(xlim=(0, len(linears)), ylim=(len(bits), 0))
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, pad=1.5, labelsize=6)
    ax.tick_params(which="minor", length=0, labelsize=7)
    ax.tick_params(axis="y", which="minor", pad=30)
    ax.tick_params(axis="x", which="minor", pad=2, labeltop=True, labelbottom=False, labelcolor=SOFT)
    ax.set_yticks(np.arange(len(bits)) + 0.5, [f"{b:.3g} bit" for b in bits])
    short = [linear.rsplit(".", 1)[-1].removesuffix("_proj") if named else "" for linear in linears]
    ax.set_xticks(np.arange(len(linears)) + 0.5, short, rotation=90 if len(linears) > 20 else 0)
    for axis, names, every, line in (
        (ax.yaxis, methods, 1, ax.axhline),
        (ax.xaxis, blocks, 1 if named else 4, ax.axvline),
    ):
        starts = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
        ends = [*starts[1:], len(names)]
        said = [f"block {names[i]}" if axis is ax.xaxis else names[i] for i in starts]
        axis.remove_overlapping_locs = False
        axis.set_ticks([(a + b) / 2 for a, b in zip(starts, ends)][::every], said[::every], minor=True)
        for i in starts[every::every]:
            line(i, color="white", lw=2)
