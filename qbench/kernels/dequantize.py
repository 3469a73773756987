"""Dequantizes a packed weight to 16 bits: for groups that the fused kernel cannot scale, and for many tokens.

The result equals ``UniformWeight.dequantize`` rounded once, bit for bit.

Dimension key: N output channels, K input channels, G groups of K.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qbench.grid import Grid
from qbench.kernels.digits import load_words, offset, tile16
from qbench.kernels.launch import rounded


@triton.jit
def scaled(
    codes, s_ptr, z_ptr, chunk, n, N, K,
    GROUP: tl.constexpr, BITS: tl.constexpr, MIDDLE: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """s (q - z) of a chunk [rows, 128] in float32. Scale and zero are loaded once per row and group or, where groups
    cross the borders of chunks, once per weight."""
    q = codes.to(tl.float32) - offset(dtype, BITS)
    ROWS: tl.constexpr = q.shape[0]
    if GROUP == -1:
        PER_CHUNK: tl.constexpr = 1
        group = tl.arange(0, 1)
    elif GROUP % 128 == 0:
        PER_CHUNK: tl.constexpr = 1
        group = chunk // (GROUP // 128) + tl.arange(0, 1)
    elif 128 % GROUP == 0:
        PER_CHUNK: tl.constexpr = 128 // GROUP
        group = chunk * PER_CHUNK + tl.arange(0, PER_CHUNK)
    else:
        PER_CHUNK: tl.constexpr = 128
        group = (chunk * 128 + tl.arange(0, 128)) // GROUP
    at = group[None, :].to(tl.int64) * N + n[:, None]
    mask = (n[:, None] < N) & ((group[None, :] + 1) * GROUP <= tl.cdiv(K, 128) * 128)
    q = tl.reshape(q, [ROWS, PER_CHUNK, 128 // PER_CHUNK])
    if z_ptr is None:  # noqa: SIM108
        q = q - MIDDLE
    else:
        q = q - tl.load(z_ptr + at, mask=mask, other=0).to(tl.float32)[:, :, None]
    q = q * tl.load(s_ptr + at, mask=mask, other=0.0).to(tl.float32)[:, :, None]
    return tl.reshape(q, [ROWS, 128])


@triton.jit
def _dequantize(
    w_ptr, s_ptr, z_ptr, out_ptr, N, K,
    GROUP: tl.constexpr, BITS: tl.constexpr, MIDDLE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = chunk * 128 + tl.arange(0, 128)
    words = load_words(w_ptr, chunk, n, N, BITS, n < N)
    codes = tile16(words, 0, 16, BITS, tl.float16)
    w = scaled(codes, s_ptr, z_ptr, chunk, n, N, K, GROUP, BITS, MIDDLE, tl.float16)
    at = n.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(out_ptr + at, rounded(w, out_ptr.dtype.element_ty), mask=(n[:, None] < N) & (k[None, :] < K))


def dequantize(
    words: Tensor, scale_GN: Tensor, zero_GN: Tensor | None, group: int, K: int, dtype: torch.dtype
) -> Tensor:
    """s (q - z) computed in float32 and rounded to ``dtype``, [N, K]."""
    chunks, bits, N, _ = words.shape
    out = torch.empty(N, K, dtype=dtype, device=words.device)
    constants = dict(GROUP=group, BITS=bits, MIDDLE=Grid(bits).midpoint, BLOCK_N=64)
    _dequantize[(chunks, triton.cdiv(N, 64))](words, scale_GN, zero_GN, out, N, K, **constants)
    return out
