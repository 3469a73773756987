"""The machine of a measurement and what is measured on it, in one object, so that a test can give another.

``Sweep`` is the loop over jobs that timing (``kernels``) and tuning (``tune``) share.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch

from qbench.latency import own_kernels, peers
from qbench.latency.ceilings import COPY_BYTES, GEMM
from qbench.latency.clock import Clock
from qbench.latency.gpu import describe
from qbench.latency.jobs import MODELS, TOKENS, Job
from qbench.latency.products import Contender, Ring
from qbench.latency.warm_up import WarmUp
from qbench.shape import Shape

LOST = "left the GPU unusable"


class DeviceLostError(RuntimeError):
    """A kernel left the device in a state in which nothing runs any more; only a new process can go on."""


@dataclass
class Bench:
    """``provenance``: the record's description of the machine. ``notes``: on the state of the GPU. ``workers``:
    processes that compile, as ``warm_up.WarmUp`` takes them. ``restart``: starts the command again with other
    arguments in a new process, and does not return.

    ``contenders`` are measured on the layers of ``models`` with each of ``tokens``, and ``decoders`` as whole models.
    """

    device: str
    clock: Clock
    l2_bytes: int
    provenance: dict
    contenders: Sequence[Contender]
    restart: Callable[[Sequence[str]], None]
    notes: list[str] = field(default_factory=list)
    models: dict[str, Shape] = field(default_factory=lambda: dict(MODELS))
    tokens: Sequence[int] = TOKENS
    decoders: Sequence[str] = ("qwen3-8b", "qwen3-32b", "qwen3-0.6b")
    copy_bytes: int = COPY_BYTES
    gemm: int = GEMM
    workers: int | None = None

    def __post_init__(self):
        self.started = self.clock.now()

    @classmethod
    def cuda(cls, commit: str | None) -> "Bench":
        """The first GPU that torch sees."""
        provenance, notes = describe("cuda", commit)
        bf16, *others = peers.contenders()
        contenders = [bf16, *own_kernels.contenders(), *others]
        return cls("cuda", Clock(), provenance["l2_bytes"], provenance, contenders, restart, notes)

    def ring(self, contender: Contender, N: int, K: int) -> Ring:
        return Ring(contender, N, K, self.device, self.l2_bytes)

    def say(self, what: str) -> None:
        """Prints ``what`` on stderr, after the seconds since the bench was made."""
        print(f"{self.clock.now() - self.started:4.0f} s: {what}", file=sys.stderr, flush=True)


class Sweep:
    """Goes through jobs in the order of their ranks. Subclasses say which jobs are ``wanted`` and ``work`` on each."""

    slack: float  # seconds that a job may take after its deadline was checked

    def __init__(self, bench: Bench):
        self.bench, self.compile = bench, WarmUp(bench.device, bench.workers)

    def wanted(self, job: Job) -> bool:
        raise NotImplementedError

    def work(self, job: Job, ring: Ring) -> None:
        raise NotImplementedError

    def note(self, *texts: str) -> None:
        """Keeps notes on the compilation."""
        raise NotImplementedError

    def to_compile(self, jobs: Iterable[Job]) -> Iterable[Job]:
        """The jobs whose kernels ``work`` on ``jobs`` launches."""
        return jobs

    def run(self, jobs: Iterable[Job], deadline: float, save: Callable[[], None]) -> list[Job]:
        """Works on each wanted job, by ranks and within a rank by weights; returns the jobs without time.

        No job starts less than ``slack`` seconds before ``deadline`` (by the clock). The kernels of a rank are compiled
        before its first job; ``save`` is called after each weight. Raises what ``work`` raises.
        """
        left: list[Job] = []
        clock = self.bench.clock
        for rank, of_rank in groupby(filter(self.wanted, jobs), key=lambda job: job.rank):
            same_rank = list(of_rank)
            if clock.now() + self.slack < deadline:
                self.bench.say(f"{len(same_rank)} products of rank {rank}")
                self.note(*self.compile(self.to_compile(same_rank), deadline - clock.now()))
            for _, same_weight in groupby(same_rank, key=lambda job: job.weight):
                ring = None
                for job in filter(self.wanted, same_weight):  # once more, since work for one job can do for another
                    if clock.now() + self.slack > deadline:
                        left.append(job)
                        continue
                    ring = ring or self.bench.ring(job.contender, job.N, job.K)
                    self.work(job, ring)
                if ring is not None:
                    ring = None
                    give_back(self.bench.device)
                    save()
        return left


def check_device(clock: Clock, what: str) -> None:
    """Raises: DeviceLostError, if ``what`` left the device unusable."""
    try:
        clock.synchronize()
    except Exception as e:
        raise DeviceLostError(f"{what} {LOST} ({first_line(e)})") from e


def first_line(e: BaseException) -> str:
    """The first line of an error's message; those of CUDA and Triton are long."""
    return (str(e).strip() or "no message").splitlines()[0][:200]


def give_back(device: str) -> None:
    """Frees the memory pools of graphs that are gone, which torch otherwise keeps."""
    if device != "cpu":
        torch.cuda.empty_cache()


def restart(arguments: Sequence[str]) -> None:
    """Replaces this process by the same program with other arguments."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, sys.argv[0], *arguments])
