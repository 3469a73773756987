"""The paper's four tables with our numbers beside the printed ones.

The rows are the printed rows, so an unmeasured cell is empty and never missing. Print and ours use the same texts and
questions, so the choice of items hardly explains a difference. Nothing else varies for an unquantized model: its
difference is marked where it is larger than rounding can make it, half a unit of the last printed digit. A quantized
model also varies with the calibration data drawn, by an amount that the print does not tell; its difference is marked
beyond twice our standard error over the items combined with the rounding (uniform within one unit u: u / sqrt 12).
Where the printed zero-shot mean is not the mean of the six tasks, ours is compared with the recomputed mean.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from qbench.printed.published import DOUBTS, METRICS, TABLES, TASKS, Printed, doubts, load, rows_of
from qbench.protocol import PROTOCOLS, name_of
from qbench.record import Failure, Measurement
from qbench.report.quality.variants import UNQUANTIZED
from qbench.report.reproduction.measured_cells import (
    KEYS,
    Ours,
    about,
    cell_of,
    failed,
    left_out,
    measured,
    printed_cell,
)

OTHER_GROUPING = {1: 3, 2: 4, 3: 1, 4: 2}  # tables 1 and 2 have one scale per row, 3 and 4 groups of 128


@dataclass(frozen=True)
class Against:
    """A printed cell compared with ours. ``reference`` is the printed number, or the recomputed mean.

    ``difference`` is ours minus ``reference``, NaN where one of them is missing; beyond ``tolerance`` it is marked.
    ``doubts`` are the kinds of doubt about the printed cell.
    """

    text: str
    reference: float
    difference: float
    tolerance: float
    doubts: tuple[str, ...]

    @property
    def beyond(self) -> bool:
        return abs(self.difference) > self.tolerance * (1 + 1e-9) + 1e-9


@dataclass(frozen=True)
class Line:
    """One printed row with ours by metric, compared with this row and, for AWQ, with the other group size's row."""

    row: Printed
    ours: dict[str, Ours]
    printed: dict[str, Against]
    other_row: Printed | None
    other: dict[str, Against]

    @property
    def measured(self) -> bool:
        return any(not x.failed for x in self.ours.values())


@dataclass(frozen=True)
class Reproduction:
    """A table under one protocol. ``doubts`` are the kinds of doubt that it marks, ``notes`` sentences about it."""

    table: int
    protocol: str
    lines: list[Line]
    notes: list[str]
    doubts: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"table{self.table}" + ("" if self.protocol == "paper" else f"_{self.protocol}")


def reproduce(
    measurements: Iterable[Measurement],
    table: int,
    protocol: str = "paper",
    failures: Iterable[Failure] = (),
) -> Reproduction:
    """Table 1 to 4 from the records that follow ``protocol``.

    ValueError for an unknown table, and for two records of one cell that differ in revision, data or settings.
    """
    rows = rows_of(table)
    cells = {printed_cell(row) for row in rows}
    candidates = [m for m in measurements if cell_of(m.science) in cells and KEYS.keys() & m.metrics.keys()]
    used = [m for m in candidates if name_of(m.protocol) == protocol]
    lines = _compare(rows, failed(failures, protocol) | measured(used))
    shown = [cells for x in lines for cells in (x.printed, x.other if x.ours else {})]
    kinds = {kind for cells in shown for a in cells.values() for kind in a.doubts}
    count = f"Measured: {sum(line.measured for line in lines)} of {len(lines)} rows."
    notes = [*about(used), count, *left_out(candidates, protocol)]
    return Reproduction(table, protocol, lines, notes, tuple(k for k in DOUBTS if k in kinds))


def reproduce_all(measurements: list[Measurement], failures: list[Failure]) -> tuple[list[Reproduction], list[str]]:
    """The four tables under the protocol ``paper``, those with records under the others, and why one is refused."""
    found, refused = [], []
    for protocol in PROTOCOLS:
        for k in TABLES:
            try:
                t = reproduce(measurements, k, protocol, failures)
                found += [t] * (protocol == "paper" or any(line.ours for line in t.lines))
            except ValueError as e:
                refused.append(f"table {k}, protocol {protocol}: {e}")
    return found, refused


def _compare(rows: list[Printed], ours: dict) -> list[Line]:
    """A line per printed row; the other group size belongs to methods whose group sizes are doubted."""
    by_cell, lines = {(r.table, *r.cell): r for r in load()}, []
    swapped = {cell.method for cell, kinds in doubts().items() if "group_order" in kinds}
    for row in rows:
        mine = {m: ours[printed_cell(row), m] for m in METRICS if (printed_cell(row), m) in ours}
        other = by_cell.get((OTHER_GROUPING[row.table], *row.cell)) if row.method in swapped else None
        pair = [{m: _against(r, m, mine.get(m)) for m in METRICS} if r else {} for r in (row, other)]
        lines.append(Line(row, mine, pair[0], other, pair[1]))
    return lines


def _against(row: Printed, metric: str, ours: Ours | None) -> Against:
    kinds = doubts().get(row.cells(metric)[0], ())
    reference, unit, numbers = row.values[metric], row.step(metric), 1
    if "not_mean" in kinds:
        reference, unit, numbers = row.task_mean, 0.1, len(TASKS)
    if ours is None:
        return Against(row.text[metric], reference, math.nan, math.nan, kinds)
    tolerance = unit / 2 if row.method == UNQUANTIZED else 2 * math.hypot(ours.stderr, unit / math.sqrt(12 * numbers))
    return Against(row.text[metric], reference, ours.value - reference, tolerance, kinds)
