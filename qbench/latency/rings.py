"""A ring of weights to launch a product on, larger than the L2 cache, so that every weight comes from memory.

Dimension key: M tokens, N output channels, K input channels.
"""

import math
from collections.abc import Callable
from functools import cached_property, partial

from torch import Tensor

from qbench.latency.clock import Clock, Timing, measure
from qbench.latency.products import Contender, Product, relative_error

CACHES = 3  # between two uses of one weight, other bytes fill the L2 cache this often


class Ring:
    """Copies of a random weight [N, K], each in memory of its own. The first use makes them."""

    def __init__(self, contender: Contender, N: int, K: int, device: str, l2_bytes: int):
        self.load, self.l2_bytes = partial(contender.load, N, K, device), l2_bytes

    @cached_property
    def products(self) -> list[Product]:
        first = self.load(0)
        return [first] + [self.load(seed) for seed in range(1, ring_size(first.weight_bytes, self.l2_bytes))]

    @cached_property
    def w_NK(self) -> Tensor:
        """The first weight in float64."""
        return self.products[0].dequantized().double()

    def error(self, M: int) -> float:
        """The first product's relative error with M random tokens."""
        first = self.products[0]
        return relative_error(first, first.activations(M, 0), self.w_NK)

    def launches(self, M: int) -> list[Callable[[], Tensor]]:
        """One launch per product, each with activations of its own, as many as the caches take."""
        needed = ring_size(self.bytes(M), self.l2_bytes)
        return [partial(p.multiply, *p.activations(M, i)) for i, p in enumerate(self.products[:needed])]

    def time(self, M: int, clock: Clock, budget_us: float, replay_us: float = 1_000) -> Timing:
        """Of one product with M tokens; ``budget_us`` and ``replay_us`` as ``measure``."""
        return measure(self.launches(M), clock, budget_us, replay_us)

    def bytes(self, M: int) -> int:
        """Bytes that one product with M tokens moves."""
        return self.products[0].weight_bytes + self.products[0].traffic(M)


def ring_size(bytes_each: int, l2_bytes: int) -> int:
    """Operands of a ring: between two uses of one, the others fill the L2 cache at least three times."""
    if bytes_each < 1:
        raise ValueError(f"an operand has at least one byte, got {bytes_each}")
    return 1 + math.ceil(CACHES * l2_bytes / bytes_each)
