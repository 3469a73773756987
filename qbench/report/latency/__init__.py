"""Tables and figures of kernels' and decoders' speed, one set per GPU."""

from pathlib import Path

from qbench.render.writers import write
from qbench.report.latency.speeds import load
from qbench.report.latency.tables import sheets


def write_latency(results_dir: str | Path, out: Path, *, figures: bool = True) -> list[Path]:
    """Writes the tables and figures of every GPU into ``out``/tables and ``out``/figures; returns the paths."""
    written = []
    for speeds in load(results_dir):
        for sheet in sheets(speeds):
            written += write(sheet, out / "tables")
        if figures:
            from qbench.report.latency.figures import draw  # matplotlib takes a second to import

            written += draw(speeds, out / "figures")
    return written
