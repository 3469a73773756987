"""The figures of the results: each function takes a data frame and returns a matplotlib Figure.

    df = frame(Store("results").measurements())
    figures.quality_by_bits(df[df["model"] == "nano-s"])

A figure shows one family of models (nano, qwen3); ``metrics`` chooses its panels by name or glob, such as
``("nano/ppl", "*/kl")``. Without it the figure has the panels that ``qbench report`` draws. A new figure is a function
of the same form in a file of its own, named in ``FIGURES``; ``NothingToShow`` says that records lack what it needs.
"""

from pathlib import Path

import pandas as pd

from qbench.render.style import save
from qbench.report.figures.heatmap import layer_errors
from qbench.report.figures.memory import memory
from qbench.report.figures.over_bits import differences, quality_by_bits
from qbench.report.figures.panels import NothingToShow
from qbench.report.figures.pareto import pareto

__all__ = ["FIGURES", "NothingToShow", "differences", "draw", "layer_errors", "memory", "pareto", "quality_by_bits"]

FIGURES = {
    "bits": quality_by_bits,
    "pareto": pareto,
    "differences": differences,
    "memory": memory,
}  # by the end of their files' names


def draw(name: str, df: pd.DataFrame, layers: pd.DataFrame, folder: Path) -> list[Path]:
    """Writes whichever figures of one family have records, as ``name``_*.png and .pdf in ``folder``; the paths."""
    written = []
    for kind, figure, records in (*((k, f, df) for k, f in FIGURES.items()), ("layers", layer_errors, layers)):
        try:
            written += save(figure(records), folder, f"{name}_{kind}")
        except NothingToShow:
            continue
    return written
