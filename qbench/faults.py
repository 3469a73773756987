"""Tells errors of a cell, which are recorded, from faults of the machine, which are not."""

import httpx
import torch
from safetensors import SafetensorError

KINDS = (OSError, ImportError, MemoryError, httpx.HTTPError, SafetensorError, torch.OutOfMemoryError)
WORDS = ("DefaultCPUAllocator", "CUDA error", "CUDA driver", "CUDNN", "cuDNN error", "HIP error", "Triton Error")


def is_of_machine(error: BaseException | None) -> bool:
    """Whether ``error`` or its cause is a fault of this machine: the cell may succeed elsewhere, or here later.

    Such are disks (full, read-only, damaged files), the network, a missing package, memory, and a lost device. All
    other errors (a number that is not finite, a shape that does not fit, a bug) would happen again.
    """
    if error is None:
        return False
    lost = isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)
    lost = lost or type(error).__name__ == "AcceleratorError"
    return isinstance(error, KINDS) or lost or is_of_machine(error.__cause__)
