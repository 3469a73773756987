"""Quantized weights as they are stored: the tensors of each kind, decoding, and the number of bits.

Kernels, files and tables all dispatch on the class of a weight, so a new kind of weight starts here.

Dimension key: N output channels, K input channels, G groups of K, C blocks of columns; n, k blocks of 128 of N and K.
"""

from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from qbench.grid import FP8_BLOCK, Grid, over_blocks


class QuantWeight:
    """A quantized weight: a frozen dataclass whose fields are the stored tensors and plain values.

    Subclasses define ``dequantize() -> w_NK`` (float32), ``nominal_bits`` (what papers print) and ``stored_bits``
    (bits per weight with everything that decoding needs). ``notes`` lists what did not go as asked. ``kernel`` names
    the kind of kernel that multiplies with the packed weight (``qbench.kernels.packed``); None: there is none.
    """

    __dataclass_fields__: ClassVar[dict]  # subclasses are dataclasses
    kernel: ClassVar[str | None] = None
    notes: tuple[str, ...] = ()

    def dequantize(self) -> Tensor:
        """w_NK in float32."""
        raise NotImplementedError

    @property
    def nominal_bits(self) -> float:
        raise NotImplementedError

    @property
    def stored_bits(self) -> float:
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """{field: tensor}."""
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}

    def settings(self) -> dict:
        """{field: plain value}; ``type(self)(**state, **settings)`` is this weight again."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in values.items() if v is not None and not isinstance(v, Tensor)}

    def outline(self) -> "QuantWeight":
        """This weight on the meta device: kinds, shapes and settings without numbers."""
        return type(self)(**{name: t.to("meta") for name, t in self.state().items()}, **self.settings())


@dataclass(frozen=True)
class UniformWeight(QuantWeight):
    """Codes on a uniform grid. ``zero_NG`` is None on a symmetric grid.

    ``group_K`` is None where groups are runs of consecutive columns; otherwise it names each column's group (GPTQ with
    act_order and without static groups).
    """

    kernel = "uniform"
    codes_NK: Tensor  # uint8
    scale_NG: Tensor  # float16
    bits: int
    zero_NG: Tensor | None = None  # uint8
    group_K: Tensor | None = None  # int16
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        grid: Grid,
        codes_NK: Tensor,
        scale_NG: Tensor,
        zero_NG: Tensor,
        group_K: Tensor | None = None,
        notes: tuple[str, ...] = (),
    ) -> "UniformWeight":
        """Converts float32 results of a method to the stored types; ValueError for a scale beyond float16."""
        if not torch.isfinite(scale_NG).all():
            raise ValueError(
                "a scale is not a finite float16 number: the weight has NaN or inf, or its steps are above 65504"
            )
        return cls(
            codes_NK=codes_NK.to(torch.uint8).contiguous(),
            scale_NG=scale_NG.half().contiguous(),
            zero_NG=None if grid.symmetric else zero_NG.to(torch.uint8).contiguous(),
            bits=grid.bits,
            group_K=None if group_K is None else group_K.to(torch.int16),
            notes=tuple(notes),
        )

    @classmethod
    def outlines(cls, grid: Grid, shapes: dict[str, tuple[int, int]]) -> dict[str, QuantWeight]:
        """``outlined`` for linears of these shapes; ValueError where the groups do not divide K."""
        for name, (_, K) in shapes.items():
            grid.columns(K, name)
        return {name: cls.outlined(grid, N, K) for name, (N, K) in shapes.items()}

    @classmethod
    def outlined(cls, grid: Grid, N: int, K: int) -> "UniformWeight":
        """A weight [N, K] on ``grid`` on the meta device; a last group may be shorter."""
        codes_NK = torch.empty(N, K, device="meta")
        scale_NG = torch.empty(N, -(-K // (grid.group_size if grid.group_size > 0 else K)), device="meta")
        return cls(codes_NK.byte(), scale_NG.half(), grid.bits, None if grid.symmetric else scale_NG.byte())

    def split(self, rows: list[int]) -> list["UniformWeight"]:
        """Consecutive parts with the given numbers of rows, each in its own memory."""

        def part(some: slice) -> dict:
            return {k: (t if k == "group_K" else t[some]).clone() for k, t in self.state().items()}

        return [replace(self, **part(slice(end - n, end))) for n, end in zip(rows, accumulate(rows))]

    @property
    def grid(self) -> Grid:
        """The grid of its numbers; a row of one group counts as ungrouped, group_size -1."""
        (_, K), (_, G) = self.codes_NK.shape, self.scale_NG.shape
        return Grid(self.bits, K // G if G > 1 else -1, self.zero_NG is None)

    def zeros(self) -> Tensor:
        """The zero of every group, float32 [N, G], also on a symmetric grid, which stores none."""
        if self.zero_NG is not None:
            return self.zero_NG.float()
        return torch.full_like(self.scale_NG, self.grid.midpoint, dtype=torch.float32)

    def dequantize(self) -> Tensor:
        grid, codes, scale, zero = self.grid, self.codes_NK.float(), self.scale_NG.float(), self.zeros()
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
        """b bits per code, 16 per scale, b per zero, and 16 per column where ``group_K`` is stored."""
        bits = self.codes_NK.numel() * self.bits + self.scale_NG.numel() * 16
        bits += 0 if self.zero_NG is None else self.zero_NG.numel() * self.bits
        bits += 0 if self.group_K is None else self.group_K.numel() * 16
        return bits / self.codes_NK.numel()


@dataclass(frozen=True)
class FloatWeight(QuantWeight):
    """A weight that is not quantized."""

    w_NK: Tensor

    def dequantize(self) -> Tensor:
        return self.w_NK.float()

    @property
    def nominal_bits(self) -> float:
        return 16.0

    stored_bits = nominal_bits


def round_to_nearest(w_NK: Tensor, grid: Grid, clip_NG: Tensor | float = 1.0) -> UniformWeight:
    """Rounds every weight to the nearest level of its group's grid."""
    N, K = w_NK.shape
    w_NGk = w_NK.float().view(N, -1, grid.columns(K))
    scale_NG, zero_NG = grid.fit(w_NGk, clip_NG)
    codes = grid.encode(w_NGk, scale_NG.unsqueeze(-1), zero_NG.unsqueeze(-1))
    return UniformWeight.of(grid, codes.view(N, K), scale_NG, zero_NG)


