"""A product y = x W^T by one of the compared kernels, the check that it is right, and the ring that it is timed on.

Dimension key: M tokens, N output channels, K input channels.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from qbench.latency.clock import Clock, Timing, measure
from qbench.latency.record import Kernel

CACHES = 3  # between two uses of one weight, other bytes fill the L2 cache this often


class Product:
    """One random weight [N, K] ready to be multiplied.

    Subclasses give ``weight_bytes`` (what one product reads of the weight), ``multiply``, and ``w_NK`` or
    ``dequantized``; where the kernel reads other activations than bfloat16 ones, also ``activations`` and ``seen``.
    """

    tolerance = 0.005  # relative error: rounding to bfloat16 alone is 0.0017
    out_bytes = 2  # of an output
    weight_bytes: int
    w_NK: Tensor

    def __init__(self, N: int, K: int, device: str):
        self.N, self.K, self.device = N, K, device

    def activations(self, M: int, seed: int) -> tuple[Tensor, ...]:
        """Random ones, as ``multiply`` takes them."""
        return (normal((M, self.K), self.device, seed),)

    def multiply(self, *activations: Tensor) -> Tensor:
        """y [M, N]; this is what is timed."""
        raise NotImplementedError

    def dequantized(self) -> Tensor:
        """The weight that the product should have used, [N, K], in a dtype that holds it exactly."""
        return self.w_NK

    def seen(self, x_MK: Tensor, *_) -> Tensor:
        """The activations that the product should have used."""
        return x_MK

    def bytes(self, M: int) -> int:
        """That one product with M tokens moves: weight, activations, outputs."""
        return self.weight_bytes + sum(x.nbytes for x in self.activations(M, 0)) + self.out_bytes * M * self.N


@dataclass(frozen=True)
class Contender:
    """A kernel to compare. ``load(N, K, device, seed)`` makes a product with a random weight.

    ``note``: what a reader has to know of its times. ``config(N, K, M, device)``: launch parameters, where the kernel
    is our own. ``least_tokens``: it is not measured with fewer. Everything can be pickled.
    """

    kernel: Kernel
    load: Callable[[int, int, str, int], Product]
    note: str | None = None
    config: Callable[[int, int, int, str], dict] | None = None
    least_tokens: int = 1


def normal(shape: tuple[int, ...], device: str, seed: int, scale: float = 1.0) -> Tensor:
    """Normal bfloat16 numbers with standard deviation ``scale``."""
    draw = torch.Generator(device).manual_seed(seed)
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, scale, generator=draw)


def relative_error(product: Product, activations: tuple[Tensor, ...], w_NK: Tensor | None = None) -> float:
    """||y - y'|| / ||y'|| with y' in float64; NaN where the product left a part of its output unwritten.

    ``w_NK``: the weight in float64, if it has been made already. Raises: ValueError for an output of another shape.
    """
    w_NK = product.dequantized().double() if w_NK is None else w_NK
    expected = product.seen(*activations).double() @ w_NK.T
    with poisoned():
        y = product.multiply(*activations)
    if y.shape != expected.shape:
        raise ValueError(f"the product has shape {tuple(y.shape)}, not {tuple(expected.shape)}")
    return float((y.double() - expected).norm() / expected.norm())


@contextmanager
def poisoned():
    """``torch.empty`` gives NaN (integers: the largest), so that no number left in memory passes for a result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this switch also warns of each operation that has no fixed order
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


class Ring:
    """Random weights [N, K] of one contender, together larger than the L2 cache, so that every launch reads from
    memory. The first use makes them."""

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

    def time(self, M: int, clock: Clock, budget_us: float, replay_us: float = 1_000) -> Timing:
        """Of one product with M tokens, each launch with activations of its own; the budget as in ``measure``."""
        used = self.products[: ring_size(self.products[0].bytes(M), self.l2_bytes)]
        launches = [partial(p.multiply, *p.activations(M, i)) for i, p in enumerate(used)]
        return measure(launches, clock, budget_us, replay_us)


def ring_size(bytes_each: int, l2_bytes: int) -> int:
    """Operands of a ring: between two uses of one, the others fill the L2 cache at least three times."""
    return 1 + math.ceil(CACHES * l2_bytes / bytes_each)
