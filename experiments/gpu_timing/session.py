"""One call of the measurement: ceilings, products and whole decoders, the record saved on the way.

Each product is first compared with a float64 product of its own dequantized weight, its output memory filled with NaN
before. A wrong product gets a note instead of a time. A right one is timed as ``clock`` says, on a cold ring.

Estimated on an H200: a product takes 0.11 s, of which 15 ms are timing, so all products take 11 minutes, with a minute
of compiling. The most important come first (``jobs``), and an interrupted call leaves a record that the next continues.
"""

import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from experiments.gpu_timing.gpu import describe
from experiments.gpu_timing.jobs import make_jobs
from qbench.files import slug
from qbench.latency import own_kernels
from qbench.latency.bench import Bench, DeviceLostError, first_line
from qbench.latency.ceilings import ceilings
from qbench.latency.clock import Clock
from qbench.latency.jobs import Job
from qbench.latency.models import CHOICES, steps, time_decoders
from qbench.latency.products import Contender, Ring
from qbench.latency.record import LEFT_OUT, KernelRow, LatencyRecord, ModelRow
from qbench.shape import linear_flops

FIRST_RANK = 1  # products up to this rank come before the decoders
SAVE_EVERY = 20.0  # seconds
BUDGET_US = 15_000  # device time of a product
DRIFT = 0.03  # relative change of a ceiling above which it is noted
LOST = "left the GPU unusable"
MOST_WORKERS = 14


def gpu_bench(peers: Sequence[Contender], commit: str | None) -> Bench:
    """The first GPU that torch sees, with everything that is measured on it: ``peers``, and our own kernels.

    ``commit`` as in ``describe``."""
    provenance, notes = describe("cuda", commit)
    contenders = [*peers, *own_kernels.contenders()]
    spawn = multiprocessing.get_context("spawn")  # a process that uses a GPU cannot fork
    workers = ProcessPoolExecutor(min(MOST_WORKERS, os.cpu_count() or 1), mp_context=spawn)
    return Bench("cuda", Clock(), provenance["l2_bytes"], provenance, contenders, steps(), workers, notes)


class Session:
    """Measures until all is measured or it is interrupted, and writes the record into the folder ``out``.

    ``resume``: the record to continue. Raises: ValueError for a record that cannot be continued.
    """

    def __init__(self, bench: Bench, out: Path, resume: Path | None = None):
        self.bench, self.clock = bench, bench.clock
        self.started = self.saved = self.clock.now()
        self.path = out / f"{slug(bench.provenance['gpu'])}.json"
        self.record = LatencyRecord.start(bench.provenance, resume)
        self.earlier = self.record.provenance["seconds"]
        kernels = ((c.kernel, c.note) for c in bench.contenders if c.note)
        self.record.note(*bench.notes, *(f"{k.name}, {k.bits} bits: {note}" for k, note in kernels))
        self.jobs = make_jobs(bench.contenders, bench.models, bench.tokens)

    def run(self) -> None:
        """Measures what the record lacks. Raises: KeyboardInterrupt and SystemExit, when it is stopped, and
        DeviceLostError, when only a new process can go on; the record is whole then."""
        jobs = missing(self.jobs, self.record.kernels)
        first = [job for job in jobs if job.rank <= FIRST_RANK]
        try:
            self._ceilings()
            self.bench.sweep(first, self._product)
            self._decoders()
            self.bench.sweep(jobs[len(first) :], self._product)
            self._ceilings()
        except DeviceLostError as e:
            self.record.note(f"went on in a new process: {e}")
            raise
        finally:
            if left := missing(self.jobs, self.record.kernels):
                each = ", ".join(f"{model} {n}" for model, n in Counter(job.model for job in left).items())
                self._left_out(f"{len(left)} of {len(self.jobs)} products ({each})")
            if rows := missing(self.bench.steps, self.record.models):
                self._left_out(f"{len(rows)} of {len(self.bench.steps)} rows of decoders")
            self._save()

    def _ceilings(self) -> None:
        """The first ones stay; they are measured again at the end and in later calls, and a note says what changed."""
        found, notes = ceilings(self.bench.device, self.clock, self.bench.copy_bytes, self.bench.gemm)
        for name, old in self.record.ceilings.items():
            if abs(found[name].value / old.value - 1) > DRIFT:
                notes.append(f"not steady: {name} was {old.value:.5g} at first and {found[name].value:.5g} later")
        self.record.ceilings = self.record.ceilings or found
        self.record.note(*notes)

    def _product(self, job: Job, ring: Ring) -> None:
        """Adds the row of a job. Raises: DeviceLostError, after the row."""
        contender, N, K, M = job.contender, job.N, job.K, job.M
        row = KernelRow(job.model, job.layer, N, K, M, contender.kernel, flops=linear_flops(M, N, K))
        row.config = contender.config and contender.config(N, K, M, self.bench.device)
        if any(LOST in r.notes for r in self.record.kernels if r.kernel == row.kernel):
            row.notes.append(f"not tried: this kernel {LOST} before")
            self.record.kernels.append(row)
            return
        try:
            error, tolerance = ring.error(M), ring.products[0].tolerance
            row.bytes, row.error = ring.products[0].bytes(M), error if math.isfinite(error) else None
            if error <= tolerance:
                timing = ring.time(M, self.clock, BUDGET_US)
                row.us, row.us_p20, row.us_p80, row.runs = timing.us, timing.p20, timing.p80, timing.runs
                row.notes += timing.notes
            else:
                row.notes.append(f"wrong: relative error {error:.2g}, at most {tolerance:g} is right; not timed")
        except Exception as e:
            row.notes.append(f"failed: {type(e).__name__}: {first_line(e)}")
            self.record.kernels.append(row)
            try:
                self.bench.check(f"{job.key}")
            except DeviceLostError:
                row.notes.append(LOST)
                raise
        else:
            self.record.kernels.append(row)
        self._save(SAVE_EVERY)

    def _decoders(self) -> None:
        steps = missing(self.bench.steps, self.record.models)
        models = {row.model for row in steps}
        self.bench.say(f"decoders: {', '.join(sorted(models))}")
        self.bench.compile(j for j in self.jobs if j.model in models and j.contender.kernel in CHOICES)

        def keep(row: ModelRow) -> None:
            self.record.models.append(row)
            self._save(SAVE_EVERY)

        time_decoders(self.bench, steps, 1e9 * self.record.ceilings["copy_gbps"].value, keep)

    def _left_out(self, what: str) -> None:
        self.record.note(f"{LEFT_OUT}: {what}; --resume measures them")

    def _save(self, every: float = 0.0) -> None:
        """Writes the record unless it was written less than ``every`` seconds ago."""
        if self.clock.now() - self.saved < every:
            return
        self.saved = self.clock.now()
        self.record.provenance["seconds"] = round(self.earlier + self.saved - self.started, 1)
        self.record.write(self.path)


def missing(wanted: Sequence, rows: Sequence) -> list:
    """Those of ``wanted`` whose ``key`` no row has."""
    done = {row.key for row in rows}
    return [one for one in wanted if one.key not in done]
