"""b-bit weights times 8-bit activations in integers, y = x (s (q - z))^T, b = 1..8: W8A8, W4A8 and all between.

The frame is ``wna16``'s: the weight is the left operand, words go from memory to shared memory to the registers of the
matrix instruction, SPLIT programs share a row and the last one adds up. Three things differ.

No zero is left to subtract. Weights are symmetric, so q - z is a signed number of b bits, and ``pack_codes`` stores
that. Cut out of its word *at the top of a byte*, its sign bit is the byte's: the byte is 2^(8-b) (q - z), with no sign
extension and no sums of activations, and the power of two goes into the scale. A word's four bytes are one register of
the instruction, so four weights cost a shift and a logical operation, and 8 bits nothing. One bit has z = 1/2: with the
next bit set as well, the byte is 64 or -64, 2^7 (q - 1/2) just the same.

Sums are int32 and exact: |byte| <= 128 and |activation| <= 127, so rows of 132,104 columns fit. Where a scale is a
row's, a program's sums stay integers to its end.

Where groups are shorter, the sum of 128 columns, less than 2^21, becomes a float32 by additions: 1.5 2^23 + sum has the
sum in its mantissa. Conversion instructions, at an eighth of the rate, would take longer than the products.

Dimension key: M tokens, N output channels, K input channels, G groups of K.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qbench.kernels.digits import append, code, load_words
from qbench.kernels.pack import CHUNK, pack, unpack
from qbench.kernels.quantize import quantize
from qbench.kernels.splitk import finish, outputs, plan

COLUMNS = (2**31 - 1) // (128 * 127)  # of a row whose sum is sure to fit int32


def pack_codes(codes_NK: Tensor, bits: int) -> Tensor:
    """The words that ``linear`` reads, int32 [chunks, bits, N, 4], of a symmetric grid's codes 0..2^bits - 1."""
    return pack(codes_NK ^ (1 << bits - 1), bits, lanes=4)


def unpack_codes(words: Tensor, K: int) -> Tensor:
    """The codes [N, K], uint8, of ``pack_codes``'s words."""
    return unpack(words, K, lanes=4) ^ (1 << words.shape[1] - 1)


@triton.jit
def _slice(words, c: tl.constexpr, BITS: tl.constexpr):
    """Slice ``c`` as four int8 a word, 2^(8-b) (q - z): [rows, 16]."""
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
    """The rows' scales in a chunk, or of the rows."""
    at = n if GROUP == -1 else chunk // (GROUP // 128) * N + n
    return tl.load(s_ptr + at, mask=n < N, other=0.0).to(tl.float32)


@triton.jit
def _wna8(
    x_ptr,
    x_scale_ptr,
    w_ptr,
    s_ptr,
    y_ptr,
    sums_ptr,
    counter_ptr,
    M,
    N,
    K,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = n < N
    chunks = tl.cdiv(K, 128)
    share = tl.cdiv(chunks, SPLIT)
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, chunks)
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
            following = _scale(s_ptr, tl.minimum(chunk + 1, last - 1), n, N, GROUP)  # ahead, so that nobody waits
            part = tl.dot(_tile(words, 0, 8, BITS), x, out_dtype=tl.int32)
            y += scale[:, None] * ((part + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0)
            scale = following
    if GROUP == -1:
        y = y.to(tl.float32) * scale[:, None]
    x_scale = tl.load(x_scale_ptr + m, mask=m < M, other=0.0) * 2.0 ** (BITS - 8)
    finish(y * x_scale[None, :], y_ptr, sums_ptr, counter_ptr, n, m, N, M, SPLIT)


def check(K: int, group: int) -> None:
    """ValueError where the kernel cannot take rows of K columns in groups of ``group`` (-1: a row)."""
    if group != -1 and (group < 1 or group % CHUNK):
        raise ValueError(
            f"int8 products take one scale a row or groups of a multiple of {CHUNK} columns, got groups of {group}; "
            "quantize with grid.group_size=-1 or 128, or leave activations at 16 bits"
        )
    if group == -1 and K > COLUMNS:
        raise ValueError(f"int32 sums hold rows of {COLUMNS} columns, got K={K}; use grid.group_size=128")


def linear_quantized(
    xq_MK: Tensor,
    x_scale_M: Tensor,
    words: Tensor,
    scale_GN: Tensor,
    group: int,
    dtype: torch.dtype,
    counters: Tensor,
    config: dict,
) -> Tensor:
    """y [M, N] in ``dtype`` of activations that are int8 already, contiguous, none of them -128, with float32 scales.

    words: of ``pack_codes``. scale_GN: float16. group: columns of a group, a multiple of 128, or -1 for a row.
    counters: int32 zeros, one for each BLOCK_N rows, used where ``split`` > 1; calls that share them must not overlap
    in time. config: block_n (a multiple of 64), block_m (16 or more), split, warps, stages.

    Raises: ValueError as ``check`` does.
    """
    M, K = xq_MK.shape
    _, bits, N, _ = words.shape
    check(K, group)
    grid, tiles = plan(M, N, config)
    y, sums = outputs(M, N, tiles["SPLIT"], dtype, xq_MK.device)
    _wna8[grid](
        xq_MK,
        x_scale_M,
        words,
        scale_GN,
        y,
        sums,
        counters,
        M,
        N,
        K,
        GROUP=group,
        BITS=bits,
        EVEN=K % CHUNK == 0,
        **tiles,
    )
    return y


def linear(
    x_MK: Tensor, words: Tensor, scale_GN: Tensor, group: int, acts_bits: int, counters: Tensor, config: dict
) -> Tensor:
    """y [M, N] in the dtype of x: ``quantize`` with ``acts_bits``, then ``linear_quantized``."""
    xq_MK, x_scale_M = quantize(x_MK, acts_bits)
    return linear_quantized(xq_MK, x_scale_M, words, scale_GN, group, x_MK.dtype, counters, config)
