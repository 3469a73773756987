"""BiLLM's weights times 16-bit activations, from two bit planes, a mask of salient columns, and the levels.

In a column that is not salient, a weight has a sign bit s and a part b (0 concentrated, 1 sparse). Its value is
m_b + (2 s - 1) a_b, with the mean m and the scale a of its row, block and part. In a salient column the value is
m + (2 s - 1) a + m' + (2 r - 1) a', with a second sign r stored in the place of b. Both are linear in s, b and s xor b,

    not salient:  (m_0 - a_0) + (a_0 + a_1) s + (m_1 - m_0) b - (a_1 - a_0) (s xor b)
    salient:      (m + m' - a - a') + 2 a s + 2 a' r

so each row and block needs sums of activations over bits. These are matrix products of planes: s and b with the salient
and with the other activations, s xor b (one operation for 32 weights) with the others. No weight is ever dequantized.

Dimension key: M tokens, N output channels, K input channels, C blocks of columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qbench.kernels.digits import load_words, offset, tile16
from qbench.kernels.interpreter import dot, rounded
from qbench.kernels.pack import CHUNK
from qbench.kernels.splitk import finish, outputs, plan, tile


@triton.jit
def _levels(levels_ptr, block, n, N):
    """(mean, scale) of salient, residual, concentrated, sparse: eight vectors over rows."""
    found = ()
    for i in tl.static_range(8):
        found = found + (tl.load(levels_ptr + (block * 8 + i) * N + n, mask=n < N, other=0.0).to(tl.float32),)  # noqa: RUF005
    return found


@triton.jit
def _binary(
    x_ptr, w_ptr, salient_ptr, levels_ptr, y_ptr, sums_ptr, counter_ptr, M, N, K,
    CHUNKS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    OFFSET: tl.constexpr = offset(dtype, 1)
    n, m, chunks, first, last = tile(K, BLOCK_N, BLOCK_M, SPLIT)
    y = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    zeros = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    zero = tl.full([], 0.0, dtype)
    now = _levels(levels_ptr, tl.minimum(first, chunks - 1) // CHUNKS, n, N)  # a program may have no chunks
    for chunk in tl.range(first, last, num_stages=STAGES):
        words = load_words(w_ptr, chunk, n, N, 2, n < N)
        then = _levels(levels_ptr, tl.minimum(chunk + 1, last - 1) // CHUNKS, n, N)  # loaded one chunk ahead
        k = chunk * 128 + tl.arange(0, 128)
        salient = (tl.load(salient_ptr + k, mask=k < K, other=0) != 0)[:, None]
        inside = (m[None, :] < M) & (k[:, None] < K)
        both = tl.load(x_ptr + m.to(tl.int64)[None, :] * K + k[:, None], mask=inside, other=0.0)
        x = tl.where(salient, zero, both)
        x_salient = tl.where(salient, both, zero)
        s = tile16((words[0],), 0, 16, 1, dtype)
        b = tile16((words[1],), 0, 16, 1, dtype)
        s_or_b = tile16((words[0] ^ words[1],), 0, 16, 1, dtype)
        m0, a0, m1, a1, m2, a2, m3, a3 = now
        total = tl.sum(x.to(tl.float32), 0)[None, :]
        y += (m2 - a2)[:, None] * total
        y += (a2 + a3)[:, None] * (dot(s, x, zeros) - OFFSET * total)
        y += (m3 - m2)[:, None] * (dot(b, x, zeros) - OFFSET * total)
        y -= (a3 - a2)[:, None] * (dot(s_or_b, x, zeros) - OFFSET * total)
        total = tl.sum(x_salient.to(tl.float32), 0)[None, :]
        y += (m0 + m1 - a0 - a1)[:, None] * total
        y += (2 * a0)[:, None] * (dot(s, x_salient, zeros) - OFFSET * total)
        y += (2 * a1)[:, None] * (dot(b, x_salient, zeros) - OFFSET * total)
        now = then
    finish(y, y_ptr, sums_ptr, counter_ptr, n, m, N, M, SPLIT)


@triton.jit
def _dequantize(w_ptr, salient_ptr, levels_ptr, out_ptr, N, K, CHUNKS: tl.constexpr, BLOCK_N: tl.constexpr):
    chunk = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = chunk * 128 + tl.arange(0, 128)
    words = load_words(w_ptr, chunk, n, N, 2, n < N)
    salient = tl.load(salient_ptr + k, mask=k < K, other=0)[None, :] != 0
    s = 2 * (tile16((words[0],), 0, 16, 1, tl.float16).to(tl.float32) - 2.0) - 1
    b = tile16((words[1],), 0, 16, 1, tl.float16).to(tl.float32) - 2.0
    m0, a0, m1, a1, m2, a2, m3, a3 = _levels(levels_ptr, chunk // CHUNKS, n, N)
    first = m0[:, None] + a0[:, None] * s
    second = m1[:, None] + a1[:, None] * (2 * b - 1)
    other = tl.where(b > 0, m3[:, None] + a3[:, None] * s, m2[:, None] + a2[:, None] * s)
    w = rounded(tl.where(salient, first + second, other), out_ptr.dtype.element_ty)
    at = n.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(out_ptr + at, w, mask=(n[:, None] < N) & (k[None, :] < K))


def linear(
    x_MK: Tensor, words: Tensor, salient_K: Tensor, levels_C8N: Tensor, block: int, counters: Tensor, config: dict
) -> Tensor:
    """y [M, N] in the dtype of x.

    words [chunks, 2, N, 4]: the planes s and b, each ``pack(plane, 1)``. salient_K uint8. levels_C8N float16: mean and
    scale of salient, residual, concentrated and sparse weights. block: columns per block, a multiple of 128. counters
    and config as in ``wna16.linear``.
    """
    M, K = x_MK.shape
    N = words.shape[2]
    grid, tiles = plan(M, N, config)
    y, sums = outputs(M, N, tiles["SPLIT"], x_MK.dtype, x_MK.device)
    _binary[grid](x_MK, words, salient_K, levels_C8N, y, sums, counters, M, N, K, CHUNKS=block // CHUNK, **tiles)
    return y


def dequantize(words: Tensor, salient_K: Tensor, levels_C8N: Tensor, block: int, K: int, dtype: torch.dtype) -> Tensor:
    """The weight, computed in float32 and rounded to ``dtype``, [N, K]."""
    chunks, _, N, _ = words.shape
    out = torch.empty(N, K, dtype=dtype, device=words.device)
    grid = (chunks, triton.cdiv(N, 64))
    _dequantize[grid](words, salient_K, levels_C8N, out, N, K, CHUNKS=block // CHUNK, BLOCK_N=64)
    return out
