"""The ceilings of this GPU, measured in the same run as the kernels: bandwidth, bfloat16 rate, an empty launch.

No program reaches the numbers of the data sheet (4.8 TB/s and 989 TFLOP/s for an H200), so each kernel is compared with
these measured rates instead.
"""

from collections.abc import Callable

import torch
import triton

from qbench.latency.clock import Clock, measure
from qbench.latency.products import normal
from qbench.latency.record import Ceiling

COPY_BYTES = 4 * 2**30  # far more than any cache
GEMM = 8192
LAUNCHES = 100
BUDGET_US = 200_000  # device time of each


@triton.jit
def _nothing():
    pass


def ceilings(
    device: str, clock: Clock, copy_bytes: int = COPY_BYTES, gemm: int = GEMM
) -> tuple[dict[str, Ceiling], list[str]]:
    """The ceilings by name, and notes on them.

    copy_gbps: GB/s of a copy, bytes read plus bytes written. read_gbps: GB/s of a sum, bytes read, as a product of few
    tokens reads. bf16_tflops: TFLOP/s of cuBLAS for gemm x gemm x gemm, normal random numbers (zeros would draw less
    power and run faster). launch_us: an empty kernel, one of many in a graph.
    """
    copy = _copy(device, copy_bytes)
    source, total = torch.empty(copy_bytes // 4, device=device).normal_(), torch.empty((), device=device)
    a, b = normal((gemm, gemm), device, 0), normal((gemm, gemm), device, 1)
    out = torch.empty_like(a)
    launches = {  # with the work of each, in GB/s or TFLOP/s times microseconds
        "copy_gbps": (copy, 2 * copy_bytes / 1e3),
        "read_gbps": (lambda: torch.sum(source, 0, out=total), copy_bytes / 1e3),
        "bf16_tflops": (lambda: torch.mm(a, b.T, out=out), 2 * gemm**3 / 1e6),
    }
    found, notes = {}, []
    for name, (launch, work) in launches.items():
        timing = measure([launch], clock, BUDGET_US)
        found[name] = Ceiling(work / timing.us, work / timing.p80, work / timing.p20)
        notes += [f"{name}: {note}" for note in timing.notes]
    timing = measure([_nothing[(1,)]] * LAUNCHES, clock)
    found["launch_us"] = Ceiling(timing.us, timing.p20, timing.p80)
    return found, notes + [f"launch_us: {note}" for note in timing.notes]


def copy_bandwidth(device: str, clock: Clock, copy_bytes: int = COPY_BYTES) -> float:
    """Bytes per second of a copy, read plus written."""
    return 2e6 * copy_bytes / measure([_copy(device, copy_bytes)], clock, BUDGET_US).us


def _copy(device: str, size: int) -> Callable:
    source = torch.empty(size // 4, device=device).normal_()
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
