"""Whether a run fits into memory and on the disk. A plan warns; a run is refused only where it must fail.

For a plan, ``warnings`` compares expected peaks with a machine and names what to change. Before a run, ``check_fits``
compares what the run certainly needs (``footprint.least_*``, quantized weights on disk) with what this machine has. It
never refuses a run that might succeed.

    check_fits(needs(shape, device="cuda", stored=...), available("cuda", cache_dir), cell)
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from qbench.plan import footprint
from qbench.plan.machines import GIB
from qbench.shape import Shape

ADVICE = {
    "gpu": "use machine.hidden_device=cpu, a GPU with more memory, or machine=cpu",
    "ram": "use a machine with more memory, or a smaller calib.n (hidden states wait there)",
    "disk": "free some space, or set machine.cache_dir to a larger disk",
}
WORDS = {"gpu": "GPU memory", "ram": "CPU memory", "disk": "disk space in machine.cache_dir"}


@dataclass(frozen=True)
class Bytes:
    """Bytes of GPU memory, CPU memory and disk; None: not known, or there is none."""

    gpu: int | None = None
    ram: int | None = None
    disk: int | None = None


def needs(
    shape: Shape, *, device: str, dtype: str = "bfloat16", quantizes: bool = True, stored: int = 0, resting: int = 0
) -> Bytes:
    """What a run certainly needs. ``stored``: bytes of its quantized weights; ``resting``: bytes of hidden states that
    wait in CPU memory; ``quantizes``: False for the unquantized model, or where its weights are in the cache."""
    least = max(footprint.least_quantize(shape, dtype) if quantizes else 0, footprint.least_evaluate(shape, dtype))
    if device.startswith("cuda"):
        return Bytes(gpu=least, ram=resting if quantizes else 0, disk=stored if quantizes else 0)
    return Bytes(ram=max(least, resting), disk=stored if quantizes else 0)


def available(device: str, cache_dir: str | Path) -> Bytes:
    """What this machine has: all GPU and CPU memory (other processes may free theirs), and free disk."""
    gpu = torch.cuda.get_device_properties(device).total_memory if device.startswith("cuda") else None
    return Bytes(gpu=gpu, ram=memory(), disk=free(cache_dir))


def check_fits(need: Bytes, has: Bytes, cell: str) -> None:
    """ValueError where ``cell`` certainly cannot run: what it needs, what the machine has, what to do."""
    for kind, words in WORDS.items():
        wanted, there = getattr(need, kind), getattr(has, kind)
        if wanted is not None and there is not None and wanted > there:
            asked = f"{cell} needs at least {wanted / GIB:.1f} GiB of {words}"
            raise ValueError(f"{asked}, but there are {there / GIB:.1f}; {ADVICE[kind]}")


def memory() -> int | None:
    """Bytes of CPU memory of this machine, or of the control group that confines this process, if less."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        return total
    return min(total, limit)


def free(folder: str | Path) -> int:
    """Free bytes of the disk that holds ``folder``, or will."""
    path = Path(folder).expanduser().absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def warnings(peaks: dict[str, Bytes], has: Bytes) -> list[str]:
    """One line per model and resource that does not fit; ``peaks``: {model: expected peak}."""
    lines = []
    for model, peak in peaks.items():
        for kind, words in WORDS.items():
            wanted, there = getattr(peak, kind), getattr(has, kind)
            if wanted and there is not None and wanted > there:
                size = f"about {wanted / GIB:.1f} GiB of {words}, but there are {there / GIB:.1f}"
                lines.append(f"{model} does not fit: it needs {size}; {ADVICE[kind]}")
    return lines
