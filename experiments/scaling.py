"""Fits how the loss that quantization adds depends on model size, bits and group size, and shows what is left over.

    python experiments/scaling.py [--results results] [--out results/scaling]

For each source (the printed tables, and each family of models in the records) and each method, by least squares,

    ln loss = c - a ln N - k b + g ln G

with loss = ln(perplexity / perplexity of the unquantized model) in nats per token on one text, N parameters, b bits per
weight and G weights per scale (Kumar et al. 2024 have exp(-b) and a power of N as well). A term is left out where its
quantity does not vary. Losses below 0.001 nats drown in rounding and noise, and above ln 4 the model is broken, so such
cells are not fitted; they are counted, as are printed cells in doubt (paper/published/doubts.csv). Writes scaling.csv,
scaling.md and scaling.png; takes seconds.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qbench.files import packaged
from qbench.printed.published import NAMES, doubts, load
from qbench.render.sheet import Cell, Sheet
from qbench.render.style import INK, heading, log_ticks, look, save, styled
from qbench.render.writers import write
from qbench.report import frame
from qbench.report.quality.variants import UNQUANTIZED
from qbench.shape import RELEASED, Shape
from qbench.store import Store

METHODS = ("rtn", "gptq", "awq")  # weight only, at chosen bits
LEAST, MOST = 1e-3, math.log(4)
TERMS = {"a": "size", "k": "bits", "g": "group"}


@dataclass(frozen=True)
class Point:
    """A quantized model: ``loss`` is what it adds to the nats per token of ``text``."""

    source: str
    text: str
    model: str
    method: str
    parameters: int
    bits: float
    group: int  # weights per scale
    per_row: bool
    loss: float
    doubted: bool = False

    @property
    def fitted(self) -> bool:
        return LEAST <= self.loss <= MOST and not self.doubted

    @property
    def features(self) -> list[float]:
        return [1.0, -math.log(self.parameters), -self.bits, math.log(self.group)]


@dataclass(frozen=True)
class Fit:
    """Coefficients by their letters with standard errors, and how far the points are from it (in ln loss)."""

    source: str
    text: str
    method: str
    coefficients: dict[str, tuple[float, float]]
    spread: float
    points: list[Point]
    residuals: list[float]
    left_out: int


def printed() -> list[Point]:
    """The cells of the paper's tables with 16-bit activations, WikiText-2."""
    rows = [row for row in load() if row.a_bits == 16]
    full = {row.model: row.values["wikitext2_ppl"] for row in rows if row.method == "none"}
    points = []
    cells = {(row.model, row.method, row.w_bits, row.group_size): row for row in rows if row.method in METHODS}
    for row in cells.values():  # a cell that two tables print is one point
        shape = RELEASED[row.model]
        (cell,) = row.cells("wikitext2_ppl")
        loss = math.log(row.values["wikitext2_ppl"] / full[row.model])
        group = row.group_size or shape.hidden  # one scale per row: most rows have that many weights
        who = ("printed", "wikitext2", row.model, row.method, shape.parameters, row.w_bits, group, not row.group_size)
        points.append(Point(*who, loss, doubted=cell in doubts()))
    return points


def measured(results: Path) -> list[Point]:
    """The records of ``results`` with 16-bit activations and default settings, on each text."""
    df = frame(Store(results).measurements())
    df = df[df["metric"].str.endswith("/ppl") & (df["variant"] == "") & (df["act_bits"] == 16)]
    same = ["model", "metric", "evaluation"]
    full = df[df["method"] == UNQUANTIZED].set_index(same)["value"]
    df = df[df["method"].isin(METHODS)].join(full.rename("base"), on=same)
    points = []
    for row in df.itertuples():
        shape = shape_of(row.model)
        if shape and row.base > 0 and row.value > 0 and math.isfinite(row.value):
            group = int(row.group_size) if row.group_size > 0 else shape.hidden
            who = (row.model.split("-")[0], row.metric.removesuffix("/ppl"), row.model, row.method, shape.parameters)
            points.append(Point(*who, row.bits, group, row.group_size <= 0, math.log(row.value / row.base)))
    return points


def shape_of(model: str) -> Shape | None:
    """The shape of a model by its name; None for one that is not known here."""
    if model.startswith("nano-"):
        config = json.loads((packaged("nano/models") / model / "config.json").read_text())
        return Shape.of(SimpleNamespace(**config))
    return RELEASED.get(model)


