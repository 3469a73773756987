"""Quantizes activations as ``qbench.grid.ActQuant`` does: int8 codes and one float32 scale per token.

    scale_m = max(max_k |x_mk| / (2^(b-1) - 1), 1e-8)      code_mk = x_mk / scale_m, rounded half to even

One program reads one token, once. The operation before the quantizer in a decoder (residual addition with RMSNorm, or
the MLP's activation) runs in the same launch, rounded to the model's dtype where transformers' Qwen3 rounds.

The maximum is taken over the bits of |x|: as integers they have the same order as the numbers. NaN is above all of
them, so it reaches the scale and with it the whole token. Divisions follow IEEE, since an approximate one puts codes on
the wrong side of a half. Adding 1.5 2^23 rounds half to even and leaves the code in the low bits of the sum.

Dimension key: M tokens, K channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qbench.kernels.fused import gate_and_up, gated_row, normed_row, summands
from qbench.kernels.launch import check


@triton.jit
def _store(x, row, columns, K, codes_ptr, scale_ptr, LEVELS: tl.constexpr):
    """Quantizes one token x, given in float32 and zero beyond K."""
    largest = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0).to(tl.float32, bitcast=True)
    scale = tl.math.div_rn(largest, LEVELS * 1.0)
    scale = tl.where(scale < 1e-8, 1e-8, scale)
    codes = (tl.math.div_rn(x, scale) + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
    tl.store(codes_ptr + row * K + columns, codes, mask=columns < K)
    tl.store(scale_ptr + row, scale)


@triton.jit
def _quantize(x_ptr, codes_ptr, scale_ptr, K, LEVELS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * K + columns, mask=columns < K, other=0.0).to(tl.float32)
    _store(x, row, columns, K, codes_ptr, scale_ptr, LEVELS)


@triton.jit
def _add_rms_norm_quantize(
    x_ptr, delta_ptr, gain_ptr, sum_ptr, codes_ptr, scale_ptr, K, eps,
    ADD: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    y = normed_row(x_ptr, delta_ptr, gain_ptr, sum_ptr, row * K + columns, columns, K, eps, ADD)
    _store(y.to(tl.float32), row, columns, K, codes_ptr, scale_ptr, LEVELS)


@triton.jit
def _silu_mul_quantize(x_ptr, codes_ptr, scale_ptr, K, LEVELS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    y = gated_row(x_ptr, row, columns, K)
    _store(y.to(tl.float32), row, columns, K, codes_ptr, scale_ptr, LEVELS)


def _results(x_MK: Tensor, K: int, bits: int) -> tuple[Tensor, Tensor, dict]:
    """Room for codes and scales, and launch parameters."""
    if not 2 <= bits <= 8:
        raise ValueError(f"activations are quantized to 2 to 8 bits, got {bits}")
    codes = torch.empty(len(x_MK), K, dtype=torch.int8, device=x_MK.device)
    scale = torch.empty(len(x_MK), dtype=torch.float32, device=x_MK.device)
    block = triton.next_power_of_2(K)
    return codes, scale, dict(LEVELS=2 ** (bits - 1) - 1, BLOCK=block, num_warps=min(max(block // 256, 1), 32))


def quantize(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """(codes int8 [M, K], scale float32 [M]) of ``x`` [..., K], float16 or bfloat16; ``bits`` 2..8."""
    K = x.shape[-1]
    x_MK = check(x, K, x)
    codes, scale, options = _results(x_MK, K, bits)
    _quantize[(len(x_MK),)](x_MK, codes, scale, K, **options)
    return codes, scale


def add_rms_norm_quantize(
    x: Tensor, delta: Tensor | None, gain_K: Tensor, eps: float, bits: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """(r, codes, scale): the residual stream r = x + delta of ``fused.add_rms_norm``, and its norm quantized.

    r has the shape of x, and is x itself where delta is None.
    """
    x_MK, delta_MK, total = summands(x, delta, gain_K)
    K = gain_K.numel()
    codes, scale, options = _results(x_MK, K, bits)
    _add_rms_norm_quantize[(len(x_MK),)](
        x_MK, delta_MK, gain_K, total, codes, scale, K, eps, ADD=delta is not None, **options
    )
    return total.view_as(x), codes, scale


def silu_mul_quantize(gate_up: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """(codes, scale) of silu(gate) * up, where the first half of ``gate_up`` [..., 2 K] is the gate."""
    rows, K = gate_and_up(gate_up)
    codes, scale, options = _results(rows, K, bits)
    _silu_mul_quantize[(len(rows),)](rows, codes, scale, K, **options)
    return codes, scale
