"""The work of a decoding step between its matrix products, one kernel each: norm, activation, rotary embedding, cache.

The kernels compute what transformers' Qwen3 computes: statistics and products in float32, rounded to the model's dtype
where that code rounds. A step of one token moves only a few kilobytes here, so the number of launches decides: four per
layer, and one of ``qbench.kernels.attention``.

Every launch is safe in a CUDA graph: nothing is read back, and positions are a device tensor. A position can therefore
not be checked here: a token past the cache's last place is not written, and its attention is undefined.

Dimension key: B sequences, T places of the cache, D hidden width, I MLP width, H query heads, J key-value heads, d
their width, S tokens of a sequence in this step, M = B S rows.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from qbench.kernels.launch import check, rounded


@triton.jit
def normed_row(x_ptr, delta_ptr, gain_ptr, sum_ptr, at, columns, D, eps, ADD: tl.constexpr):
    """gain * r / sqrt(mean(r^2) + eps) of the row at ``at``, in the dtype of x; stores r = x + delta where ADD."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    inside = columns < D
    gain = tl.load(gain_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        total = rounded(x + tl.load(delta_ptr + at, mask=inside, other=0.0).to(tl.float32), dtype)
        tl.store(sum_ptr + at, total, mask=inside)
        x = total.to(tl.float32)
    normed = rounded(x * tl.rsqrt(tl.sum(x * x, 0) / D + eps), dtype).to(tl.float32)
    return rounded(normed * gain, dtype)


@triton.jit
def _add_rms_norm(x_ptr, delta_ptr, gain_ptr, sum_ptr, out_ptr, D, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * D + columns
    y = normed_row(x_ptr, delta_ptr, gain_ptr, sum_ptr, at, columns, D, eps, ADD)
    tl.store(out_ptr + at, y, mask=columns < D)


def add_rms_norm(x_MD: Tensor, delta_MD: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(r, norm(r)) with r = x + delta, or r = x where delta is None: the residual stream and what a linear reads.

    norm(r) = gain * r / sqrt(mean(r^2) + eps), rounded before the gain as Qwen3RMSNorm does. Any leading dimensions.
    """
    rows, delta, total = summands(x_MD, delta_MD, gain_D)
    out, block = torch.empty_like(rows), triton.next_power_of_2(gain_D.numel())
    _add_rms_norm[(len(rows),)](
        rows, delta, gain_D, total, out, gain_D.numel(), eps,
        ADD=delta_MD is not None, BLOCK=block, num_warps=min(max(block // 512, 1), 16),
    )  # fmt: skip
    return total.view_as(x_MD), out.view_as(x_MD)


def summands(x: Tensor, delta: Tensor | None, gain_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x and delta as contiguous [M, D], and room for their sum; all three are x where delta is None.

    Raises: ValueError for what the kernels cannot take, and for summands of different shapes or dtypes.
    """
    x_MD = check(x, gain_D.numel(), gain_D)
    if delta is None:
        return x_MD, x_MD, x_MD
    delta_MD = check(delta, gain_D.numel(), gain_D)
    if delta_MD.shape != x_MD.shape or delta_MD.dtype != x_MD.dtype:
        raise ValueError(
            f"x is {tuple(x.shape)} {x.dtype} and delta {tuple(delta.shape)} {delta.dtype}; they are added, so give "
            "equal shapes and dtypes"
        )
    return x_MD, delta_MD, torch.empty_like(x_MD)


@triton.jit
def gated_row(x_ptr, row, columns, I):
    """silu(gate) * up of one row, in the dtype of x."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    inside = columns < I
    gate = tl.load(x_ptr + row * 2 * I + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * I + I + columns, mask=inside, other=0.0).to(tl.float32)
    gate = rounded(gate / (1 + tl.exp(-gate)), dtype).to(tl.float32)
    return rounded(gate * up, dtype)


@triton.jit
def _silu_mul(x_ptr, out_ptr, I, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + row * I + columns, gated_row(x_ptr, row, columns, I), mask=columns < I)


def silu_mul(gate_up_M2I: Tensor) -> Tensor:
    """silu(gate) * up of a product whose first I columns are the gate: [..., 2 I] to [..., I]."""
    rows, I = gate_and_up(gate_up_M2I)
    out = torch.empty(len(rows), I, dtype=rows.dtype, device=rows.device)
    _silu_mul[(len(rows), triton.cdiv(I, 512))](rows, out, I, BLOCK=512, num_warps=2)
    return out.view(*gate_up_M2I.shape[:-1], I)


def gate_and_up(gate_up: Tensor) -> tuple[Tensor, int]:
    """(contiguous [M, 2 I], I). ValueError for what the kernels cannot take."""
    width = gate_up.shape[-1]
    if width % 2:
        raise ValueError(f"gate and up have the same width, so together an even number of columns; got {width}")
    return check(gate_up, width, gate_up), width // 2


@triton.jit(do_not_specialize=["S"])
def _rope_cache(
    qkv_ptr, q_gain_ptr, k_gain_ptr, cos_ptr, sin_ptr, position_ptr, q_ptr, k_ptr, v_ptr,
    S, T, stride_b, stride_t, eps, H: tl.constexpr, J: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    low = tl.arange(0, HALF)[None, :] + head * 0  # a tile, so that gains and angles load in its layout
    b = row // S
    t = tl.load(position_ptr + b).to(tl.int64) + row % S
    if t >= T:
        return
    source = qkv_ptr + (row * (H + 2 * J) + head) * 2 * HALF + low
    x = tl.load(source).to(tl.float32)
    y = tl.load(source + HALF).to(tl.float32)
    place = b * stride_b + t * stride_t + low
    if tl.program_id(1) * HEADS >= H + J:
        to = v_ptr + place + (head - H - J) * 2 * HALF
        tl.store(to, rounded(x, dtype))
        tl.store(to + HALF, rounded(y, dtype))
    else:
        is_query = tl.program_id(1) * HEADS < H
        gain_ptr = q_gain_ptr if is_query else k_gain_ptr
        scale = tl.rsqrt((tl.sum(x * x, 1) + tl.sum(y * y, 1)) / (2 * HALF) + eps)[:, None]
        x = rounded(x * scale, dtype).to(tl.float32)
        y = rounded(y * scale, dtype).to(tl.float32)
        x = rounded(x * tl.load(gain_ptr + low).to(tl.float32), dtype).to(tl.float32)
        y = rounded(y * tl.load(gain_ptr + HALF + low).to(tl.float32), dtype).to(tl.float32)
        cos = tl.load(cos_ptr + t * HALF + low).to(tl.float32)
        sin = tl.load(sin_ptr + t * HALF + low).to(tl.float32)
        first = rounded(x * cos, dtype).to(tl.float32) - rounded(y * sin, dtype).to(tl.float32)
        second = rounded(y * cos, dtype).to(tl.float32) + rounded(x * sin, dtype).to(tl.float32)
        if is_query:
            to = q_ptr + (row * H + head) * 2 * HALF + low
            tl.store(to, rounded(first, dtype))
            tl.store(to + HALF, rounded(second, dtype))
        else:
            to = k_ptr + place + (head - H) * 2 * HALF
            tl.store(to, rounded(first, dtype))
            tl.store(to + HALF, rounded(second, dtype))


def rope_cache(
    qkv_BSh: Tensor, q_gain_d: Tensor, k_gain_d: Tensor, cos_Th: Tensor, sin_Th: Tensor,
    position_B: Tensor, k_BTJd: Tensor, v_BTJd: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """Queries [B, S, H, d], normed per head and rotated; writes the keys, treated alike, and the values to the cache.

    qkv_BSh: [B, S, (H + 2 J) d], queries, keys, values. position_B: int32, the place of each sequence's first token of
    this step. cos_Th, sin_Th: [at least T, d / 2], the angles of each place. The cache's last two dimensions are dense.
    """
    B, T, J, d = k_BTJd.shape
    rows = check(qkv_BSh, qkv_BSh.shape[-1], k_BTJd)
    H, rest = divmod(qkv_BSh.shape[-1] - 2 * J * d, d)
    heads = math.gcd(H, J, 8)
    assert (rest, H % J) == (0, 0)
    assert len(qkv_BSh) == len(position_B) == B
    assert k_BTJd.stride() == v_BTJd.stride()
    assert len(cos_Th) >= T
    S = qkv_BSh.shape[1]
    q = torch.empty(B, S, H, d, dtype=rows.dtype, device=rows.device)
    _rope_cache[(B * S, (H + 2 * J) // heads)](
        rows, q_gain_d, k_gain_d, cos_Th, sin_Th, position_B, q, k_BTJd, v_BTJd,
        S, T, k_BTJd.stride(0), k_BTJd.stride(1), eps, H=H, J=J, HALF=d // 2, HEADS=heads, num_warps=2,
    )  # fmt: skip
    return q
