"""The paper's tables with our numbers beside the printed ones."""

from pathlib import Path

from qbench.printed.published import TABLES, load
from qbench.protocol import PROTOCOLS, name_of
from qbench.record import Failure, Measurement
from qbench.render.writers import write
from qbench.report.reproduction.compare import reproduce
from qbench.report.reproduction.measured_cells import of_table
from qbench.report.reproduction.sheet import sheet


def write_reproduction(
    measurements: list[Measurement], failures: list[Failure], out: Path, *, figures: bool = True
) -> list[Path]:
    """Writes the four tables under the protocol ``paper``, and those with records under the others; the paths.

    ValueError, after all else is written, where records contradict each other in a cell.
    """
    printed, refused, written = load(), [], []
    for protocol in PROTOCOLS:
        tables = []
        for k in TABLES:
            if protocol == "paper" or any(name_of(m.protocol) == protocol for m in of_table(measurements, k, printed)):
                try:
                    tables.append(reproduce(measurements, k, protocol, failures=failures))
                except ValueError as e:
                    refused.append(f"table {k}, protocol {protocol}: {e}")
        written += [path for t in tables for path in write(sheet(t), out / "tables")]
        if figures and any(line.measured for t in tables for line in t.lines):
            from qbench.report.reproduction.figure import draw  # matplotlib takes a second to import

            written += draw(tables, out / "figures")
    if refused:
        raise ValueError("; ".join(refused))
    return written
