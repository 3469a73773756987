"""Our records as cells of the printed tables: which record is which cell, in the units of the print."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from qbench.printed.published import PERPLEXITIES, TASKS, Printed
from qbench.protocol import MMLU_TASKS, name_of
from qbench.record import Measurement, Metric
from qbench.report.quality.variants import distinguish, method_of

KEYS = {f"{m.removesuffix('_ppl')}/ppl": m for m in PERPLEXITIES} | {f"{m}/acc": m for m in TASKS}
KEYS |= {f"{task}/acc": "mmlu" for task in MMLU_TASKS}  # a protocol sets which of them


@dataclass(frozen=True)
class Ours:
    """One measured cell in the units of the print; ``failed`` is the error of a measurement that failed."""

    value: float = math.nan
    stderr: float = math.nan
    failed: str = ""


def of_table(measurements: Iterable[Measurement], table: int, printed: list[Printed]) -> list[Measurement]:
    """The records with a metric and a cell that ``table`` prints."""
    wanted = {printed_cell(r) for r in printed if r.table == table}
    return [m for m in measurements if cell_of(m.science) in wanted and printed_metrics(m.metrics)]


def printed_metrics(keys: Iterable[str]) -> dict[str, str]:
    """Which printed metric each of ``keys`` is, for those that are one; our mean is computed from the six tasks."""
    return {key: metric for key in keys if (metric := KEYS.get(key))}


def printed_cell(row: Printed) -> tuple:
    """Model, method, weight bits, activation bits, group size; None where there is one scale a row or no grid."""
    grouped = row.group_size if row.method not in ("none", "billm") else None
    return (*row.cell, grouped)


def cell_of(science: dict) -> tuple:
    """The printed cell that a record is of, as ``printed_cell``."""
    method, grid = method_of(science), science.get("grid") or {}
    name, acts = method["name"], method.get("acts")
    bits = {"none": 16.0, "billm": 0.0}.get(name, float(grid.get("bits", math.nan)))
    group = grid.get("group_size", -1)
    if group < 0 or name in ("none", "billm") or method.get("whole_rows"):
        group = None
    return (science["model"]["name"].lower(), name, bits, int((acts or {}).get("bits", 16)), group)


def measured(used: list[Measurement]) -> dict[tuple, Ours]:
    """(cell, metric) to ours; a perplexity measured along with divergences counts where there is no other.

    ValueError for two records of one cell, and for two revisions of one model in different cells.
    """
    sources: dict[tuple, tuple[Measurement, Metric]] = {}
    _one_revision(used)
    for m in sorted(used, key=lambda m: (m.science["eval"].get("name") == "divergence", m.id)):
        for key, metric in printed_metrics(m.metrics).items():
            first, _ = sources.setdefault((cell_of(m.science), metric), (m, m.metrics[key]))
            divergence = m.science["eval"].get("name") == "divergence" != first.science["eval"].get("name")
            if first.id != m.id and not divergence:
                differ = distinguish([first.science, m.science])
                raise ValueError(
                    f"two records for {metric} of {' '.join(str(x) for x in cell_of(m.science))}: {first.id} with "
                    f"{differ[0]} and {m.id} with {differ[1]}; move one of them out of the results folder"
                )
    out = {}
    for (cell, metric), (_, found) in sources.items():
        scale = 1 if metric in PERPLEXITIES else 100
        out[cell, metric] = Ours(scale * found.value, math.nan if found.stderr is None else scale * found.stderr)
    for cell in {cell for cell, _ in sources}:
        if all((cell, t) in out for t in TASKS):
            six = [out[cell, t] for t in TASKS]
            error = math.sqrt(sum(x.stderr**2 for x in six)) / len(six)
            out[cell, "zeroshot_mean"] = Ours(sum(x.value for x in six) / len(six), error)
    return out


def _one_revision(used: list[Measurement]) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for m in used:
        revision = str(m.science["model"].get("revision"))
        first, id = seen.setdefault(m.science["model"]["name"], (revision, m.id))
        if first != revision:
            raise ValueError(
                f"{m.science['model']['name']} has two revisions: {first} in record {id} and {revision} in {m.id}; "
                "a table is about one; move the records of the other out of the results folder"
            )


def failed(failures: Iterable[dict], protocol: str) -> dict[tuple, Ours]:
    """(cell, metric) to the error of the measurement that failed there."""
    out = {}
    for f in failures:
        if name_of(f.get("protocol", {})) == protocol:
            ev, error = f["science"].get("eval") or {}, f["error"].strip().split("\n")[0]
            keys = {f"{ev.get('source')}/ppl", *(f"{task}/acc" for task in ev.get("tasks") or ())}
            out |= {(cell_of(f["science"]), m): Ours(failed=error) for m in printed_metrics(keys).values()}
    return out
