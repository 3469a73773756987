"""Whose fault an error is: the cell's, which is recorded, or the machine's, which is not."""

import httpx
import torch
from safetensors import SafetensorError

KINDS = (OSError, ImportError, MemoryError, httpx.HTTPError, SafetensorError, torch.OutOfMemoryError)
WORDS = ("DefaultCPUAllocator", "CUDA error", "CUDA driver", "CUDNN", "cuDNN error", "HIP error", "Triton Error")


def is_of_machine(error: BaseException | None) -> bool:
    """Whether ``error``, or what caused it, says something of this machine rather than of what was measured.

    Such are files and disks (full, read-only, damaged files), the network, a package that is missing, memory, and a
    device that is lost: the same cell may succeed elsewhere, or here once that is mended. Anything else (a number that
    is not finite, a shape that does not fit, a bug) would happen again and is the cell's own failure.
    """
    if error is None:
        return False
    lost = isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)
    lost = lost or type(error).__name__ == "AcceleratorError"
    return isinstance(error, KINDS) or lost or is_of_machine(error.__cause__)
