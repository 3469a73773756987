"""Everything a measurement needs of its machine, in one object, so that a test can give another."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from qbench.latency import models as model_level
from qbench.latency import own_kernels as ours
from qbench.latency import peers
from qbench.latency.ceilings import COPY_BYTES, GEMM
from qbench.latency.clock import Clock, CudaClock
from qbench.latency.gpu import Gpu
from qbench.latency.jobs import MODELS, TOKENS
from qbench.latency.products import Contender
from qbench.shape import Shape

DECODERS = ("qwen3-8b", "qwen3-32b", "qwen3-0.6b")
DECODED = tuple((weights.name, weights.bits) for weights in model_level.CHOICES)


@dataclass
class Bench:
    """The GPU's side: ``provenance``, what the record says of it, and ``notes`` of its state. ``workers``: processes
    that compile, as ``qbench.latency.warm_up``. ``restart``: the command again in a new process; it does not come back.

    What is measured: ``contenders`` on the layers of ``models`` with so many ``tokens``; ``decoders`` by ``decode``, as
    ``qbench.latency.models.rows``, with weights of the kernels and bits in ``decoded``."""

    device: str
    clock: Clock
    l2_bytes: int
    provenance: dict
    contenders: Sequence[Contender]
    decode: Callable[..., Iterable[dict]]
    restart: Callable[[Sequence[str]], None]
    notes: list[str] = field(default_factory=list)
    models: dict[str, Shape] = field(default_factory=lambda: dict(MODELS))
    tokens: Sequence[int] = TOKENS
    decoders: Sequence[str] = DECODERS
    decoded: Sequence[tuple[str, int]] = DECODED
    copy_bytes: int = COPY_BYTES
    gemm: int = GEMM
    workers: int | None = None

    @classmethod
    def cuda(cls, commit: str | None) -> "Bench":
        """The first GPU that torch sees."""
        gpu = Gpu("cuda")
        provenance = gpu.describe(commit)
        (bf16, *others) = peers.contenders()
        return cls(
            device="cuda",
            clock=CudaClock(),
            l2_bytes=provenance["l2_bytes"],
            provenance=provenance,
            contenders=[bf16, *ours.contenders(), *others],
            decode=model_level.rows,
            restart=restart,
            notes=gpu.notes,
        )


def restart(arguments: Sequence[str]) -> None:
    """This program in a new process image, with other arguments."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, sys.argv[0], *arguments])
