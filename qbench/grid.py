"""Number grids: the levels that low-bit weights and activations may take, and rounding to them.

A group of weights w is stored as integer codes q in 0..2^b - 1 with w ~ s (q - z). The scale ``s`` is one float16
number per group, and codes are chosen with its float16 value, so the measured weight is the stored one.

* Asymmetric (z an integer in 0..2^b - 1): [min(w, 0), max(w, 0)] is divided into 2^b - 1 equal steps. Zero is always
  on the grid; at one bit that leaves {0, s} or {-s, 0}.
* Symmetric (z = 2^(b-1), not stored): s = max|w| / (2^(b-1) - 1), SmoothQuant's equation 1. At one bit that divides by
  zero, so the levels are -m and +m with m = mean|w|, the least-squares choice (XNOR-Net, arXiv 1603.05279).

FP8 (e4m3: one sign, four exponent and three mantissa bits, up to 448, no infinity) is no such grid: its steps grow with
the number. ``e4m3`` rounds to it.

Dimension key: N output channels, K input channels, G groups of K, T tokens.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from qbench.settings import Positive, Range, check

TINY = 2.0**-24  # the smallest positive float16
E4M3_MAX = 448.0
FP8_BLOCK = 128  # channels of activations, rows and columns of weights that share a scale


@dataclass(frozen=True)
class Grid:
    """``bits`` 1..8; ``group_size`` input channels share a scale, -1: one scale per row."""

    bits: Annotated[int, Range(1, 8)] = 4
    group_size: Literal[-1] | Positive = 128
    symmetric: bool = False

    def __post_init__(self):
        check(self, "grid")

    def columns(self, K: int, name: str = "this linear") -> int:
        """The number of columns per group in a row of ``K``; ValueError where the group size does not divide it."""
        if self.group_size == -1:
            return K
        if K % self.group_size:
            raise ValueError(
                f"group_size {self.group_size} does not divide K={K} ({name}); "
                f"use a divisor of {K} or grid.group_size=-1"
            )
        return self.group_size

    @property
    def midpoint(self) -> float:
        """The zero of the symmetric grid."""
        return 2.0 ** (self.bits - 1) if self.bits > 1 else 0.5

    def fit(self, w: Tensor, clip: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Scale and zero per group; a group lies along the last dimension of ``w``, which the results lack.

        ``clip`` in (0, 1], one number or one per group, shrinks the range to +-clip max|w| (AWQ's clipping).
        """
        low, high = torch.aminmax(w.float(), dim=-1)
        limit = clip * torch.maximum(-low, high)
        if self.symmetric:
            scale = limit / (2.0 ** (self.bits - 1) - 1) if self.bits > 1 else 2 * clip * w.float().abs().mean(-1)
            return _float16(scale), torch.full_like(limit, self.midpoint)
        low = torch.maximum(low.clamp(max=0), -limit)
        high = torch.minimum(high.clamp(min=0), limit)
        scale = _float16((high - low) / (2**self.bits - 1))
        return scale, (-low / scale).round().clamp(0, 2**self.bits - 1)

    def encode(self, w: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Codes as float, clamp(round(w / s + z)); the arguments broadcast."""
        return (w / scale).add_(zero).round_().clamp_(0, 2**self.bits - 1)

    def decode(self, q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """s (q - z)."""
        return (q - zero) * scale


def _float16(scale: Tensor) -> Tensor:
    return scale.clamp(min=TINY).half().float()


def rounded(w_NK: Tensor, grid: Grid, clip_NG: Tensor | float = 1.0) -> Tensor:
    """The numbers of ``weights.round_to_nearest(...).dequantize()`` without storing codes; for searches."""
    N, K = w_NK.shape
    w_NGk = w_NK.float().view(N, -1, grid.columns(K))
    scale, zero = (x.unsqueeze(-1) for x in grid.fit(w_NGk, clip_NG))
    return grid.encode(w_NGk, scale, zero).sub_(zero).mul_(scale).view(N, K).float()


@dataclass(frozen=True)
class ActQuant:
    """Dynamic symmetric quantization of activations, one scale per token: SmoothQuant's "per-token" setting."""

    bits: Annotated[int, Range(2, 8)] = 8

    def __post_init__(self):
        check(self, "acts")

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` rounded along its last dimension, in the dtype of ``x``."""
        levels = 2 ** (self.bits - 1) - 1
        f = x.float()
        scale = f.abs().amax(-1, keepdim=True).div_(levels).clamp_(min=1e-8)
        return (f / scale).round_().mul_(scale).to(x.dtype)


def e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale rounded to the nearest e4m3 number, ties to even; the arguments broadcast."""
    return (x / scale).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def over_blocks(scale_nk: Tensor, N: int, K: int) -> Tensor:
    """The scale of each weight, float32 [N, K], from one per block of 128 x 128."""
    return scale_nk.float().repeat_interleave(FP8_BLOCK, 1)[:, :K].repeat_interleave(FP8_BLOCK, 0)[:N]


@dataclass(frozen=True)
class Fp8ActQuant(ActQuant):
    """Dynamic e4m3 activations, one float32 scale max|x| / 448 per token and 128 channels: those of the Qwen3-*-FP8
    models and of DeepSeek-V3 (arXiv 2412.19437, section 3.3.2). The last group of a token may be shorter."""

    bits: Literal[8] = 8

    def __call__(self, x: Tensor) -> Tensor:
        K = x.shape[-1]
        f = pad(x.float(), (0, -K % FP8_BLOCK)).unflatten(-1, (-1, FP8_BLOCK))
        scale = f.abs().amax(-1, keepdim=True).clamp_(min=1e-10).div_(E4M3_MAX)
        return e4m3(f, scale).float().mul_(scale).flatten(-2)[..., :K].to(x.dtype)
