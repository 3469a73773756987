"""Attention of one new token per sequence over a static cache, in one launch.

A program takes one sequence, one key-value head with all query heads that share it, and a stretch of places, and reads
their keys and values once. The heads of one sequence do not fill a GPU, so several programs share its places
("flash-decoding"), each with its own softmax, and the last one to finish joins them by their log-sums.

Dimension key: B sequences, T places of the cache, H query heads, J key-value heads, d their width.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from qbench.kernels.launch import check, dot, rounded

MAX_SPLITS = 16


@triton.jit
def _join(
    part_ptr, size_ptr, out_ptr, pair, active,
    GROUP: tl.constexpr, ROWS: tl.constexpr, d: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Joins the softmaxes of all splits; each is weighted by the sum under it.

    Each size is stored four times, so that a thread that owns four columns of a part loads part and size alike, and
    threads exchange nothing. Loads bypass the L1 cache, which does not see the writes of other programs.
    """
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, d)[None, :]
    top = tl.full([ROWS, d], float("-inf"), tl.float32)
    for i in tl.static_range(SPLITS):
        at = ((pair * SPLITS + i) * GROUP + row) * 4 + column % 4
        wanted = (row < GROUP) & (row * 0 + i < active)
        top = tl.maximum(top, tl.load(size_ptr + at, mask=wanted, other=float("-inf"), cache_modifier=".cg"))
    top = tl.where(row < GROUP, top, 0.0)
    total = tl.zeros([ROWS, d], tl.float32)
    y = tl.zeros([ROWS, d], tl.float32)
    for i in tl.static_range(SPLITS):
        at = (pair * SPLITS + i) * GROUP + row
        wanted = (row < GROUP) & (row * 0 + i < active)
        size = tl.load(size_ptr + at * 4 + column % 4, mask=wanted, other=float("-inf"), cache_modifier=".cg")
        share = tl.exp2(size - top)
        total += share
        y += share * tl.load(part_ptr + at * d + column, mask=wanted, other=0.0, cache_modifier=".cg")
    y /= tl.where(row < GROUP, total, 1.0)
    tl.store(out_ptr + (pair * GROUP + row) * d + column, rounded(y, out_ptr.dtype.element_ty), mask=row < GROUP)


@triton.jit(do_not_specialize=["splits"])
def _decode_attention(
    q_ptr, k_ptr, v_ptr, position_ptr, out_ptr, part_ptr, size_ptr, done_ptr,
    T, stride_b, stride_t, scale, splits,
    GROUP: tl.constexpr, ROWS: tl.constexpr, d: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    head = tl.program_id(0)
    split = tl.program_id(1)
    b = tl.program_id(2)
    pair = b.to(tl.int64) * tl.num_programs(0) + head
    length = tl.minimum(tl.load(position_ptr + b) + 1, T)
    span = tl.cdiv(tl.cdiv(length, splits), BLOCK) * BLOCK
    active = tl.cdiv(length, span)
    if split >= active:
        return
    row = tl.arange(0, 16)  # a matrix instruction has 16 rows, of which a group of query heads fills some
    column = tl.arange(0, d)
    q = tl.load(q_ptr + (pair * GROUP + row[:, None]) * d + column[None, :], mask=row[:, None] < GROUP, other=0.0)
    top = tl.full([16], float("-inf"), tl.float32)
    total = tl.zeros([16], tl.float32)
    y = tl.zeros([16, d], tl.float32)
    base = b.to(tl.int64) * stride_b + head * d
    for start in tl.range(split * span, tl.minimum(split * span + span, length), BLOCK, num_stages=STAGES):
        t = start + tl.arange(0, BLOCK)
        at = base + t.to(tl.int64)[:, None] * stride_t + column[None, :]
        k = tl.load(k_ptr + at, mask=t[:, None] < length, other=0.0)
        v = tl.load(v_ptr + at, mask=t[:, None] < length, other=0.0)
        score = dot(q, tl.trans(k), tl.zeros([16, BLOCK], tl.float32)) * scale
        score = tl.where(t[None, :] < length, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        p = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        y = dot(rounded(p, dtype), v, y * shrink[:, None])
        top = higher
    y = y / total[:, None]
    if SPLITS == 1:
        out = out_ptr + (pair * GROUP + row[:, None]) * d + column[None, :]
        tl.store(out, rounded(y, dtype), mask=row[:, None] < GROUP)
    else:
        where = (pair * SPLITS + split) * GROUP + row
        size = (top + tl.log2(total))[:, None] + tl.zeros([16, 4], tl.float32)
        tl.store(size_ptr + where[:, None] * 4 + tl.arange(0, 4)[None, :], size, mask=row[:, None] < GROUP)
        tl.store(part_ptr + where[:, None] * d + column[None, :], y, mask=row[:, None] < GROUP)
        tl.debug_barrier()  # every thread has stored before one increments the counter
        if tl.atomic_add(done_ptr + pair, 1, sem="acq_rel") == active - 1:
            _join(part_ptr, size_ptr, out_ptr, pair, active, GROUP, ROWS, d, SPLITS)
            tl.store(done_ptr + pair, 0)


def decode_attention(
    q_BHd: Tensor, k_BTJd: Tensor, v_BTJd: Tensor, position_B: Tensor, done_BJ: Tensor, splits: int
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of one new token per sequence over the cache's places 0..position, [B, H, d].

    H / J query heads share a key-value head, which is read once. ``splits`` programs share a sequence's places; the
    last one to finish joins their sums in the order of the programs, so the same numbers give the same bits. done_BJ:
    int32 zeros [B, J], zero again afterwards; calls that share them must not overlap in time.
    """
    B, T, J, d = k_BTJd.shape
    check(q_BHd, d, k_BTJd)
    H = q_BHd.shape[1]
    assert k_BTJd.stride() == v_BTJd.stride()
    assert (q_BHd.stride()[1:], k_BTJd.stride()[2:]) == ((d, 1), (d, 1))
    assert J <= H <= 16 * J
    assert 1 <= splits <= MAX_SPLITS
    assert done_BJ.shape == (B, J)
    places = 1 if splits == 1 else MAX_SPLITS
    out = torch.empty_like(q_BHd)
    part = out if splits == 1 else torch.empty(B, J, places, H // J, d, dtype=torch.float32, device=out.device)
    size = out if splits == 1 else torch.empty(B, J, places, H // J, 4, dtype=torch.float32, device=out.device)
    _decode_attention[(J, splits, B)](
        q_BHd, k_BTJd, v_BTJd, position_B, out, part, size, done_BJ,
        T, k_BTJd.stride(0), k_BTJd.stride(1), d**-0.5 * math.log2(math.e), splits,
        GROUP=H // J, ROWS=triton.next_power_of_2(H // J), d=d, BLOCK=64, SPLITS=places, STAGES=3, num_warps=4,
    )  # fmt: skip
    return out
