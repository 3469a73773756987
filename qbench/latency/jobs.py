"""What is timed, and how important it is: the most important comes first, as the time may run out.

Dimension key: M tokens, N output channels, K input channels.
"""

from dataclasses import dataclass

from qbench.latency.products import Contender
from qbench.shape import QWEN2_5_7B, QWEN3

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
