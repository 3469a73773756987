"""The figures of the results: each function takes a data frame and returns a matplotlib Figure.

    df = frame(Store("results").measurements())
    figures.quality_by_bits(df[df["model"] == "nano-s"])

A figure shows one family of models (nano, qwen3); ``metrics`` chooses its panels by name or glob, such as
``("nano/ppl", "*/kl")``. Without it the figure has the panels that ``qbench report`` draws.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from qbench.render.style import save
from qbench.report.quality.columns import Column
from qbench.report.quality.heatmap import layer_heatmap
from qbench.report.quality.over_bits import bits_figure, differences_figure
from qbench.report.quality.pareto import pareto_figure
from qbench.report.quality.series import quantized
from qbench.report.quality.table import FIGURES, Table, make_table, one_evaluation, specs
from qbench.report.quality.variants import quant_labels

Metrics = tuple[str, ...]


def quality_by_bits(df: pd.DataFrame, metrics: Metrics = ()) -> Figure:
    """Each metric over weight bits, one line per method, with 95 % intervals over the items."""
    t = _table(df)
    return bits_figure(t, _columns(t, metrics))


def pareto(df: pd.DataFrame, metrics: Metrics = ()) -> Figure:
    """Each metric against stored bits per weight and against the size of the checkpoint, with the Pareto fronts."""
    t = _table(df)
    columns = _columns(t, metrics) if metrics else _one_of_each(_columns(t))
    if unknown := [c.key for c in columns if c.higher_is_better is None]:
        raise ValueError(f"no front over {', '.join(unknown)}: its measure does not say whether more is better")
    return pareto_figure(t, columns)


def differences(df: pd.DataFrame, metrics: Metrics = ()) -> Figure:
    """Differences to the unquantized model, paired item by item, with their 95 % intervals."""
    t = _table(df, delta=True)
    return differences_figure(t, _columns(t, metrics))


def layer_errors(layers: pd.DataFrame) -> Figure:
    """The relative output error of every linear as a heat map; ``layers`` is a ``layer_frame``."""
    return layer_heatmap(layers, quant_labels(list(layers["science"])))


def draw(t: Table, df: pd.DataFrame, layers: pd.DataFrame, folder: Path) -> list[Path]:
    """Writes whichever figures of the table ``t`` of ``df`` have records, as PNG and PDF in ``folder``; the paths."""
    spec, made = t.spec, {}
    t, delta, layers = one_evaluation(t), one_evaluation(make_table(spec, df, delta=True)), spec.select(layers)
    columns, paired = _finite(t), _finite(delta)
    if columns and quantized(t.rows):
        made["bits"] = bits_figure(t, columns)
        if directed := [c for c in columns if c.higher_is_better is not None]:
            made["pareto"] = pareto_figure(t, _one_of_each(directed))
    if paired:
        made["differences"] = differences_figure(delta, paired)
    if len(layers):
        made["layers"] = layer_errors(layers)
    return [path for name, fig in made.items() for path in save(fig, folder, f"{spec.name}_{name}")]


def _table(df: pd.DataFrame, delta: bool = False) -> Table:
    found = [spec for spec in specs(df["model"]) if spec.is_matrix]
    if len(found) != 1:
        models = ", ".join(sorted(set(df["model"]))) or "none"
        raise ValueError(f"a figure shows one family of models, these are {models}: filter the frame first")
    return one_evaluation(make_table(found[0], df, delta))


def _columns(t: Table, metrics: Metrics = ()) -> list[Column]:
    columns = _finite(t, metrics)
    if not columns:
        raise ValueError(f"no value of {', '.join(metrics) or 'any metric'} in the {len(t.rows)} rows of the figure")
    return columns


def _finite(t: Table, metrics: Metrics = ()) -> list[Column]:
    return [c for c in t.choose(metrics or FIGURES, 4) if any(r.cells[c.key].finite for r in t.rows)]


def _one_of_each(columns: list[Column]) -> list[Column]:
    """The first perplexity and the first accuracy; the first column where there is neither."""
    kinds = {c.log: c for c in reversed(columns) if c.delta}
    return sorted(kinds.values(), key=columns.index) or columns[:1]
