"""Tables and figures of kernels' and decoders' speed, one set per GPU."""

from pathlib import Path

from qbench.record import Measurement
from qbench.render.writers import write
from qbench.report.latency.speeds import Speeds, load
from qbench.report.latency.tables import sheets


def write_latency(
    results_dir: str | Path, measurements: list[Measurement], out: Path, *, figures: bool = True
) -> list[Path]:
    """Writes the tables and figures of every GPU into ``out``/tables and ``out``/figures; returns the paths.

    ``measurements``: the quality that a figure draws against the times.
    """
    written = []
    for speeds in load(results_dir):
        for sheet in sheets(speeds):
            written += write(sheet, out / "tables")
        if figures:
            written += draw(speeds, measurements, out / "figures")
    return written


def draw(speeds: Speeds, measurements: list[Measurement], folder: Path) -> list[Path]:
    """Writes the figures that the record has rows for; returns the paths."""
    from qbench.render.style import save  # matplotlib takes a second to import
    from qbench.report.latency.figures import roofline, tokens_figure
    from qbench.report.latency.model_figures import models_figure, quality_figure

    figures = {"roofline": roofline(speeds), "tokens": tokens_figure(speeds), "models": models_figure(speeds)}
    figures["quality"] = quality_figure(speeds, measurements)
    shown = {name: fig for name, fig in figures.items() if fig is not None}
    return [path for name, fig in shown.items() for path in save(fig, folder, f"latency_{speeds.name}_{name}")]
