"""Our records as cells of the printed tables: which cell a record measures, in the units of the print."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from qbench.printed.published import HEADERS, PERPLEXITIES, TASKS, Printed
from qbench.protocol import MMLU_TASKS, NOT_STORED, OWN, name_of
from qbench.record import Failure, Measurement
from qbench.report.quality.text import settings
from qbench.report.quality.variants import distinguish, grid_of, method_of

KEYS = {f"{m.removesuffix('_ppl')}/ppl": m for m in PERPLEXITIES} | {f"{m}/acc": m for m in TASKS}
KEYS |= {f"{task}/acc": "mmlu" for task in MMLU_TASKS}  # a protocol sets which of them


@dataclass(frozen=True)
class Ours:
    """One measured cell in the units of the print; ``failed`` is the error of a measurement that failed."""

    value: float = math.nan
    stderr: float = math.nan
    failed: str = ""


def printed_cell(row: Printed) -> tuple:
    """Model, method, weight bits, activation bits, group size; None for one scale per row or no grid."""
    return (*row.cell, None if row.method in ("none", "billm") else row.group_size)


def cell_of(science: dict) -> tuple:
    """The printed cell that a record measures, in the form of ``printed_cell``."""
    method, grid = method_of(science), grid_of(science)
    name, acts, group = method["name"], method.get("acts") or {}, grid.get("group_size", -1)
    bits = {"none": 16.0, "billm": 0.0}.get(name, float(grid.get("bits", math.nan)))
    per_row = group < 0 or name in ("none", "billm") or method.get("whole_rows")
    return (science["model"]["name"].lower(), name, bits, int(acts.get("bits", 16)), None if per_row else group)


def measured(used: list[Measurement]) -> dict[tuple, Ours]:
    """(cell, metric) to ours. A perplexity measured along with divergences counts where there is no other.

    ValueError for two records of one cell, and for two revisions of one model.
    """
    sources: dict[tuple, Measurement] = {}
    revisions: dict[str, Measurement] = {}
    out: dict[tuple, Ours] = {}
    for m in sorted(used, key=lambda m: (_is_divergence(m), m.id)):
        first = revisions.setdefault(m.science["model"]["name"], m)
        a, b = (str(x.science["model"].get("revision")) for x in (first, m))
        if a != b:
            raise ValueError(
                f"{m.science['model']['name']} has two revisions: {a} in record {first.id} and {b} in {m.id}; a table "
                "shows one revision per model; move the records of the other out of the results folder"
            )
        for key in sorted(KEYS.keys() & m.metrics.keys()):
            where, found, scale = (cell_of(m.science), KEYS[key]), m.metrics[key], 1 if key.endswith("ppl") else 100
            first = sources.setdefault(where, m)
            if first is m:
                out[where] = Ours(scale * found.value, math.nan if found.stderr is None else scale * found.stderr)
            elif _is_divergence(m) == _is_divergence(first):
                differ = distinguish([first.science, m.science])
                raise ValueError(
                    f"two records for {KEYS[key]} of {' '.join(map(str, where[0]))}: {first.id} with {differ[0]} and "
                    f"{m.id} with {differ[1]}; move one of them out of the results folder"
                )
    for cell in {cell for cell, _ in sources}:
        if all((cell, task) in out for task in TASKS):
            six = [out[cell, task] for task in TASKS]
            error = math.sqrt(sum(x.stderr**2 for x in six)) / len(six)
            out[cell, "zeroshot_mean"] = Ours(sum(x.value for x in six) / len(six), error)
    return out


def failed(failures: Iterable[Failure], protocol: str) -> dict[tuple, Ours]:
    """(cell, metric) to the error of the measurement that failed there."""
    out: dict[tuple, Ours] = {}
    for f in failures:
        if name_of(f.get("protocol", {})) == protocol:
            ev, error = f["science"].get("eval") or {}, f["error"].strip().split("\n")[0]
            keys = {f"{ev.get('source')}/ppl", *(f"{task}/acc" for task in ev.get("tasks") or ())}
            out |= {(cell_of(f["science"]), KEYS[key]): Ours(failed=error) for key in KEYS.keys() & keys}
    return out


def about(used: list[Measurement]) -> list[str]:
    """Evaluation, calibration, revisions of the models, and in what methods differ from the protocol ``paper``."""
    measures = [(m.science, HEADERS[KEYS[key]]) for m in used for key in sorted(KEYS.keys() & m.metrics.keys())]
    models = {f"{m.science['model']['name']} @ {str(m.science['model'].get('revision'))[:8]}" for m in used}
    differs: dict[str, set[str]] = defaultdict(set)
    for m in used:
        for field in m.protocol["deviations"]["paper"]:
            if not field.startswith("eval."):
                differs[field].add(method_of(m.science)["name"])
    lines = settings(measures) + ([f"Models: {', '.join(sorted(models))}."] if models else [])
    return lines + [f"Differs from paper: {field} ({', '.join(sorted(of))})." for field, of in sorted(differs.items())]


def left_out(candidates: list[Measurement], protocol: str) -> list[str]:
    """Records of the table's cells that follow no protocol, or do not say which."""
    own = [m.protocol["deviations"].get(protocol, []) for m in candidates if name_of(m.protocol) == OWN]
    old = sum(name_of(m.protocol) == NOT_STORED for m in candidates)
    fields = ", ".join(sorted({field for found in own for field in found}))
    found = {f"with settings of their own ({fields})": len(own), "measured before protocols were stored": old}
    return [f"Left out, {why}: {n} record{'s' * (n > 1)}." for why, n in found.items() if n]


def _is_divergence(m: Measurement) -> bool:
    return m.science["eval"].get("name") == "divergence"
