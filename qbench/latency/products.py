"""A product y = x W^T by one of the compared kernels, and the check that it is right before it is timed.

Dimension key: M tokens, N output channels, K input channels.
"""

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import deterministic

from qbench.latency.record import Kernel
from qbench.shape import activation_traffic


class Product:
    """One random weight [N, K] ready to be multiplied.

    Subclasses give ``weight_bytes`` (what one product reads of the weight), ``multiply`` and ``dequantized``; where the
    kernel reads other activations than bfloat16 ones, also ``activations``, ``seen`` and ``traffic``.
    """

    tolerance = 0.005  # relative error: rounding to bfloat16 alone is 0.0017
    weight_bytes: int

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
    """A kernel to compare. ``load(N, K, device, seed)`` makes a product with a random weight.

    ``missing`` returns why it cannot run on this machine, or None. ``note``: what a reader has to know of its times.
    ``config(N, K, M, device)``: launch parameters, where the kernel is our own. ``least_tokens``: it is not measured
    with fewer. Everything can be pickled.
    """

    kernel: Kernel
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
    modes = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    filled = deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this switch also warns of each operation that has no fixed order
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            deterministic.fill_uninitialized_memory = filled
            torch.use_deterministic_algorithms(modes[0], warn_only=modes[1])
