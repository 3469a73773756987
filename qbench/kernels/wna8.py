"""b-bit weights times 8-bit activations in integers, y = x (s (q - z))^T, b = 1..8 (W8A8, W4A8 and so on).

As in ``wna16``, the weight is the left operand, words go from memory to shared memory to the registers of the matrix
instruction, and SPLIT programs share a row. Three things differ.

No zero is subtracted. Weights are symmetric, so q - z is a signed number of b bits, and ``pack_codes`` stores that
number. A kernel cuts it out of its word into the top bits of a byte. Its sign bit is then the byte's, and the byte is
2^(8-b) (q - z), without sign extension or sums of activations; the power of two goes into the scale. The four bytes of
a word are one register of the instruction, so four weights cost one shift and one logical operation, and 8-bit weights
cost nothing. One bit has z = 1/2: with the next bit set as well, the byte is 64 or -64, which is 2^7 (q - 1/2) too.

Sums are int32 and exact: |byte| <= 128 and |activation| <= 127, so rows of up to 132,104 columns fit. With one scale
per row, a program's sums stay integers until its end.

With shorter groups, the sum of 128 columns, less than 2^21, is converted to float32 by additions: 1.5 2^23 + sum has
the sum in its mantissa. Conversion instructions, at an eighth of the rate, would take longer than the products.

Dimension key: M tokens, N output channels, K input channels, G groups of K.
"""

from typing import ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from qbench.grid import ActQuant
from qbench.kernels.base import Packed, random_codes
from qbench.kernels.digits import append, code, load_words
from qbench.kernels.pack import CHUNK, pack, unpack
from qbench.kernels.quantize import quantize
from qbench.kernels.splitk import finish, plan, tile
from qbench.weights import UniformWeight

COLUMNS = (2**31 - 1) // (128 * 127)  # of the longest row whose sum always fits int32


def pack_codes(codes_NK: Tensor, bits: int) -> Tensor:
    """The words that the kernel reads, int32 [chunks, bits, N, 4], of a symmetric grid's codes 0..2^bits - 1."""
    return pack(codes_NK ^ (1 << bits - 1), bits, lanes=4)


def unpack_codes(words: Tensor, K: int) -> Tensor:
    """The codes [N, K], uint8, of ``pack_codes``'s words."""
    return unpack(words, K, lanes=4) ^ (1 << words.shape[1] - 1)


@triton.jit
def _slice(words, c: tl.constexpr, BITS: tl.constexpr):
    """Slice ``c`` as four int8 per word, 2^(8-b) (q - z): [rows, 16]."""
    ALSO: tl.constexpr = 0x40404040 if BITS == 1 else 0
    four = code(words, c, BITS, 4, 8 - BITS, ALSO)
    even = tl.join(four.to(tl.int8), (four >> 16).to(tl.int8))
    odd = tl.join((four >> 8).to(tl.int8), (four >> 24).to(tl.int8))
    ROWS: tl.constexpr = four.shape[0]
    return tl.reshape(tl.join(even, odd), [ROWS, 16])


