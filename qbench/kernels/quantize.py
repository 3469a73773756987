"""Activations to integers, one scale a token: ``qbench.grid.ActQuant``'s numbers as int8 codes and float32 scales.

    scale_m = max(max_k |x_mk| / (2^(b-1) - 1), 1e-8)      code_mk = x_mk / scale_m, rounded half to even

A token is one program, read once. What comes before the quantizer in a decoder, the residual addition with its RMSNorm
and the MLP's activation, is done in the same launch, rounded to the model's dtype where transformers' Qwen3 rounds, so
that quantization costs no launch of its own and no 16-bit tensor is stored only to be read back.

The maximum is taken of the bits of |x|, which as integers are in the order of the numbers; NaN is above all of them, so
it reaches the scale and then the whole token. Divisions are IEEE's: an approximate one puts codes on the wrong side of
a half. Adding 1.5 2^23 rounds half to even and leaves the code in the low bits of the sum.

Dimension key: M tokens, K channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qbench.kernels.interpreter import rounded
from qbench.kernels.launch import check


@triton.jit
def _store(x, row, columns, K, codes_ptr, scale_ptr, LEVELS: tl.constexpr):
    """Quantizes a token, float32 and zero outside of K."""
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
    x_ptr,
    delta_ptr,
    gain_ptr,
    sum_ptr,
    codes_ptr,
    scale_ptr,
    K,
    eps,
    ADD: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    at = row * K + columns
    inside = columns < K
    gain = tl.load(gain_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        total = rounded(x + tl.load(delta_ptr + at, mask=inside, other=0.0).to(tl.float32), dtype)
        tl.store(sum_ptr + at, total, mask=inside)
        x = total.to(tl.float32)
    normed = rounded(x * tl.rsqrt(tl.sum(x * x, 0) / K + eps), dtype).to(tl.float32)
    _store(rounded(normed * gain, dtype).to(tl.float32), row, columns, K, codes_ptr, scale_ptr, LEVELS)


@triton.jit
def _silu_mul_quantize(x_ptr, codes_ptr, scale_ptr, K, LEVELS: tl.constexpr, BLOCK: tl.constexpr):
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < K
    gate = tl.load(x_ptr + row * 2 * K + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * K + K + columns, mask=inside, other=0.0).to(tl.float32)
    gate = rounded(gate / (1 + tl.exp(-gate)), dtype).to(tl.float32)
    _store(rounded(gate * up, dtype).to(tl.float32), row, columns, K, codes_ptr, scale_ptr, LEVELS)


def _results(x_MK: Tensor, K: int, bits: int) -> tuple[Tensor, Tensor, dict]:
    """Room for codes and scales, and how to launch."""
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
    """(r, codes, scale): ``fused.add_rms_norm``'s residual stream r = x + delta, and its norm quantized.

    r has the shape of x, and is x itself where delta is None.
    """
    K = gain_K.numel()
    x_MK = check(x, K, gain_K)
    delta_MK = x_MK if delta is None else check(delta, K, gain_K)
    if delta_MK.shape != x_MK.shape or delta_MK.dtype != x_MK.dtype:
        raise ValueError(
            f"x is {tuple(x.shape)} {x.dtype} and delta {tuple(delta.shape)} {delta.dtype}; they are added, so give "
            "equal shapes and dtypes"
        )
    total = x_MK if delta is None else torch.empty_like(x_MK)
    codes, scale, options = _results(x_MK, K, bits)
    _add_rms_norm_quantize[(len(x_MK),)](
        x_MK, delta_MK, gain_K, total, codes, scale, K, eps, ADD=delta is not None, **options
    )
    return total.view_as(x), codes, scale


def silu_mul_quantize(gate_up: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """(codes, scale) of silu(gate) * up, where the first half of ``gate_up`` [..., 2 K] is the gate."""
    width = gate_up.shape[-1]
    if width % 2:
        raise ValueError(f"gate and up need one width, so an even number of columns together; got {width}")
    rows = check(gate_up, width, gate_up)
    codes, scale, options = _results(rows, width // 2, bits)
    _silu_mul_quantize[(len(rows),)](rows, codes, scale, width // 2, **options)
    return codes, scale
