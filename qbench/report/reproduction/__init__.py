"""The paper's tables with our numbers beside the printed ones."""

from pathlib import Path

from qbench.printed.published import TABLES
from qbench.protocol import PROTOCOLS
from qbench.record import Failure, Measurement
from qbench.render.writers import write
from qbench.report.reproduction.compare import reproduce
from qbench.report.reproduction.sheet import sheet


def write_reproduction(
    measurements: list[Measurement], failures: list[Failure], out: Path, *, figures: bool = True
) -> list[Path]:
    """Writes the four tables under the protocol ``paper``, and those with records under the others; the paths.

    ValueError, after all else is written, where records contradict each other in a cell.
    """
    refused, written = [], []
    for protocol in PROTOCOLS:
        tables = []
        for k in TABLES:
            try:
                tables.append(reproduce(measurements, k, protocol, failures=failures))
            except ValueError as e:
                refused.append(f"table {k}, protocol {protocol}: {e}")
        if protocol != "paper":
            tables = [t for t in tables if any(line.ours for line in t.lines)]
        written += [path for t in tables for path in write(sheet(t), out / "tables")]
        if figures and any(line.measured for t in tables for line in t.lines):
            from qbench.report.reproduction.figure import draw  # matplotlib takes a second to import

            written += draw(tables, out / "figures")
    if refused:
        raise ValueError("; ".join(refused))
    return written
