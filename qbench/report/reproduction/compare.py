"""The paper's four tables with our numbers beside the printed ones.

The rows are the printed rows, so an unmeasured cell is empty and never missing. Print and ours are of the same texts
and questions, so the choice of items hardly excuses a difference. An unquantized model has nothing else that varies:
its difference is marked where rounding cannot have made it, beyond half a unit of the last printed digit. A quantized
model varies with the calibration data that were drawn, by an amount that the print does not tell; its difference is
marked beyond twice our standard error over the items and the rounding (uniform within one unit u: u / sqrt 12).
Where the printed zero-shot mean is not the mean of the six tasks, ours is compared with the recomputed mean.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from qbench.printed.audit import doubted, findings
from qbench.printed.finding import KINDS, Book, mean
from qbench.printed.published import METRICS, TABLES, TASKS, Printed, load
from qbench.protocol import NOT_STORED, OWN, check, name_of
from qbench.record import Measurement
from qbench.report.quality.variants import UNQUANTIZED, method_of
from qbench.report.reproduction.measured_cells import Ours, failed, measured, of_table, printed_cell, printed_metrics


@dataclass(frozen=True)
class Against:
    """A printed cell and what ours is to it; ``reference`` is the printed number, or the recomputed mean.

    ``difference`` is NaN where there is nothing to subtract; beyond ``tolerance`` it is marked.
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
    """One printed row: ours and the printed cells by metric; ``other`` is the print under the other group size."""

    row: Printed
    ours: dict[str, Ours]
    printed: dict[str, Against]
    other_row: Printed | None = None
    other: dict[str, Against] | None = None

    @property
    def measured(self) -> bool:
        return any(not x.failed for x in self.ours.values())


@dataclass(frozen=True)
class Reproduction:
    """Table ``table`` under ``protocol``; ``head`` are lines above it, ``doubts`` the kinds of finding it marks."""

    table: int
    protocol: str
    metrics: tuple[str, ...]
    lines: list[Line]
    head: list[str]
    doubts: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"table{self.table}" + ("" if self.protocol == "paper" else f"_{self.protocol}")


def reproduce(
    measurements: Iterable[Measurement],
    table: int,
    protocol: str | None = None,
    metrics: tuple[str, ...] = METRICS,
    failures: Iterable[dict] = (),
) -> Reproduction:
    """Table 1 to 4 from the records that follow ``protocol`` (without one: the only one they follow, or paper).

    ValueError for an unknown table, protocol or metric, for records of two protocols where none is named, and
    for two records of one cell that differ in revision, data or settings.
    """
    if table not in TABLES:
        raise ValueError(f"table {table!r}: the paper's result tables are 1, 2, 3 and 4; choose one of them")
    if unknown := [m for m in metrics if m not in METRICS]:
        raise ValueError(f"unknown metric {unknown[0]!r}; the tables have {', '.join(METRICS)}")
    printed = load()
    mine = of_table(measurements, table, printed)
    protocol = protocol or _only(mine, table)
    check(protocol)
    used = [m for m in mine if name_of(m.protocol) == protocol]
    cells = failed(failures, protocol) | measured(used)
    found, book = findings(printed), Book(printed)
    doubts = doubted(found)
    swapped = {method for f in found if f.kind == "group_order" for method in f.methods}
    lines = [_line(r, book, cells, metrics, doubts, swapped) for r in printed if r.table == table]
    shown = [cells for x in lines for cells in (x.printed, (x.other or {}) if x.ours else {})]
    marks = {kind for cells in shown for a in cells.values() for kind in a.doubts}
    head = [*_settings(used), *_data(used), *_count(lines, mine, protocol)]
    return Reproduction(table, protocol, metrics, lines, head, tuple(k for k in KINDS if k in marks))


def _only(mine: list[Measurement], table: int) -> str:
    found = {p for m in mine if (p := name_of(m.protocol)) not in (OWN, NOT_STORED)}
    if len(found) > 1:
        raise ValueError(f"table {table} has records of two protocols, {' and '.join(sorted(found))}; ask for one")
    return found.pop() if found else "paper"


