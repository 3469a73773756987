"""Which products are timed, the most important first, so that whatever time there is gives the best record.

Dimension key: M tokens, N output channels, K input channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from qbench.latency.products import Contender
from qbench.shape import QWEN2_5_7B, QWEN3, Shape

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
MODELS = {f"qwen3-{size}": shape for size, shape in QWEN3.items()} | {"qwen2.5-7b": QWEN2_5_7B}

# how long something can wait; a job waits for the sum of its three
MODEL_RANK = {"qwen3-8b": 0, "qwen3-32b": 0, "qwen3-14b": 1, "qwen3-4b": 3, "qwen2.5-7b": 3}
TOKENS_RANK = {1: 0, 16: 1, 2048: 1, 4: 2, 32: 2, 64: 2}
BITS_RANK = {4: 0, 3: 0, 2: 0, 1: 0, 8: 0, 16: 0}
ELSE = {"model": 4, "tokens": 3, "bits": 3}


@dataclass(frozen=True)
class Job:
    """One contender on one shape with M tokens. ``rank``: 0 is first."""

    contender: Contender
    model: str
    layer: str
    N: int
    K: int
    M: int

    @property
    def key(self) -> tuple:
        """As ``record.KERNEL_KEY``."""
        return (self.model, self.layer, self.M, self.contender.kernel, self.contender.bits, self.contender.group)

    @property
    def rank(self) -> int:
        return (
            MODEL_RANK.get(self.model, ELSE["model"])
            + TOKENS_RANK.get(self.M, ELSE["tokens"])
            + BITS_RANK.get(self.contender.bits, ELSE["bits"])
        )

    @property
    def weight(self) -> tuple:
        """Jobs of one rank with the same weight are done together."""
        return (self.rank, self.model, self.layer, self.contender)


def layers(shape: Shape) -> dict[str, tuple[int, int]]:
    """(N, K) of the products of one layer: fused as a decoder runs them, and a gate alone, since that is what is
    usually quoted."""
    return shape.fused | {"gate_proj": (shape.intermediate, shape.hidden)}


def jobs(
    contenders: Iterable[Contender], models: dict[str, Shape] = MODELS, tokens: Iterable[int] = TOKENS
) -> list[Job]:
    """Everything, by rank; within a rank by model, layer and contender, so that a weight is made once."""
    contenders, tokens = list(contenders), list(tokens)
    found = [
        Job(contender, model, layer, N, K, M)
        for model, shape in models.items()
        for layer, (N, K) in layers(shape).items()
        for contender in contenders
        for M in tokens
        if contender.least_tokens <= M
    ]
    return sorted(found, key=lambda job: job.rank)  # stable
