"""A product y = x W^T in one of the ways that are compared, and the proof that it is right before it is timed.

Dimension key: M tokens, N output channels, K input channels.
"""

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import deterministic

from qbench.shape import activation_traffic


class Product:
    """One weight [N, K] ready to be multiplied. Subclasses give ``weight_bytes`` (what one product reads of the
    weight), ``multiply`` and ``dequantized``; where the product sees other activations than 16-bit ones also
    ``activations``, ``seen`` and ``traffic``."""

    tolerance = 0.005  # relative error: rounding to bfloat16 alone is 0.0017
    N: int
    K: int
    device: str
    weight_bytes: int

    def activations(self, M: int, seed: int) -> tuple[Tensor, ...]:
        """Random, as ``multiply`` takes them."""
        return (normal((M, self.K), self.device, seed),)

    def multiply(self, *activations: Tensor) -> Tensor:
        """y [M, N]: what is timed."""
        raise NotImplementedError

    def dequantized(self) -> Tensor:
        """The weight that the product should have used, [N, K], in the dtype it is exact in."""
        raise NotImplementedError

    def seen(self, x_MK: Tensor) -> Tensor:
        """The activations that the product should have used."""
        return x_MK

    def traffic(self, M: int) -> int:
        """Bytes of activations and outputs."""
        return activation_traffic(M, self.N, self.K)


def _present() -> str | None:
    return None


@dataclass(frozen=True)
class Contender:
    """A kernel to compare at one bit-width: ``load(N, K, device, seed)`` makes a product with a random weight.

    ``missing`` says why it cannot run on this machine, or None. ``note`` is what a reader has to know of its times.
    ``config(N, K, M, device)``: launch parameters, where the kernel is ours. ``least_tokens``: with fewer it is of no
    use. Everything can be pickled.
    """

    kernel: str
    bits: int
    group: int | None
    load: Callable[[int, int, str, int], Product]
    missing: Callable[[], str | None] = _present
    note: str | None = None
    config: Callable[[int, int, int, str], dict] | None = None
    least_tokens: int = 1


def normal(shape: tuple[int, ...], device: str, seed: int, scale: float = 1.0) -> Tensor:
    """Normal bfloat16 numbers with standard deviation ``scale``."""
    draw = torch.Generator(device).manual_seed(seed)
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, scale, generator=draw)


def relative_error(product: Product, activations: tuple[Tensor, ...], w_NK: Tensor | None = None) -> float:
    """||y - y'|| / ||y'|| of a product whose memory was NaN before, y' in float64. ``w_NK``: the weight in float64, if
    it is at hand."""
    w_NK = product.dequantized().double() if w_NK is None else w_NK
    expected = product.seen(*activations).double() @ w_NK.T
    with poisoned():
        y = product.multiply(*activations)
    if y.shape != expected.shape:
        raise ValueError(f"the product has shape {tuple(y.shape)}, not {tuple(expected.shape)}")
    return float((y.double() - expected).norm() / expected.norm())


@contextmanager
def poisoned():
    """Memory that torch.empty gives is NaN (integers: the largest), so nothing that was left there can pass for a
    result."""
    modes = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    filled = deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the switch that fills memory also warns of any operation in no fixed order
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            deterministic.fill_uninitialized_memory = filled
            torch.use_deterministic_algorithms(modes[0], warn_only=modes[1])
