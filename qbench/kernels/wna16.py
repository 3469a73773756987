"""b-bit weights times 16-bit activations, y = x (s (q - z))^T, b = 1..8.

The weight is the left operand: a program owns BLOCK_N output channels and up to BLOCK_M tokens, so a single token
wastes columns of the small operand and no rows of the weight. Weights go from memory to shared memory by asynchronous
copies, STAGES ahead, and from there to registers in the layout of the matrix instruction, where ``digits`` makes
numbers of them. They are never stored dequantized.

The instruction multiplies the integer q + offset, which is exact in 16 bits. Scales and zeros are applied to its
float32 sums, once per group:

    y_mn = sum_g s_ng ( sum_{k in g} (q_nk + offset) x_mk - (z_ng + offset) sum_{k in g} x_mk )

so no weight is rounded, and a scale costs one multiplication per group instead of one per weight. Where a group is a
whole row, scale and zero are applied at the end. Groups that are no multiple of 128, nor 64, 32 or 16, are scaled
weight by weight.

One token does not fill a GPU, so SPLIT programs share the chunks of a row (``splitk``): one launch, the same bits every
time, and counters that are zero again afterwards, so a CUDA graph can hold it.

For many tokens, ``dequantize.dequantize`` and a product of the vendor's library are faster; ``configs`` says from when.

Dimension key: M tokens, N output channels, K input channels, G groups of K.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from qbench.grid import Grid
from qbench.kernels.base import Packed, random_codes
from qbench.kernels.dequantize import dequantize, scaled
from qbench.kernels.digits import load_words, offset, tile16
from qbench.kernels.launch import dot, rounded
from qbench.kernels.pack import CHUNK, chunks, pack
from qbench.kernels.splitk import finish, plan, tile
from qbench.weights import UniformWeight


@triton.jit
def _groups(s_ptr, z_ptr, chunk, rows, mask, N, PER_CHUNK: tl.constexpr, CHUNKS: tl.constexpr, MIDDLE: tl.constexpr):
    """Scale and zero of each group of a chunk, in turn: 2 PER_CHUNK vectors over rows."""
    found = ()
    for i in tl.static_range(PER_CHUNK):
        at = (chunk * PER_CHUNK + i) // CHUNKS * N + rows
        scale = tl.load(s_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if z_ptr is None:
            found = found + (scale, scale * 0 + MIDDLE)  # noqa: RUF005
        else:
            found = found + (scale, tl.load(z_ptr + at, mask=mask, other=0).to(tl.float32))  # noqa: RUF005
    return found


@triton.jit
def _activations(x_ptr, k, m, M, K, EVEN: tl.constexpr):
    """x as [columns, tokens], zero outside."""
    mask = m[None, :] < M if EVEN else (m[None, :] < M) & (k[:, None] < K)
    return tl.load(x_ptr + m.to(tl.int64)[None, :] * K + k[:, None], mask=mask, other=0.0)


@triton.jit
def _first_token(x_ptr, chunk, K, WANTED: tl.constexpr):
    """A chunk of the first token's activations as float32; zeros where they are not wanted."""
    if WANTED:
        k = chunk * 128 + tl.arange(0, 128)
        return tl.load(x_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    else:
        return tl.zeros([128], tl.float32)


@triton.jit
def _wna16(
    x_ptr, w_ptr, s_ptr, z_ptr, y_ptr, sums_ptr, counter_ptr, M, N, K,
    GROUP: tl.constexpr, BITS: tl.constexpr, MIDDLE: tl.constexpr, EVEN: tl.constexpr, SINGLE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    OFFSET: tl.constexpr = offset(dtype, BITS)
    n, m, chunks, first, last = tile(K, BLOCK_N, BLOCK_M, SPLIT)
    inside = n < N
    y = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    nothing = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    if GROUP == -1:  # the whole row: sums first, scale and zero once
        APART: tl.constexpr = 128 if BLOCK_M <= 32 else 1  # separate sums per column, where registers suffice
        x_sums = tl.zeros([APART, BLOCK_M], tl.float32)
        for chunk in tl.range(first, last, num_stages=STAGES):
            words = load_words(w_ptr, chunk, n, N, BITS, inside)
            x = _activations(x_ptr, chunk * 128 + tl.arange(0, 128), m, M, K, EVEN)
            part = dot(tile16(words, 0, 16, BITS, dtype), x, nothing)
            y = tl.fma(part, 1.0, y)  # Triton would fuse a plain sum into the product and wait for each instruction
            x_sums += x.to(tl.float32) if APART > 1 else tl.sum(x.to(tl.float32), 0)[None, :]
        scale, zero = _groups(s_ptr, z_ptr, 0, n, inside, N, 1, 1, MIDDLE)
        y = scale[:, None] * (y - (zero + OFFSET)[:, None] * tl.sum(x_sums, 0)[None, :])
    elif GROUP % 128 == 0 or GROUP == 64 or GROUP == 32 or GROUP == 16:
        PER_CHUNK: tl.constexpr = max(128 // GROUP, 1)
        CHUNKS: tl.constexpr = max(GROUP // 128, 1)
        WIDTH: tl.constexpr = 128 // PER_CHUNK
        start = tl.minimum(first, chunks - 1)  # a program may have no chunks
        now = _groups(s_ptr, z_ptr, start, n, inside, N, PER_CHUNK, CHUNKS, MIDDLE)
        x_now = _first_token(x_ptr, first, K, SINGLE)
        for chunk in tl.range(first, last, num_stages=STAGES):
            words = load_words(w_ptr, chunk, n, N, BITS, inside)
            following = tl.minimum(chunk + 1, last - 1)  # loaded one chunk ahead, to hide the latency of scales
            then = _groups(s_ptr, z_ptr, following, n, inside, N, PER_CHUNK, CHUNKS, MIDDLE)
            x_then = _first_token(x_ptr, following, K, SINGLE)
            for i in tl.static_range(PER_CHUNK):
                x = _activations(x_ptr, chunk * 128 + i * WIDTH + tl.arange(0, WIDTH), m, M, K, EVEN)
                part = dot(tile16(words, i * WIDTH // 8, WIDTH // 8, BITS, dtype), x, nothing)
                if SINGLE:  # noqa: SIM108  the other 15 columns of x are zero
                    x_sum = tl.sum(x_now, 0)
                else:
                    x_sum = tl.sum(x.to(tl.float32), 0)[None, :]
                y += now[2 * i][:, None] * (part - (now[2 * i + 1] + OFFSET)[:, None] * x_sum)
            now, x_now = then, x_then
    else:
        for chunk in tl.range(first, last, num_stages=STAGES):
            words = load_words(w_ptr, chunk, n, N, BITS, inside)
            k = chunk * 128 + tl.arange(0, 128)
            x = _activations(x_ptr, k, m, M, K, EVEN)
            w = scaled(tile16(words, 0, 16, BITS, dtype), s_ptr, z_ptr, chunk, n, N, K, GROUP, BITS, MIDDLE, dtype)
            y = dot(rounded(w, dtype), x, y)
    finish(y, y_ptr, sums_ptr, counter_ptr, n, m, N, M, SPLIT)


class PackedUniform(Packed):
    """b-bit codes with one scale and, unless symmetric, one zero per group; 16-bit activations ("wNa16").

    scale_GN float16, zero_GN uint8 or None (symmetric), order_K: the columns sorted by group, or None where they are.
    group: columns per scale, -1 for a whole row.
    """

    kernel = "wna16"
    rows: ClassVar = {"words": 2, "scale_GN": 1, "zero_GN": 1}
    about = ("K", "group")

    def __init__(self, words, scale_GN, zero_GN, order_K, K: int, group: int):
        if group != -1:  # kernels read whole chunks, so all groups of the last chunk need a scale
            pad = (0, 0, 0, -(-chunks(K) * CHUNK // group) - len(scale_GN))
            scale_GN, zero_GN = (t if t is None else F.pad(t, pad) for t in (scale_GN, zero_GN))
        zero_GN = None if zero_GN is None else zero_GN.contiguous()
        order_K = None if order_K is None else order_K.int()
        tensors = dict(words=words, scale_GN=scale_GN.contiguous(), zero_GN=zero_GN, order_K=order_K)
        super().__init__(K, words.shape[1], **tensors)
        self.group, self.middle = group, Grid(self.bits).midpoint

    @classmethod
    def of(cls, weight: UniformWeight) -> "PackedUniform":
        K, G = weight.codes_NK.shape[1], weight.scale_NG.shape[1]
        codes, order = weight.codes_NK, None
        if weight.group_K is not None:  # columns are sorted by group, and so are activations at run time
            order = weight.group_K.long().argsort(stable=True)
            if not torch.equal(weight.group_K.long()[order], torch.arange(K, device=order.device) // (K // G)):
                raise ValueError(f"packing sorts groups of equal size, and these {G} groups of K={K} are not")
            codes = codes[:, order]
        zero = None if weight.zero_NG is None else weight.zero_NG.T
        return cls(pack(codes, weight.bits), weight.scale_NG.T, zero, order, K, -1 if G == 1 else K // G)

    @classmethod
    def random(cls, N, K, bits, group_size=128, symmetric=False, device="cuda", seed=0) -> "PackedUniform":
        """Random codes and zeros; the weights are of about K^-1/2."""
        words, scale, draw = random_codes(N, K, bits, group_size, device, seed)
        zero = torch.randint(0, 2**bits, scale.shape, dtype=torch.uint8, device=device, generator=draw)
        return cls(words, scale, None if symmetric else zero, None, K, -1 if len(scale) == 1 else group_size)

    def _fused(self, x_MK, config):
        x_MK = x_MK if self.order_K is None else x_MK.index_select(1, self.order_K)
        M, K = x_MK.shape
        grid, tiles, y, sums = plan(M, self.words, config, x_MK.dtype)
        _wna16[grid](
            x_MK, self.words, self.scale_GN, self.zero_GN, y, sums, self.counters, M, self.N, K,
            GROUP=self.group, BITS=self.bits, MIDDLE=self.middle, EVEN=K % CHUNK == 0,
            SINGLE=M == 1 and self.group >= CHUNK, **tiles,
        )  # fmt: skip
        return y

    def dequantize(self, dtype):
        w_NK = dequantize(self.words, self.scale_GN, self.zero_GN, self.group, self.K, dtype)
        return w_NK if self.order_K is None else torch.empty_like(w_NK).index_copy_(1, self.order_K.long(), w_NK)
