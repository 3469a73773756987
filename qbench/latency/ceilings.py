"""What this GPU can do at best, measured in the same run as the kernels: bandwidth, bfloat16 rate, an empty launch.

Data sheets give numbers that no program reaches (4.8 TB/s and 989 TFLOP/s for an H200); a kernel's share is given of
these instead. Each is a median with its 20th and 80th percentile.
"""

import torch
import triton

from qbench.latency.clock import Clock, Timing, measure
from qbench.latency.products import normal

COPY_BYTES = 4 * 2**30  # far more than any cache
GEMM = 8192
LAUNCHES = 100


@triton.jit
def _nothing():
    pass


def ceilings(
    device: str, clock: Clock, copy_bytes: int = COPY_BYTES, gemm: int = GEMM
) -> tuple[dict[str, dict], list[str]]:
    """The record's ``ceilings`` and notes on them.

    copy_gbps: GB/s of a copy, bytes read plus bytes written. read_gbps: GB/s of a sum, bytes read: what a product with
    few tokens does. bf16_tflops: TFLOP/s of cuBLAS for gemm x gemm x gemm, normal random numbers (zeros would draw
    less power and run faster). launch_us: an empty kernel, one of many in a graph.
    """
    found, notes = {}, []

    def keep(name, timing, rate=None):
        """``rate``: the work of a launch in the unit's amount per microsecond."""
        values = [timing.us, timing.p20, timing.p80]
        if rate is not None:
            values = [rate / timing.us, rate / timing.p80, rate / timing.p20]
        found[name] = dict(zip(("value", "p20", "p80"), values))
        notes.extend(f"{name}: {note}" for note in timing.notes)

    keep("copy_gbps", *_copy(device, clock, copy_bytes))
    keep("read_gbps", *_read(device, clock, copy_bytes))
    keep("bf16_tflops", *_gemm(device, clock, gemm))
    keep("launch_us", measure([_nothing[(1,)]] * LAUNCHES, clock))
    return found, notes


def copy_bandwidth(device: str, clock: Clock, copy_bytes: int = COPY_BYTES) -> float:
    """Bytes a second of a copy, read and written ones."""
    timing, work = _copy(device, clock, copy_bytes)
    return 1e9 * work / timing.us


def _copy(device, clock, size) -> tuple[Timing, float]:
    source = torch.empty(size // 4, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    return _time(lambda: target.copy_(source), clock), 2 * size / 1e3


def _read(device, clock, size) -> tuple[Timing, float]:
    source = torch.empty(size // 4, dtype=torch.float32, device=device).normal_()
    total = torch.empty((), device=device)
    return _time(lambda: torch.sum(source, 0, out=total), clock), size / 1e3


def _gemm(device, clock, size) -> tuple[Timing, float]:
    a, b = normal((size, size), device, 0), normal((size, size), device, 1)
    out = torch.empty_like(a)
    return _time(lambda: torch.mm(a, b.T, out=out), clock), 2 * size**3 / 1e6


def _time(launch, clock) -> Timing:
    return measure([launch], clock, budget_us=200_000)
