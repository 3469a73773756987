"""The machine of a measurement and what is measured on it, in one object, so that a test can give another.

``Bench.run`` is the loop over jobs that timing (``kernels``) and tuning (``tune``) share.
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
from qbench.latency.gpu import Gpu
from qbench.latency.jobs import MODELS, TOKENS, Job
from qbench.latency.products import Contender
from qbench.latency.rings import Ring
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

    @classmethod
    def cuda(cls, commit: str | None) -> "Bench":
        """The first GPU that torch sees."""
        gpu = Gpu("cuda")
        provenance = gpu.describe(commit)
        bf16, *others = peers.contenders()
        contenders = [bf16, *own_kernels.contenders(), *others]
        return cls("cuda", Clock(), provenance["l2_bytes"], provenance, contenders, restart, gpu.notes)

    def ring(self, contender: Contender, N: int, K: int) -> Ring:
        return Ring(contender, N, K, self.device, self.l2_bytes)

    def run(
        self,
        jobs: Iterable[Job],
        deadline: float,
        slack: float,
        *,
        wanted: Callable[[Job], bool],
        prepare: Callable[[list[Job]], None],
        work: Callable[[Job, Ring], None],
        save: Callable[[], None],
    ) -> list[Job]:
        """Does ``work`` for each wanted job, by ranks and within a rank by weights; returns the jobs without time.

        No job starts less than ``slack`` seconds before ``deadline`` (by the clock). ``prepare`` gets the jobs of a
        rank before the first of them, ``save`` is called after each weight. Raises what ``work`` raises.
        """
        left: list[Job] = []
        for _, of_rank in groupby(filter(wanted, jobs), key=lambda job: job.rank):
            same_rank = list(of_rank)
            if self.clock.now() + slack < deadline:
                prepare(same_rank)
            for _, same_weight in groupby(same_rank, key=lambda job: job.weight):
                ring = None
                for job in filter(wanted, same_weight):  # once more, since work for one job can do for another
                    if self.clock.now() + slack > deadline:
                        left.append(job)
                        continue
                    ring = ring or self.ring(job.contender, job.N, job.K)
                    work(job, ring)
                if ring is not None:
                    ring = None
                    give_back(self.device)
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