@triton.jit
def _tile(words, first: tl.constexpr, count: tl.constexpr, BITS: tl.constexpr):
    """Slices first .. first + count (a power of two) of a chunk: [rows, 16 count]."""
    if count == 1:
        return _slice(words, first, BITS)
    else:
        return append(_tile(words, first, count // 2, BITS), _tile(words, first + count // 2, count // 2, BITS))


@triton.jit
def _scale(s_ptr, chunk, n, N, GROUP: tl.constexpr):
    """The scales of the rows, in a chunk or for all of K."""
    at = n if GROUP == -1 else chunk // (GROUP // 128) * N + n
    return tl.load(s_ptr + at, mask=n < N, other=0.0).to(tl.float32)


@triton.jit
def _wna8(
    x_ptr, x_scale_ptr, w_ptr, s_ptr, y_ptr, sums_ptr, counter_ptr, M, N, K,
    GROUP: tl.constexpr, BITS: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    n, m, chunks, first, last = tile(K, BLOCK_N, BLOCK_M, SPLIT)
    inside = n < N
    y = tl.zeros([BLOCK_N, BLOCK_M], tl.int32 if GROUP == -1 else tl.float32)
    scale = _scale(s_ptr, 0 if GROUP == -1 else tl.minimum(first, chunks - 1), n, N, GROUP)
    for chunk in tl.range(first, last, num_stages=STAGES):
        words = load_words(w_ptr, chunk, n, N, BITS, inside)
        k = chunk * 128 + tl.arange(0, 128)
        mask = m[None, :] < M if EVEN else (m[None, :] < M) & (k[:, None] < K)
        x = tl.load(x_ptr + m.to(tl.int64)[None, :] * K + k[:, None], mask=mask, other=0)
        if GROUP == -1:
            y = tl.dot(_tile(words, 0, 8, BITS), x, y, out_dtype=tl.int32)
        else:
            following = _scale(s_ptr, tl.minimum(chunk + 1, last - 1), n, N, GROUP)  # loaded ahead
            part = tl.dot(_tile(words, 0, 8, BITS), x, out_dtype=tl.int32)
            y += scale[:, None] * ((part + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0)
            scale = following
    if GROUP == -1:
        y = y.to(tl.float32) * scale[:, None]
    x_scale = tl.load(x_scale_ptr + m, mask=m < M, other=0.0) * 2.0 ** (BITS - 8)
    finish(y * x_scale[None, :], y_ptr, sums_ptr, counter_ptr, n, m, N, M, SPLIT)


def check(K: int, group: int) -> None:
    """ValueError where the kernel cannot take rows of K columns in groups of ``group`` (-1: the whole row)."""
    if group != -1 and (group < 1 or group % CHUNK):
        raise ValueError(
            f"int8 products take one scale per row or groups of a multiple of {CHUNK} columns, got groups of {group}; "
            "quantize with grid.group_size=-1 or 128, or leave activations at 16 bits"
        )
    if group == -1 and K > COLUMNS:
        raise ValueError(f"int32 sums hold rows of {COLUMNS} columns, got K={K}; use grid.group_size=128")


class PackedInteger(Packed):
    """b-bit codes of a symmetric grid; activations rounded to 8 bits or less, one scale per token ("wNa8")."""

    kernel = "wna8"
    rows: ClassVar = {"words": 2, "scale_GN": 1}
    about = ("K", "group", "acts_bits")

    def __init__(self, words, scale_GN, K: int, group: int, acts_bits: int):
        check(K, group)
        super().__init__(K, words.shape[1], words, scale_GN=scale_GN.contiguous())
        self.group, self.acts_bits = group, acts_bits

    @classmethod
    def of(cls, weight: UniformWeight, acts: ActQuant) -> "PackedInteger":
        K, G = weight.codes_NK.shape[1], weight.scale_NG.shape[1]
        if weight.zero_NG is not None or weight.group_K is not None:
            raise ValueError(
                "integer products take symmetric weights in groups of consecutive columns; quantize with "
                "grid.symmetric=true and without moving groups, or leave activations at 16 bits"
            )
        words = pack_codes(weight.codes_NK, weight.bits)
        return cls(words, weight.scale_NG.T, K, -1 if G == 1 else K // G, acts.bits)

    @classmethod
    def random(cls, N, K, bits, group_size=-1, acts_bits=8, device="cuda", seed=0) -> "PackedInteger":
        """Random codes; the weights are of about K^-1/2."""
        words, scale, _ = random_codes(N, K, bits, group_size, device, seed)
        return cls(words, scale, K, -1 if len(scale) == 1 else group_size, acts_bits)

    def _fused(self, x_MK, config):
        return self.multiply_codes(*quantize(x_MK, self.acts_bits), x_MK.dtype, config)

    def multiply_codes(
        self, xq_MK: Tensor, x_scale_M: Tensor, dtype: torch.dtype, config: dict | None = None
    ) -> Tensor:
        """y [M, N] in ``dtype`` of activations that ``quantize`` made: int8, contiguous and none of them -128, with
        float32 scales. ``config``: of ``configs``, which chooses where it is None."""
        M, K = xq_MK.shape
        grid, tiles, y, sums = plan(M, self.words, config or self.config(M), dtype)
        _wna8[grid](
            xq_MK, x_scale_M, self.words, self.scale_GN, y, sums, self.counters, M, self.N, K,
            GROUP=self.group, BITS=self.bits, EVEN=K % CHUNK == 0, **tiles,
        )  # fmt: skip
        return y

    def dequantize(self, dtype):
        codes_NK = unpack_codes(self.words, self.K)
        return UniformWeight(codes_NK, self.scale_GN.T.contiguous(), self.bits).dequantize().to(dtype)
