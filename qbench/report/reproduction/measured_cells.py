"""Our records as cells of the printed tables: which cell a record measures, in the units of the print."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from qbench.printed.published import PERPLEXITIES, TASKS, Printed
from qbench.protocol import MMLU_TASKS, name_of
from qbench.record import Failure, Measurement
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
    """The records that measure a cell of ``table``, whatever their protocol."""
    wanted = {printed_cell(r) for r in printed if r.table == table}
    return [m for m in measurements if cell_of(m.science) in wanted and printed_metrics(m.metrics)]


def printed_metrics(keys: Iterable[str]) -> dict[str, str]:
    """The printed metric that each of ``keys`` is, where it is one; our zero-shot mean is made from the six tasks."""
    return {key: KEYS[key] for key in keys if key in KEYS}


def printed_cell(row: Printed) -> tuple:
    """Model, method, weight bits, activation bits, group size; None for one scale per row or no grid."""
    return (*row.cell, None if row.method in ("none", "billm") else row.group_size)


def cell_of(science: dict) -> tuple:
    """The printed cell that a record measures, in the form of ``printed_cell``."""
    method, grid = method_of(science), science.get("grid") or {}
    name, acts, group = method["name"], method.get("acts") or {}, grid.get("group_size", -1)
    bits = {"none": 16.0, "billm": 0.0}.get(name, float(grid.get("bits", math.nan)))
    per_row = group < 0 or name in ("none", "billm") or method.get("whole_rows")
    return (science["model"]["name"].lower(), name, bits, int(acts.get("bits", 16)), None if per_row else group)


def measured(used: list[Measurement]) -> dict[tuple, Ours]:
    """(cell, metric) to ours. A perplexity measured along with divergences counts where there is no other.

    ValueError for two records of one cell, and for two revisions of one model.
    """
    sources: dict[tuple, Measurement] = {}
    out: dict[tuple, Ours] = {}
    _check_one_revision(used)
    for m in sorted(used, key=lambda m: (_is_divergence(m), m.id)):
        for key, metric in printed_metrics(m.metrics).items():
            where = (cell_of(m.science), metric)
            first = sources.setdefault(where, m)
            if first is m:
                found, scale = m.metrics[key], 1 if metric in PERPLEXITIES else 100
                out[where] = Ours(scale * found.value, math.nan if found.stderr is None else scale * found.stderr)
            elif _is_divergence(m) == _is_divergence(first):
                differ = distinguish([first.science, m.science])
                raise ValueError(
                    f"two records for {metric} of {' '.join(map(str, where[0]))}: {first.id} with {differ[0]} and "
                    f"{m.id} with {differ[1]}; move one of them out of the results folder"
                )
    for cell in {cell for cell, _ in sources}:
        if all((cell, task) in out for task in TASKS):
            six = [out[cell, task] for task in TASKS]
            error = math.sqrt(sum(x.stderr**2 for x in six)) / len(six)
            out[cell, "zeroshot_mean"] = Ours(sum(x.value for x in six) / len(six), error)
    return out


def _is_divergence(m: Measurement) -> bool:
    return m.science["eval"].get("name") == "divergence"


def _check_one_revision(used: list[Measurement]) -> None:
    seen: dict[str, Measurement] = {}
    for m in used:
        first = seen.setdefault(m.science["model"]["name"], m)
        a, b = (str(x.science["model"].get("revision")) for x in (first, m))
        if a != b:
            raise ValueError(
                f"{m.science['model']['name']} has two revisions: {a} in record {first.id} and {b} in {m.id}; a table "
                "shows one revision per model; move the records of the other out of the results folder"
            )


def failed(failures: Iterable[Failure], protocol: str) -> dict[tuple, Ours]:
    """(cell, metric) to the error of the measurement that failed there."""
    out: dict[tuple, Ours] = {}
    for f in failures:
        if name_of(f.get("protocol", {})) == protocol:
            ev, error = f["science"].get("eval") or {}, f["error"].strip().split("\n")[0]
            keys = [f"{ev.get('source')}/ppl", *(f"{task}/acc" for task in ev.get("tasks") or ())]
            out |= {(cell_of(f["science"]), metric): Ours(failed=error) for metric in printed_metrics(keys).values()}
    return out