@dataclass(frozen=True)
class BinaryWeight(QuantWeight):
    """BiLLM's weight: planes of signs, masks, and four (mean, scale) pairs per row and block of columns, for the parts
    salient, salient residual, concentrated and sparse."""

    kernel = "binary"
    sign_NK: Tensor  # bool
    residual_NK: Tensor  # bool: sign of the residual, used in salient columns
    salient_K: Tensor  # bool
    sparse_NK: Tensor  # bool: sparse part, used in the other columns
    levels_NC42: Tensor  # float16
    block_size: int
    count: str = "all"
    notes: tuple[str, ...] = ()

    def dequantize(self) -> Tensor:
        block_K = torch.arange(self.sign_NK.shape[1], device=self.sign_NK.device) // self.block_size
        mean_NK4, scale_NK4 = self.levels_NC42.float()[:, block_K].unbind(-1)

        def part(i: int, sign_NK: Tensor) -> Tensor:
            return mean_NK4[..., i] + scale_NK4[..., i] * (2.0 * sign_NK - 1)

        salient = part(0, self.sign_NK) + part(1, self.residual_NK)
        others = torch.where(self.sparse_NK, part(3, self.sign_NK), part(2, self.sign_NK))
        return torch.where(self.salient_K, salient, others)

    @property
    def nominal_bits(self) -> float:
        last_block = (len(self.salient_K) - 1) // self.block_size * self.block_size
        counted = self.salient_K if self.count == "all" else self.salient_K[last_block:]
        return 1 + counted.float().mean().item()

    @property
    def stored_bits(self) -> float:
        """Two bits per weight (the sign; the residual's sign or the part), one per column, 16 per level."""
        N, K = self.sign_NK.shape
        return (2 * N * K + K + 16 * self.levels_NC42.numel()) / (N * K)


@dataclass(frozen=True)
class Fp8Weight(QuantWeight):
    """e4m3 numbers with one scale per block of 128 x 128; blocks at the end of a row or column may be smaller."""

    codes_NK: Tensor  # float8_e4m3fn
    scale_nk: Tensor  # bfloat16 or float32, one per block
    nominal_bits: ClassVar[float] = 8.0

    @classmethod
    def outlined(cls, N: int, K: int, scales: torch.dtype = torch.bfloat16) -> "Fp8Weight":
        """A weight [N, K] on the meta device."""
        codes_NK = torch.empty(N, K, dtype=torch.float8_e4m3fn, device="meta")
        return cls(codes_NK, torch.empty(-(-N // FP8_BLOCK), -(-K // FP8_BLOCK), dtype=scales, device="meta"))

    def dequantize(self) -> Tensor:
        return self.codes_NK.float() * over_blocks(self.scale_nk, *self.codes_NK.shape)

    @property
    def stored_bits(self) -> float:
        """8 bits per weight and 16 or 32 per scale."""
        return 8 + 8 * self.scale_nk.nbytes / self.codes_NK.numel()