def fit(points: list[Point]) -> Fit:
    """Least squares over the points of one source, text and method."""
    used = [p for p in points if p.fitted]
    x, y = np.array([p.features for p in used]), np.log([p.loss for p in used])
    varies = (True, np.ptp(x[:, 1]) > 0, np.ptp(x[:, 2]) > 0, len({p.per_row for p in used}) > 1)
    keep = [i for i in range(4) if varies[i]]
    solution, *_ = np.linalg.lstsq(x[:, keep], y, rcond=None)
    residuals = y - x[:, keep] @ solution
    free = len(used) - len(keep)
    variance = float(residuals @ residuals) / free if free > 0 else math.nan
    errors = np.sqrt(variance * np.diag(np.linalg.pinv(x[:, keep].T @ x[:, keep])))
    found = {"cakg"[i]: (float(c), float(e)) for i, c, e in zip(keep, solution, errors)}
    first = points[0]
    left_out = len(points) - len(used)
    return Fit(first.source, first.text, first.method, found, math.sqrt(variance), used, list(residuals), left_out)


def sheet(fits: list[Fit]) -> Sheet:
    """One row per fit."""
    head = ["source", "text", "method", *(f"{letter} ({name})" for letter, name in TERMS.items())]
    head += ["spread", "cells fitted", "left out"]
    s = Sheet("scaling", "Added loss over model size, bits and group size", head, "lll" + "r" * (len(head) - 3))
    rows = []
    for f in fits:
        terms = [f.coefficients.get(letter) for letter in TERMS]
        texts = [f"{c:.2f} ± {e:.2f}" if c is not None else "–" for c, e in (term or (None, None) for term in terms)]
        texts += [f"×{math.exp(f.spread):.2f}", str(len(f.points)), str(f.left_out)]
        rows.append([Cell(t) for t in (f.source, f.text, NAMES[f.method], *texts)])
        numbers = [x for term in terms for x in (term or (None, None))]
        s.csv_rows.append([f.source, f.text, f.method, *numbers, f.spread, len(f.points), f.left_out])
    s.blocks.append(("", rows))
    s.csv_head = ["source", "text", "method", *(x for t in TERMS for x in (t, f"{t}_stderr"))]
    s.csv_head += ["spread", "cells", "left_out"]
    s.lines = [
        "ln loss = c − a ln N − k b + g ln G: loss in nats per token above the unquantized model, N parameters, b "
        "bits, G weights per scale (– where it does not vary). ± is the standard error of the fit. k = 0.69 would "
        "mean that a further bit halves the loss.",
        "Spread: one standard deviation of the residuals, as a factor of the loss. Left out: losses below 0.001 or "
        "above ln 4 nats, and printed cells in doubt, among them all of AWQ's at 3 and 4 bits.",
    ]
    return s


@styled
def figure(fits: list[Fit]) -> Figure:
    """Per source: measured against fitted loss, and below it the residuals over bits."""
    sources = list(dict.fromkeys((f.source, f.text) for f in fits))
    fig = Figure(figsize=(2.4 * max(2, len(sources)) + 0.6, 4.6), layout="constrained")
    axes = fig.subplots(2, len(sources), squeeze=False, height_ratios=(1.3, 1))
    for column, source in zip(axes.T, sources):
        upper, lower = column
        shift = {method: 0.22 * (i - 1) for i, method in enumerate(METHODS)}
        for f in (f for f in fits if (f.source, f.text) == source):
            style = look(f.method) | dict(linestyle="none", markersize=3.6)
            losses = np.array([p.loss for p in f.points])
            upper.plot(losses / np.exp(f.residuals), losses, **style)
            lower.plot([p.bits + shift[f.method] for p in f.points], np.exp(f.residuals), **style)
        ends = (LEAST, MOST)
        upper.plot(ends, ends, color=INK, lw=0.8, zorder=1.5)
        upper.set(
            xscale="log",
            yscale="log",
            xlim=ends,
            ylim=ends,
            xlabel="fitted loss",
            title=f"{source[0]}, {source[1]}" if source[0] != source[1] else source[0],
        )
        lower.axhline(1, color=INK, lw=0.8, zorder=1.5)
        lower.set(xlabel="bits per weight")
        log_ticks(lower, "y", (0.2, 5))
    axes[0, 0].set_ylabel("loss, nats per token")
    axes[1, 0].set_ylabel("loss / fitted loss")
    shown = [Line2D([], [], label=NAMES[m], **look(m) | dict(linestyle="none")) for m in METHODS]
    fig.legend(handles=shown, loc="outside lower center", ncols=len(shown))
    heading(fig, "What quantization adds to the loss, against a power law in size and group and an exponential in bits")
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("results/scaling"))
    options = parser.parse_args()
    points = [*printed(), *measured(options.results)]
    groups: dict[tuple, list[Point]] = {}
    for p in points:
        groups.setdefault((p.source, p.text, p.method), []).append(p)
    fits = [fit(group) for group in groups.values() if sum(p.fitted for p in group) >= 5]
    fits = [f for f in fits if len(f.points) >= len(f.coefficients) + 3]
    for path in [*write(sheet(fits), options.out), *save(figure(fits), options.out, "scaling")]:
        print(path)


if __name__ == "__main__":
    main()