def _line(row, book: Book, cells: dict, metrics: tuple[str, ...], doubts: dict, swapped: set[str]) -> Line:
    ours = {m: cells[printed_cell(row), m] for m in metrics if (printed_cell(row), m) in cells}
    printed = {m: _against(row, m, ours.get(m), doubts) for m in metrics}
    other = book.regrouped(row) if row.method in swapped else None
    if other is None:
        return Line(row, ours, printed)
    return Line(row, ours, printed, other, {m: _against(other, m, ours.get(m), doubts) for m in metrics})


def _against(row: Printed, metric: str, ours: Ours | None, doubts: dict) -> Against:
    kinds = tuple(doubts.get((row.table, row.model, row.method, row.w_bits, row.a_bits, metric), ()))
    reference, step, numbers = row.values[metric], row.step(metric), 1
    if "not_mean" in kinds:
        reference, step, numbers = mean(row), 0.1, len(TASKS)
    difference = ours.value - reference if ours else math.nan
    tolerance = math.nan
    if ours:
        full = row.method == UNQUANTIZED
        tolerance = step / 2 if full else 2 * math.hypot(ours.stderr, step / math.sqrt(12 * numbers))
    return Against(row.text[metric], reference, difference, tolerance, kinds)


def _settings(used: list[Measurement]) -> list[str]:
    """The calibrations and evaluations behind a table, and in what its methods differ from the paper's text."""
    calibs, evals, changed = defaultdict(set), defaultdict(set), defaultdict(set)
    for m in used:
        method, ev = method_of(m.science)["name"], m.science["eval"]
        if calib := m.science.get("calib"):
            words = "{source}, {n} × {length} tokens, seed {seed}, drawn as {draw}".format_map(calib)
            calibs[words].add(method)
        names = ("window", "logits", "draw", "limit", "num_fewshot", "max_prompt")
        for key in printed_metrics(m.metrics):
            evals[", ".join(f"{k} {ev[k]}" for k in names if ev.get(k) is not None)].add(key)
        for field in m.protocol["deviations"]["paper"]:
            if not field.startswith("eval."):
                changed[field].add(method)
    lines = [f"Calibration: {words} ({_join(methods)})." for words, methods in sorted(calibs.items())]
    lines += [f"Evaluation: {words} ({_join(keys)})." for words, keys in sorted(evals.items())]
    return lines + [f"Differs from paper: {field} ({_join(methods)})." for field, methods in sorted(changed.items())]


def _join(words: set[str]) -> str:
    return ", ".join(sorted(words))


def _data(used: list[Measurement]) -> list[str]:
    """Revisions and data of the records behind a table, one line each, shortened digests."""
    revisions = sorted({(m.science["model"]["name"], str(m.science["model"].get("revision"))) for m in used})
    lines = [f"Models: {', '.join(f'{name} @ {revision[:8]}' for name, revision in revisions)}."] if used else []
    data = {(m.science["eval"].get("name", "eval"), k, str(m.science["eval"].get("data"))[:8]) for m in used
            for k in m.metrics if "/" in k and m.metrics[k].samples is not None}  # fmt: skip
    return lines + ([f"Data: {', '.join(f'{k} {d}' for _, k, d in sorted(data))}."] if data else [])


def _count(lines: list[Line], mine: list[Measurement], protocol: str) -> list[str]:
    out = [f"Measured: {sum(line.measured for line in lines)} of {len(lines)} rows."]
    if own := [m.protocol["deviations"].get(protocol, []) for m in mine if name_of(m.protocol) == OWN]:
        fields = _join({field for found in own for field in found})
        out.append(f"Left out: {len(own)} records with settings of their own ({fields}).")
    if old := sum(name_of(m.protocol) == NOT_STORED for m in mine):
        out.append(f"Left out: {old} records of an earlier version, which did not store their protocol.")
    return out
