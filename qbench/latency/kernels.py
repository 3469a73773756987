"""Times of single products: our kernels and their peers on the shapes of Qwen3, one row each.

A product is compared with a float64 product of its own dequantized weight before it is timed, in memory full of NaN;
one that is wrong gets no time but a note. Then it is timed as ``clock`` says: one launch of many in a CUDA graph, on a
ring of weights and activations larger than three L2 caches.

How long: a row should take about 0.11 s on an H200: 15 ms of timing, the rest two captures of some hundred launches,
the float64 product, and a share of making the weights. 7 models x 5 products x 10 token counts x 17 contenders are then
11 minutes, with a minute of compiling (``warm_up``), so ``plan`` orders them and a call stops in time.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby

import torch

from qbench.latency.clock import Clock, Timing, measure, ring_size
from qbench.latency.jobs import Job
from qbench.latency.peers import CublasBf16
from qbench.latency.products import Product, relative_error
from qbench.latency.record import LEFT_OUT, Latency
from qbench.shape import linear_flops

BUDGET_US = 15_000  # device time of a row
SLACK = 2.0  # seconds that a row may take after the look at the clock
LOST = "left the GPU unusable"
MOST_LOST = 2  # rows of one kernel that may do so before its others are not tried any more
DRIFT = 0.03  # relative change of a repeated measurement that is said


class DeviceLostError(RuntimeError):
    """A kernel left the device in a state in which nothing runs any more; only a new process can go on."""


class KernelLevel:
    """Measures jobs into a record. ``device`` "cuda", or "cpu" under test; ``l2_bytes`` of its cache."""

    def __init__(self, record: Latency, clock: Clock, device: str, l2_bytes: int, budget_us: float = BUDGET_US):
        self.record, self.clock, self.device, self.l2_bytes, self.budget_us = record, clock, device, l2_bytes, budget_us

    def run(self, jobs: Iterable[Job], deadline: float, tick: Callable[[], None] = lambda: None) -> list[Job]:
        """Adds a row for each job that is not in the record yet, until ``deadline`` (seconds of the clock).

        ``tick`` is called after each weight. Returns the jobs there was no time for. Raises: DeviceLostError.
        """
        left: list[Job] = []
        waiting = (job for job in jobs if job.key not in self.record.done)
        for _, same_weight in groupby(waiting, key=lambda job: job.weight):
            ring = w_NK = None
            for job in same_weight:
                if self.clock.now() + SLACK > deadline:
                    left.append(job)
                    continue
                if self._lost(job) >= MOST_LOST:
                    self.record.add_kernel(self._row(job, notes=[f"not tried: this kernel {LOST} before"]))
                    continue
                try:
                    if ring is None:
                        ring = copies(partial(job.contender.load, job.N, job.K, self.device), self.l2_bytes)
                        w_NK = ring[0].dequantized().double()
                    row = self._measured(job, ring, w_NK)
                except Exception as e:
                    row = self._row(job, notes=[f"failed: {type(e).__name__}: {first_line(e)}"])
                self.record.add_kernel(row)
                try:
                    check_device(self.clock, f"{job.key}")
                except DeviceLostError:
                    row["notes"].append(LOST)
                    raise
            if ring is not None:
                ring = w_NK = None
                give_back(self.device)
                tick()
        return left

    def drift(self) -> None:
        """Measures the first bfloat16 row once more; a note if it is not what it was."""
        row = next((r for r in self.record.data["kernels"] if r["kernel"] == "cublas_bf16" and r["us"]), None)
        if row is None:
            return
        ring = copies(partial(CublasBf16, row["N"], row["K"], self.device), self.l2_bytes)
        us = measure(launches(ring, row["M"], self.l2_bytes), self.clock, self.budget_us).us
        if abs(us / row["us"] - 1) > DRIFT:
            self.record.note(
                f"not steady: cublas_bf16 {row['model']} {row['layer']} M={row['M']} took {row['us']:.2f} us when it "
                f"was first measured and {us:.2f} us at the end"
            )

    def _lost(self, job) -> int:
        name = job.contender.kernel, job.contender.bits, job.contender.group
        rows = (r for r in self.record.data["kernels"] if (r["kernel"], r["bits"], r["group"]) == name)
        return sum(LOST in row["notes"] for row in rows)

    def _measured(self, job, ring, w_NK) -> dict:
        product = ring[0]
        error = relative_error(product, product.activations(job.M, seed=0), w_NK)
        if not error <= product.tolerance:
            note = f"wrong: relative error {error:.2g}, at most {product.tolerance:g} is right; not timed"
            return self._row(job, product, error, notes=[note])
        timing = measure(launches(ring, job.M, self.l2_bytes), self.clock, self.budget_us)
        return self._row(job, product, error, timing)

    def _row(self, job, product: Product | None = None, error=None, timing: Timing | None = None, notes=()) -> dict:
        contender, M, N, K = job.contender, job.M, job.N, job.K
        return {
            "model": job.model,
            "layer": job.layer,
            "N": N,
            "K": K,
            "M": M,
            "kernel": contender.kernel,
            "bits": contender.bits,
            "group": contender.group,
            "us": timing and timing.us,
            "us_p20": timing and timing.p20,
            "us_p80": timing and timing.p80,
            "runs": timing.runs if timing else 0,
            "bytes": product and product.weight_bytes + product.traffic(M),
            "flops": linear_flops(M, N, K),
            "error": error if error is not None and math.isfinite(error) else None,
            "config": contender.config and contender.config(N, K, M, self.device),
            "notes": [*notes, *(timing.notes if timing else ())],
        }


def copies(load: Callable[..., Product], l2_bytes: int) -> list[Product]:
    """The ring: ``load(seed=...)`` until three caches of weights lie between two uses of one."""
    first = load(seed=0)
    return [first] + [load(seed=i) for i in range(1, ring_size(first.weight_bytes, l2_bytes))]


def launches(ring: Sequence[Product], M: int, l2_bytes: int) -> list[Callable]:
    """As many products of the ring as it takes, each with activations of its own."""
    needed = ring_size(ring[0].weight_bytes + ring[0].traffic(M), l2_bytes)
    return [partial(p.multiply, *p.activations(M, seed=i)) for i, p in enumerate(ring[:needed])]


def check_device(clock: Clock, what: str) -> None:
    """Raises: DeviceLostError, if ``what`` left the device unusable."""
    try:
        clock.synchronize()
    except Exception as e:
        raise DeviceLostError(f"{what} {LOST} ({first_line(e)})") from e


def give_back(device: str) -> None:
    """Every graph has memory of its own, which is given back only here."""
    if device != "cpu":
        torch.cuda.empty_cache()


def left_out_notes(left: Iterable[Job], all_jobs: int) -> list[str]:
    """What there was no time for, by model."""
    counts: dict[str, int] = {}
    for job in left:
        counts[job.model] = counts.get(job.model, 0) + 1
    if not counts:
        return []
    each = ", ".join(f"{model} {n}" for model, n in counts.items())
    return [f"{LEFT_OUT}: {sum(counts.values())} of {all_jobs} kernel rows ({each}); --resume measures them"]


def first_line(e: BaseException) -> str:
    """Of an error's message; those of CUDA and Triton are long."""
    return (str(e).strip() or "no message").splitlines()[0][:200]
