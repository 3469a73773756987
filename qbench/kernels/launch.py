"""What all kernels share: the check of their activations, and two operations for Triton's interpreter.

The interpreter keeps bfloat16 as 16-bit integers. Its ``tl.dot`` multiplies these integers, and its conversion from
float32 cuts bits off instead of rounding to the nearest even number (seen in Triton 3.6 and 3.9). ``dot`` and
``rounded`` replace both; on a GPU they are Triton's own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16)
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU; decided by TRITON_INTERPRET when it was imported."""
    return INTERPRETED.value


def check(x: Tensor, K: int, weight: Tensor) -> Tensor:
    """``x`` [..., K] as a contiguous [M, K]; ValueError where the kernels cannot take it."""
    if x.dtype not in DTYPES:
        raise ValueError(f"the kernels take float16 or bfloat16 activations, got {x.dtype}; convert the model")
    if x.shape[-1] != K:
        raise ValueError(f"this weight has K={K} input channels, the activations have {x.shape[-1]}")
    if x.device != weight.device:
        raise ValueError(f"activations are on {x.device}, the packed weight on {weight.device}; move one of them")
    if not (x.is_cuda or interpreted()):
        raise ValueError(
            f"Triton's kernels run on a GPU, and this tensor is on {x.device}; move model and input to cuda, or set "
            "TRITON_INTERPRET=1 before starting python to run them slowly on the CPU"
        )
    return x.reshape(-1, K).contiguous()


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
