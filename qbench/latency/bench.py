"""The machine of a measurement and what is measured on it, in one object, so that a test can give another.

``Bench.sweep`` is the loop that timing and tuning (experiments/gpu_timing) share. Triton compiles a kernel at
its first launch, which takes one or two seconds, and there are hundreds of variants: by bits, tiles, and properties of
M, N and K (equal to 1, divisible by 16). So ``Bench.compile`` has worker processes launch each variant once, which
fills Triton's cache on disk, before the measuring process loads it from there. The workers are idle while it measures.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import groupby

import torch

from qbench.latency.ceilings import COPY_BYTES, GEMM
from qbench.latency.clock import Clock
from qbench.latency.jobs import MODELS, TOKENS, Job
from qbench.latency.products import Contender, Ring
from qbench.latency.record import ModelRow
from qbench.shape import Shape


class DeviceLostError(RuntimeError):
    """A kernel left the device in a state in which nothing runs any more; only a new process can go on."""


@dataclass
class Bench:
    """``contenders`` are measured on the layers of ``models`` with each of ``tokens``; ``steps`` are the rows of whole
    decoders, without their times. ``provenance``: the record's description of the machine. ``notes``: on the state of
    the GPU. ``compilers``: where kernels are compiled.
    """

    device: str
    clock: Clock
    l2_bytes: int
    provenance: dict
    contenders: Sequence[Contender]
    steps: Sequence[ModelRow]
    compilers: Executor
    notes: list[str] = field(default_factory=list)
    models: dict[str, Shape] = field(default_factory=lambda: dict(MODELS))
    tokens: Sequence[int] = TOKENS
    copy_bytes: int = COPY_BYTES
    gemm: int = GEMM

    def __post_init__(self):
        self.started, self.compiled = self.clock.now(), set()

    def say(self, what: str) -> None:
        """Prints ``what`` on stderr, after the seconds since the bench was made."""
        print(f"{self.clock.now() - self.started:4.0f} s: {what}", file=sys.stderr, flush=True)

    def sweep(
        self,
        jobs: Iterable[Job],
        work: Callable[[Job, Ring], None],
        launched: Callable[[Job], Iterable[Job]] = lambda job: [job],
    ) -> None:
        """``work`` on each job, which are sorted by rank and weight. Raises what ``work`` raises.

        ``launched``: the jobs whose kernels ``work`` launches; those of a rank are compiled before its first job.
        """
        for rank, of_rank in groupby(jobs, key=lambda job: job.rank):
            same_rank = list(of_rank)
            self.say(f"{len(same_rank)} products of rank {rank}")
            self.compile(other for job in same_rank for other in launched(job))
            for _, same_weight in groupby(same_rank, key=lambda job: job.weight):
                first, *others = same_weight
                ring = Ring(first.contender, first.N, first.K, self.device, self.l2_bytes)
                for job in (first, *others):
                    work(job, ring)
                del ring
                self.free()

    def compile(self, jobs: Iterable[Job]) -> None:
        """Launches each new variant once. Failures are ignored: their rows say so."""
        new = {key: job for key, job in variants(jobs, self.device).items() if key not in self.compiled}
        self.compiled |= new.keys()
        try:
            list(self.compilers.map(_launch, new.values(), [self.device] * len(new)))
        except BrokenProcessPool:
            self.say(f"a process that compiled {len(new)} kernels died; those that are missing compile when launched")

    def check(self, what: str) -> None:
        """Raises: DeviceLostError, if ``what`` left the device unusable."""
        try:
            self.clock.synchronize()
        except Exception as e:
            raise DeviceLostError(f"{what} left the GPU unusable ({first_line(e)})") from e

    def free(self) -> None:
        """Frees the memory pools of graphs that are gone, which torch otherwise keeps."""
        if self.device != "cpu":
            torch.cuda.empty_cache()


def variants(jobs: Iterable[Job], device: str) -> dict[tuple, Job]:
    """One job per variant to compile; sizes that Triton does not look at do not make another variant."""
    found: dict[tuple, Job] = {}
    for job in jobs:
        contender = job.contender
        if contender.config is not None:
            config = json.dumps(contender.config(job.N, job.K, job.M, device), sort_keys=True)
            sizes = (job.M == 1, job.M % 16 == 0, job.N % 16 == 0, job.K % 16 == 0, job.K % 128 == 0)
            found.setdefault((contender.kernel, config, sizes), job)
    return found


def first_line(e: BaseException) -> str:
    """The first line of an error's message; those of CUDA and Triton are long."""
    return (str(e).strip() or "no message").splitlines()[0][:200]


def _launch(job: Job, device: str) -> None:
    try:
        product = job.contender.load(job.N, job.K, device, 0)
        y = product.multiply(*product.activations(job.M, 0))
        float(y.flatten()[0])  # waits for the kernel
        del product, y
        if device != "cpu":
            torch.cuda.empty_cache()
    except Exception:  # the measurement reports it
        return
