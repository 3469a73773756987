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

from typing import ClassVar

import torch
import triton
import triton.language as tl

from qbench.kernels.base import Packed, random_words
from qbench.kernels.digits import load_words, offset, tile16
from qbench.kernels.launch import dot, rounded
from qbench.kernels.pack import CHUNK, chunks, pack
from qbench.kernels.splitk import finish, plan, tile
from qbench.weights import QuantWeight


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


class PackedBinary(Packed):
    """BiLLM's ``BinaryWeight``: two planes of bits, salient columns, eight levels per row and block.

    words [chunks, 2, N, 4]: the planes s and b, each ``pack(plane, 1)``. salient_K uint8. levels_C8N float16: mean and
    scale of salient, residual, concentrated and sparse weights. block: columns per block, a multiple of 128.
    """

    kernel = "binary"
    rows: ClassVar = {"words": 2, "levels_C8N": 2}
    about = ("K", "block")

    def __init__(self, words, salient_K, levels_C8N, K: int, block: int):
        tensors = dict(salient_K=salient_K.to(torch.uint8), levels_C8N=levels_C8N.contiguous())
        super().__init__(K, 1, words, **tensors)
        self.block = block

    @classmethod
    def of(cls, weight: QuantWeight) -> "PackedBinary":
        check_block(weight.block_size)
        second = torch.where(weight.salient_K, weight.residual_NK, weight.sparse_NK)
        words = torch.cat([pack(plane, 1) for plane in (weight.sign_NK, second)], 1)
        levels = weight.levels_NC42.permute(1, 2, 3, 0).flatten(1, 2)  # C, 8, N
        return cls(words, weight.salient_K, levels, weight.sign_NK.shape[1], weight.block_size)

    @classmethod
    def random(cls, N, K, salient=0.06, device="cuda", seed=0) -> "PackedBinary":
        """Random signs and parts, the share ``salient`` of salient columns, levels of about K^-1/2."""
        words, draw = random_words(N, K, 2, device, seed)
        mask = torch.rand(K, device=device, generator=draw) < salient
        levels = torch.rand(chunks(K), 8, N, device=device, generator=draw) * K**-0.5
        return cls(words, mask, levels.half(), K, CHUNK)

    def _fused(self, x_MK, config):
        M, K = x_MK.shape
        grid, tiles, y, sums = plan(M, self.words, config, x_MK.dtype)
        _binary[grid](
            x_MK, self.words, self.salient_K, self.levels_C8N, y, sums, self.counters, M, self.N, K,
            CHUNKS=self.block // CHUNK, **tiles,
        )  # fmt: skip
        return y

    def dequantize(self, dtype):
        out = torch.empty(self.N, self.K, dtype=dtype, device=self.words.device)
        _dequantize[len(self.words), triton.cdiv(self.N, 64)](
            self.words, self.salient_K, self.levels_C8N, out, self.N, self.K, CHUNKS=self.block // CHUNK, BLOCK_N=64
        )
        return out


def check_block(block_size: int) -> None:
    """ValueError where the kernel cannot take BiLLM's blocks of ``block_size`` columns."""
    if block_size % CHUNK:
        raise ValueError(
            f"the kernel takes BiLLM's blocks in multiples of {CHUNK} columns, got block_size={block_size}; "
            f"quantize with method.block_size={CHUNK}"
        )
