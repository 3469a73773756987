"""Checks that every launch makes first."""

import torch
import triton
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16)


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU; decided by TRITON_INTERPRET when it was imported."""
    return bool(triton.knobs.runtime.interpret)


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
