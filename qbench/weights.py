"""Quantized weights as they are stored: what each class holds, how it decodes and how many bits it takes.

The kernels, the files and the tables each look at the class of a weight, so a new kind of weight starts here.

Dimension key: N output channels, K input channels, G groups of K, C blocks of columns.
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from qbench.grid import Grid


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


def round_to_nearest(w_NK: Tensor, grid: Grid, clip_NG: Tensor | float = 1.0) -> UniformWeight:
    """Every weight to the nearest level of its group's grid."""
    N, K = w_NK.shape
    w_NGk = w_NK.float().view(N, -1, grid.columns(K))
    scale_NG, zero_NG = grid.fit(w_NGk, clip_NG)
    codes = grid.encode(w_NGk, scale_NG.unsqueeze(-1), zero_NG.unsqueeze(-1))
    return UniformWeight.of(grid, codes.view(N, K), scale_NG, zero_NG)


@dataclass(frozen=True)
class BinaryWeight(QuantWeight):
    """Planes of signs, masks, and for each row and block four (mean, scale) pairs: salient, salient residual,
    concentrated, sparse."""

    kernel = "binary"
    sign_NK: Tensor  # bool
    residual_NK: Tensor  # bool, meaningful in salient columns
    salient_K: Tensor  # bool
    sparse_NK: Tensor  # bool, meaningful in the other columns
    levels_NC42: Tensor  # float16
    block_size: int
    count: str = "all"
    notes: tuple[str, ...] = ()

    def dequantize(self):
        K = self.sign_NK.shape[1]
        column = torch.arange(K, device=self.sign_NK.device) // self.block_size
        levels = self.levels_NC42.float()[:, column]  # N, K, 4, 2
        value = lambda part, sign: levels[:, :, part, 0] + levels[:, :, part, 1] * (2.0 * sign - 1)  # noqa: E731
        salient = value(0, self.sign_NK) + value(1, self.residual_NK)
        return torch.where(
            self.salient_K,
            salient,
            torch.where(self.sparse_NK, value(3, self.sign_NK), value(2, self.sign_NK)),
        )

    @property
    def nominal_bits(self):
        last_block = (len(self.salient_K) - 1) // self.block_size * self.block_size
        counted = self.salient_K if self.count == "all" else self.salient_K[last_block:]
        return 1 + counted.float().mean().item()

    @property
    def stored_bits(self):
        """A sign everywhere; on top, a second sign in salient columns and a part elsewhere; column mask; 16 a level."""
        N, K = self.sign_NK.shape
        return (2 * N * K + K + 16 * self.levels_NC42.numel()) / (N * K)
