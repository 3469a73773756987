"""Machines to plan for: GPUs by their published peaks, or this machine by a short measurement.

Peaks are those of the makers' data sheets: dense bfloat16 with float32 sums, float32 without TF32, memory bandwidth in
bytes per second, GiB as the driver counts them. The shares of them that programs reach are assumptions, and every plan
prints them.
"""

from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer

from qbench import provenance
from qbench.models.placement import check_device
from qbench.plan.footprint import GIB

GEMM_SHARE, FLOAT32_SHARE, MEMORY_SHARE = 0.45, 0.7, 0.6
LAUNCH = 6e-6  # seconds from one small GPU kernel to the next when Python launches them: an assumption too


@dataclass(frozen=True)
class Machine:
    """Rates per second, memory in bytes."""

    name: str
    flops16: float
    flops32: float
    bandwidth: float
    memory: int | None
    is_gpu: bool = True
    launch: float = LAUNCH
    basis: str = ""


def _published(name: str, tera16: float, tera32: float, tera_bytes: float, gib: int) -> Machine:
    shares = f"bfloat16 {GEMM_SHARE:.0%}, float32 {FLOAT32_SHARE:.0%}, memory {MEMORY_SHARE:.0%}"
    rates = (tera16 * 1e12 * GEMM_SHARE, tera32 * 1e12 * FLOAT32_SHARE, tera_bytes * 1e12 * MEMORY_SHARE)
    return Machine(name, *rates, gib * GIB, basis=f"published peaks x assumed shares ({shares})")


NAMED = {
    m.name.lower(): m
    for m in (
        _published("H200", 989, 67, 4.8, 140),
        _published("H100-SXM", 989, 67, 3.35, 80),
        _published("A100-80GB", 312, 19.5, 2.04, 80),
        _published("A800-80GB", 312, 19.5, 2.04, 80),
        _published("L40S", 362, 91.6, 0.864, 45),
        _published("RTX-4090", 165, 82.6, 1.01, 24),
    )
}
NAMES = ", ".join(m.name for m in NAMED.values())


def machine(name: str, device: str = "cpu") -> Machine:
    """A machine by name; ``this`` is the ``device`` of the machine that runs the plan."""
    if name == "this":
        return _this(device)
    if name.lower() not in NAMED:
        raise ValueError(f"--on {name}: no such machine; choose one of {NAMES}, or this")
    return NAMED[name.lower()]


def _this(device: str) -> Machine:
    """Measures matrix products and copies for half a second, so that no share is assumed."""
    check_device(device, "device")
    is_gpu = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if is_gpu else provenance.collect("cpu", 0)["device"]
    size, memory = (8192, torch.cuda.get_device_properties(device).total_memory) if is_gpu else (768, None)
    square, long = torch.randn(size, size, device=device), torch.zeros(1 << 24, device=device)
    fast, slow = (2 * size**3 / _seconds("x @ x", square.to(dtype)) for dtype in (torch.bfloat16, torch.float32))
    copy = 2 * long.nbytes / _seconds("x.clone()", long)
    basis = f"measured here: {fast:.2g} bfloat16 and {slow:.2g} float32 operations per second"
    return Machine(f"this machine ({name})", fast, slow, copy, memory, is_gpu, LAUNCH if is_gpu else 0.0, basis)


def _seconds(statement: str, x: torch.Tensor) -> float:
    """Seconds that ``statement`` about ``x`` takes."""
    timer = Timer(statement, globals={"x": x}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=0.2).median
