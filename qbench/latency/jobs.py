"""The products to time, the most important first, so that the record is useful whenever the time runs out.

Dimension key: M tokens, N output channels, K input channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from qbench.latency.products import Contender
from qbench.shape import QWEN2_5_7B, QWEN3, Shape

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
MODELS = {f"qwen3-{size}": shape for size, shape in QWEN3.items()} | {"qwen2.5-7b": QWEN2_5_7B}

# a job's rank is the sum of three numbers, one from each table or the number after it
MODEL_RANK, OTHER_MODEL = {"qwen3-8b": 0, "qwen3-32b": 0, "qwen3-14b": 1, "qwen3-4b": 3, "qwen2.5-7b": 3}, 4
TOKENS_RANK, OTHER_TOKENS = {1: 0, 16: 1, 2048: 1, 4: 2, 32: 2, 64: 2}, 3
BITS_RANK, OTHER_BITS = dict.fromkeys((16, 8, 4, 3, 2, 1), 0), 3


@dataclass(frozen=True)
class Job:
    """One contender on one shape with M tokens."""

    contender: Contender
    model: str
    layer: str
    N: int
    K: int
    M: int

    @property
    def key(self) -> tuple:
        """As ``KernelRow.key``."""
        return (self.model, self.layer, self.M, self.contender.kernel)

    @property
    def rank(self) -> int:
        """0 is measured first."""
        bits_rank = BITS_RANK.get(self.contender.kernel.bits, OTHER_BITS)
        return MODEL_RANK.get(self.model, OTHER_MODEL) + TOKENS_RANK.get(self.M, OTHER_TOKENS) + bits_rank

    @property
    def weight(self) -> tuple:
        """Equal for jobs that run one after the other on the same weight."""
        return (self.rank, self.model, self.layer, self.contender)


def layers(shape: Shape) -> dict[str, tuple[int, int]]:
    """(N, K) of one layer's products: fused as a decoder runs them, and the gate alone, which papers usually quote."""
    return shape.fused | {"gate_proj": (shape.intermediate, shape.hidden)}


def make_jobs(contenders: Iterable[Contender], models: dict[str, Shape], tokens: Iterable[int]) -> list[Job]:
    """All jobs by rank; within a rank by model, layer and contender, so that each weight is made once."""
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
