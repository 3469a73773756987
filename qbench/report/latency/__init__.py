"""Tables and figures of kernels' and decoders' speed, one set per GPU."""

from pathlib import Path

from qbench.record import Measurement
from qbench.render.writers import write
from qbench.report.latency.rows import Latency, load
from qbench.report.latency.tables import sheets


def write_latency(
    results_dir: str | Path, measurements: list[Measurement], out: Path, *, figures: bool = True
) -> list[Path]:
    """Tables and figures of every GPU in ``out``/tables and ``out``/figures; the paths.

    ``measurements`` are drawn against the times.
    """
    written = []
    for record in load(results_dir):
        for sheet in sheets(record):
            written += write(sheet, out / "tables")
        if figures:
            written += draw(record, measurements, out / "figures")
    return written


def draw(record: Latency, measurements: list[Measurement], folder: Path) -> list[Path]:
    """Whichever of the figures the record has rows for; the paths."""
    from qbench.render.style import save  # matplotlib takes a second to import
    from qbench.report.latency.figures import roofline, tokens_figure
    from qbench.report.latency.model_figures import models_figure, quality_figure

    made = {"roofline": roofline, "tokens": tokens_figure, "models": models_figure}
    figures = {name: make(record) for name, make in made.items()}
    figures["quality"] = quality_figure(record, measurements)
    shown = {name: fig for name, fig in figures.items() if fig is not None}
    return [path for name, fig in shown.items() for path in save(fig, folder, f"latency_{record.name}_{name}")]
