"""Times single products, ours and the peers', on the shapes of Qwen3: one row of the record per product.

Each product is first compared with a float64 product of its own dequantized weight, its output memory filled with NaN
before. A wrong product gets a note instead of a time. A right one is timed as ``clock`` says, on a cold ring.

A row takes about 0.11 s on an H200: 15 ms of timing, and the rest for two captures of some hundred launches, the
float64 product and a share of making the weights. 7 models x 5 products x 10 token counts x 17 contenders are then 11
minutes, with a minute of compiling (``warm_up``), so ``jobs`` orders them and a call stops in time.
"""

import math

from qbench.latency.bench import LOST, Bench, DeviceLostError, Sweep, check_device, first_line
from qbench.latency.jobs import Job
from qbench.latency.peers import contenders
from qbench.latency.products import Ring
from qbench.latency.record import BF16, KernelRow, LatencyRecord
from qbench.shape import linear_flops

BUDGET_US = 15_000  # device time of a row
MOST_LOST = 2  # rows of a kernel that may lose the device before its other rows are given up
DRIFT = 0.03  # relative change of a repeated measurement above which it is noted


class KernelTimer(Sweep):
    """Adds a row to ``record.kernels`` for each job that the record has no row of.

    Raises: DeviceLostError, after the row of the job that caused it.
    """

    slack = 2.0

    def __init__(self, bench: Bench, record: LatencyRecord):
        super().__init__(bench)
        self.record, self.note = record, record.note
        self.done = {row.key for row in record.kernels}

    def wanted(self, job: Job) -> bool:
        return job.key not in self.done

    def drift(self) -> None:
        """Times the first bfloat16 row again; a note if it has changed."""
        row = next((r for r in self.record.kernels if r.kernel == BF16 and r.us), None)
        if row is None:
            return
        us = self.bench.ring(contenders()[0], row.N, row.K).time(row.M, self.bench.clock, BUDGET_US).us
        if abs(us / row.us - 1) > DRIFT:
            self.record.note(
                f"not steady: {BF16.name} {row.model} {row.layer} M={row.M} took {row.us:.2f} us when it was first "
                f"measured and {us:.2f} us at the end"
            )

    def work(self, job: Job, ring: Ring) -> None:
        contender, N, K, M = job.contender, job.N, job.K, job.M
        row = KernelRow(job.model, job.layer, N, K, M, contender.kernel, flops=linear_flops(M, N, K))
        row.config = contender.config and contender.config(N, K, M, self.bench.device)
        self.done.add(job.key)
        self.record.kernels.append(row)
        if sum(LOST in r.notes for r in self.record.kernels if r.kernel == row.kernel) >= MOST_LOST:
            row.notes.append(f"not tried: this kernel {LOST} before")
            return
        try:
            self._time(row, ring)
        except Exception as e:
            row.notes.append(f"failed: {type(e).__name__}: {first_line(e)}")
        try:
            check_device(self.bench.clock, f"{job.key}")
        except DeviceLostError:
            row.notes.append(LOST)
            raise

    def _time(self, row: KernelRow, ring: Ring) -> None:
        error, tolerance = ring.error(row.M), ring.products[0].tolerance
        row.bytes, row.error = ring.bytes(row.M), error if math.isfinite(error) else None
        if not error <= tolerance:
            row.notes.append(f"wrong: relative error {error:.2g}, at most {tolerance:g} is right; not timed")
            return
        timing = ring.time(row.M, self.bench.clock, BUDGET_US)
        row.us, row.us_p20, row.us_p80, row.runs = timing.us, timing.p20, timing.p80, timing.runs
        row.notes += timing.notes
