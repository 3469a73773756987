"""Number grids: what a low-bit weight is and how a float becomes one.

Dimension key: N output channels, K input channels, G groups of K, T tokens.

A group of weights w is stored as integer codes q in 0..2^b - 1 with w ~ s (q - z). ``s`` is a float16
number, one a group, and the codes are chosen with the float16 value, so what is measured is what is stored.

* Asymmetric (z an integer in 0..2^b - 1): [min(w, 0), max(w, 0)] is cut into 2^b - 1 equal steps. At one bit
  that leaves {0, s} or {-s, 0}: zero itself is always on the grid.
* Symmetric (z = 2^(b-1), not stored): s = max|w| / (2^(b-1) - 1), SmoothQuant's equation 1. At one bit this has no
  meaning, so the levels are -m and +m with m = mean|w|, the least-squares choice (XNOR-Net, arXiv 1603.05279).
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from qbench.settings import check

TINY = 2.0**-24  # the smallest positive float16


@dataclass(frozen=True)
class Grid:
    """``bits`` 1..8; ``group_size`` input channels share a scale, -1: a whole row; see the module docstring."""

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False

    def __post_init__(self):
        check(self, "grid")
        if not 1 <= self.bits <= 8:
            raise ValueError(f"grid.bits must be a whole number from 1 to 8, got {self.bits}")
        if self.group_size < 1 and self.group_size != -1:
            raise ValueError(f"grid.group_size must be -1 (a whole row) or a positive number, got {self.group_size}")

    def columns(self, K: int, name: str = "this linear") -> int:
        """Columns of one group in a row of ``K``; ValueError where the group size does not divide it."""
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
        """Scale and zero of groups of weights that lie along the last dimension, which the results lack.

        ``clip`` in (0, 1], a number or one a group, shrinks the range to +-clip max|w| (AWQ's clipping).
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
        """clamp(round(w / s + z)) as float; the arguments broadcast."""
        return (w / scale).add_(zero).round_().clamp_(0, 2**self.bits - 1)

    def decode(self, q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """s (q - z)."""
        return (q - zero) * scale


def _float16(scale: Tensor) -> Tensor:
    return scale.clamp(min=TINY).half().float()


class QuantWeight:
    """A quantized weight: a frozen dataclass whose fields are tensors (what is stored) and plain values.

    Subclasses give ``dequantize() -> w_NK`` (float32), ``nominal_bits`` (what papers print) and ``stored_bits``
    (bits a weight with everything that decoding needs). ``notes`` says what did not go as asked. ``kernel`` names the
    kind of kernel that multiplies with it packed (``qbench.kernels.packed``), None where there is none.
    """

    kernel: ClassVar[str | None] = None
    notes: tuple[str, ...] = ()

    def state(self) -> dict[str, Tensor]:
        """The tensors, by field name."""
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}

    def settings(self) -> dict:
        """The plain values, by field name; ``type(self)(**state, **settings)`` is this weight again."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in values.items() if v is not None and not isinstance(v, Tensor)}


@dataclass(frozen=True)
class UniformWeight(QuantWeight):
    """Codes on a uniform grid. ``zero_NG`` is None on a symmetric grid.

    ``group_K`` is None where groups are runs of consecutive columns, else each column's group (GPTQ with
    act_order and groups that move).
    """

    kernel = "uniform"
    codes_NK: Tensor  # uint8
    scale_NG: Tensor  # float16
    bits: int
    zero_NG: Tensor | None = None  # uint8
    group_K: Tensor | None = None  # int16
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, grid: Grid, codes_NK: Tensor, scale_NG: Tensor, zero_NG: Tensor, group_K=None, notes=()):
        """Stores what a method computed in float32."""
        if not torch.isfinite(scale_NG).all():
            raise ValueError(
                "a scale is not a finite float16 number: the weight has NaN or inf, or is over 65504 steps wide"
            )
        return cls(
            codes_NK=codes_NK.to(torch.uint8).contiguous(),
            scale_NG=scale_NG.half().contiguous(),
            zero_NG=None if grid.symmetric else zero_NG.to(torch.uint8).contiguous(),
            bits=grid.bits,
            group_K=None if group_K is None else group_K.to(torch.int16),
            notes=tuple(notes),
        )

    def split(self, rows: list[int]) -> list["UniformWeight"]:
        """The weight cut into runs of so many rows, each in memory of its own."""

        def cut(x):
            return [None] * len(rows) if x is None else [part.clone() for part in x.split(rows)]

        groups = [None if self.group_K is None else self.group_K.clone() for _ in rows]
        parts = zip(cut(self.codes_NK), cut(self.scale_NG), cut(self.zero_NG), groups)
        return [replace(self, codes_NK=c, scale_NG=s, zero_NG=z, group_K=g) for c, s, z, g in parts]

    def dequantize(self) -> Tensor:
        grid, codes, scale = Grid(self.bits, -1, self.zero_NG is None), self.codes_NK.float(), self.scale_NG.float()
        zero = torch.full_like(scale, grid.midpoint) if self.zero_NG is None else self.zero_NG.float()
        if self.group_K is not None:
            group_K = self.group_K.long()
            return grid.decode(codes, scale[:, group_K], zero[:, group_K])
        codes_NGk = codes.view(*scale.shape, -1)
        return grid.decode(codes_NGk, scale.unsqueeze(-1), zero.unsqueeze(-1)).view_as(codes)

    @property
    def nominal_bits(self) -> float:
        return float(self.bits)

    @property
    def stored_bits(self) -> float:
        """b bits a code, 16 a scale, b a zero, 16 a column where groups move."""
        bits = self.codes_NK.numel() * self.bits + self.scale_NG.numel() * 16
        bits += 0 if self.zero_NG is None else self.zero_NG.numel() * self.bits
        bits += 0 if self.group_K is None else self.group_K.numel() * 16
        return bits / self.codes_NK.numel()


@dataclass(frozen=True)
class FloatWeight(QuantWeight):
    """A weight left as it was."""

    w_NK: Tensor

    def dequantize(self) -> Tensor:
        return self.w_NK.float()

    @property
    def nominal_bits(self) -> float:
        return 16.0

    stored_bits = nominal_bits


def rounded(w_NK: Tensor, grid: Grid, clip_NG: Tensor | float = 1.0) -> Tensor:
    """``round_to_nearest(...).dequantize()``, the same numbers without a detour over storage; for searches."""
    N, K = w_NK.shape
    w_NGk = w_NK.float().view(N, -1, grid.columns(K))
    scale, zero = (x.unsqueeze(-1) for x in grid.fit(w_NGk, clip_NG))
    return grid.encode(w_NGk, scale, zero).sub_(zero).mul_(scale).view(N, K).float()


def round_to_nearest(w_NK: Tensor, grid: Grid, clip_NG: Tensor | float = 1.0) -> UniformWeight:
    """Every weight to the nearest level of its group's grid."""
    N, K = w_NK.shape
    w_NGk = w_NK.float().view(N, -1, grid.columns(K))
    scale_NG, zero_NG = grid.fit(w_NGk, clip_NG)
    codes = grid.encode(w_NGk, scale_NG.unsqueeze(-1), zero_NG.unsqueeze(-1))
    return UniformWeight.of(grid, codes.view(N, K), scale_NG, zero_NG)


@dataclass(frozen=True)
class ActQuant:
    """Dynamic symmetric quantization of activations, one scale a token: SmoothQuant's "per-token" setting."""

    bits: int = 8

    def __post_init__(self):
        check(self, "acts")
        if not 2 <= self.bits <= 8:
            raise ValueError(f"acts.bits must be a whole number from 2 to 8, got {self.bits}")

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` rounded to its grid along the last dimension, in the dtype of ``x``."""
        levels = 2 ** (self.bits - 1) - 1
        f = x.float()
        scale = f.abs().amax(-1, keepdim=True).div_(levels).clamp_(min=1e-8)
        return (f / scale).round_().mul_(scale).to(x.dtype)
