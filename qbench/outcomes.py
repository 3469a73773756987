"""How the cells of a run or a sweep ended, and what the command prints of it.

``Outcomes`` is a callback of Hydra (conf/config.yaml). A launcher may run the jobs of a sweep in other processes: each
writes its outcome into the callback's folder, and the first process reads them all.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from qbench.files import write_json
from qbench.record import Metric

STATUSES = ("measured", "present", "elsewhere", "left out", "failed", "refused")
QUIET = ("present", "elsewhere", "left out")  # in a sweep these are only counted


@dataclass
class Outcome:
    """How one run ended.

    ``status``: measured; present (all records exist); elsewhere (another process measures it); failed (now or before);
    refused (bad input); left out (the paper's table does not print it). ``records``: where each record lies, by id.
    """

    cell: str
    status: str
    message: str = ""
    seconds: float = 0.0
    metrics: dict[str, Metric] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)

    @property
    def is_bad(self) -> bool:
        return self.status in ("failed", "refused")


class Outcomes(Callback):
    """Prints a line when a job ends and keeps its outcome; ``here`` is that of this process."""

    here: ClassVar["Outcomes | None"] = None

    def __init__(self):
        self.folder, self.single = None, []

    def on_run_start(self, config: DictConfig, **kwargs) -> None:
        Outcomes.here = self

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        self.folder = Path(config.hydra.sweep.dir, f"outcomes-{uuid4().hex}").absolute()
        try:
            self.folder.mkdir(parents=True)
        except OSError as e:
            sys.exit(f"cannot write to {self.folder.parent} ({e.strerror}); set machine.cache_dir to another folder")
        Outcomes.here = self

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs) -> None:
        if job_return.status is not JobStatus.COMPLETED:
            return  # a bug, which Hydra shows with its traceback
        outcome: Outcome = job_return.return_value
        if self.folder is None:
            self.single.append(outcome)
            places = [f"\nrecord {id}  {where}" for id, where in outcome.records.items()]
            print(line(outcome) + table(outcome.metrics) + "".join(places), flush=True)
            return
        number = config.hydra.job.num + 1
        write_json(self.folder / f"{number:06}.json", replace(outcome, metrics={}))
        if outcome.status not in QUIET:
            print(line(outcome, number), flush=True)
        if outcome.is_bad and config.fail_fast is True:
            print("stopped at the first failure (fail_fast=true)", file=sys.stderr)
            sys.exit(1)

    def collected(self) -> list[Outcome]:
        """All outcomes in the order of the sweep; their files are removed."""
        if self.folder is None:
            return self.single
        found = [Outcome(**json.loads(path.read_text())) for path in sorted(self.folder.glob("*.json"))]
        shutil.rmtree(self.folder, ignore_errors=True)
        return found


def exit_code(outcomes: list[Outcome]) -> int:
    """1: something failed or was refused; 3: another process is measuring some cells; else 0."""
    if any(o.is_bad for o in outcomes):
        return 1
    return 3 if any(o.status == "elsewhere" for o in outcomes) else 0


def line(outcome: Outcome, number: int | None = None) -> str:
    """One run in one line: its message, or the first six numbers, and the ids of its records."""
    place = "" if number is None else f"#{number:<4}"
    what = outcome.message or ("" if number is None else numbers(outcome.metrics, most=6))
    took = f"  ({outcome.seconds:.1f} s)" if outcome.status == "measured" else ""
    ids = f"  [{' '.join(outcome.records)}]" if outcome.records and number is not None else ""
    return f"{place}{outcome.cell:<28} {outcome.status:<9} {what}{took}{ids}"


def headline(metrics: dict[str, Metric]) -> dict[str, Metric]:
    """The metrics that have samples, which the subjects of a group have not, and those of kernels."""
    kernels = ("agreement/", "latency/")
    return {key: m for key, m in metrics.items() if m.samples is not None or key.startswith(kernels)}


def numbers(metrics: dict[str, Metric], most: int) -> str:
    """The first ``most`` numbers in one line."""
    words = [f"{key} {m.value:.4g}" for key, m in headline(metrics).items()]
    return "  ".join(words[:most] + [f"and {len(words) - most} more"] * (len(words) > most))


def table(metrics: dict[str, Metric]) -> str:
    """Value and standard error of every number, as lm-eval prints them."""
    rows: list[tuple[str, ...]] = [("data", "metric", "value", "", "stderr", "n")]
    for key, m in headline(metrics).items():
        data, _, metric = key.partition("/")
        rows.append((data, metric, f"{m.value:.4g}", "±", "n/a" if m.stderr is None else f"{m.stderr:.2g}", str(m.n)))
    if len(rows) == 1:
        return ""
    head, *cells = columns(rows, left=2)
    return "".join("\n|" + "|".join(row) + "|" for row in (head, ["-" * len(word) for word in head], *cells))


def columns(rows: Sequence[tuple[str, ...]], left: int) -> list[list[str]]:
    """``rows`` with columns of equal width, the first ``left`` of them aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [[w.ljust(n) if i < left else w.rjust(n) for i, (w, n) in enumerate(zip(row, widths))] for row in rows]


def summary(outcomes: list[Outcome]) -> str:
    """Counts by status, and one line for the cells that failed or were refused for the same reason."""
    counts = {s: sum(o.status == s for o in outcomes) for s in STATUSES}
    lines = [", ".join(f"{n} {status}" for status, n in counts.items() if n) or "no cell finished"]
    if counts["elsewhere"]:
        lines.append("  elsewhere: another process is measuring these cells; run this command again when it is done")
    bad: dict[tuple[str, str], list[str]] = {}
    for o in (o for o in outcomes if o.is_bad):
        bad.setdefault((o.status, o.message), []).append(o.cell)
    lines += [f"  {status:<8} {', '.join(cells)}: {message}" for (status, message), cells in bad.items()]
    return "\n".join(lines)
