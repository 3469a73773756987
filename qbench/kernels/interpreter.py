"""Replaces two operations that Triton's interpreter gets wrong for bfloat16; on a GPU they stay as they are.

The interpreter keeps bfloat16 as 16-bit integers. Its ``tl.dot`` multiplies these integers, and its conversion from
float32 cuts bits off instead of rounding to the nearest even number (seen in Triton 3.6 and 3.9).
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(a, b, acc):
    """acc + a b, of 16-bit numbers in float32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        return tl.dot(a, b, acc)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 to ``dtype``, to the nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        finite = tl.where(x == x, (bits >> 16).to(tl.int16), tl.full(x.shape, 0x7FC0, tl.int16))
        return finite.to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)
