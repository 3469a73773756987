"""Whether a run fits into memory and on the disk.

A plan compares the peaks that it expects with a machine, and warns. A run is refused only where what it certainly needs
is more than this machine has: it never refuses what might succeed.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from qbench.machine import Machine
from qbench.methods.base import Method
from qbench.models.checkpoint import OpenCheckpoint
from qbench.plan import footprint
from qbench.plan.machines import GIB
from qbench.shape import Shape

RESOURCES = {  # what each is called, and what to do where there is too little
    "gpu": ("GPU memory", "use machine.hidden_device=cpu, a GPU with more memory, or machine=cpu"),
    "ram": ("CPU memory", "use a machine with more memory, or a smaller calib.n (hidden states wait there)"),
    "disk": ("disk space in machine.cache_dir", "free some space, or set machine.cache_dir to a larger disk"),
}


@dataclass(frozen=True)
class Bytes:
    """Bytes of GPU memory, CPU memory and disk; None: not known, or there is none."""

    gpu: int | None = None
    ram: int | None = None
    disk: int | None = None


def needs(shape: Shape, method: Method, device: str, dtype: str = "bfloat16") -> Bytes:
    """What a run certainly needs: the model, the quantization of one layer, and the quantized weights on disk."""
    memory, disk = shape.weight_bytes(dtype), 0
    if method.name != "none":
        memory, disk = max(memory, footprint.least_quantize(shape, dtype)), footprint.stored_bytes(shape, method)
    return Bytes(gpu=memory, disk=disk) if device.startswith("cuda") else Bytes(ram=memory, disk=disk)


def available(device: str, cache_dir: Path) -> Bytes:
    """What this machine has: all GPU and CPU memory (other processes may free theirs), and free disk."""
    gpu = torch.cuda.get_device_properties(device).total_memory if device.startswith("cuda") else None
    return Bytes(gpu=gpu, ram=memory(), disk=free(cache_dir))


def lacking(need: Bytes, has: Bytes) -> list[str]:
    """One text per resource that does not suffice: what is needed, what there is, what to do."""
    found = []
    for kind, (words, advice) in RESOURCES.items():
        wanted, there = getattr(need, kind), getattr(has, kind)
        if wanted is not None and there is not None and wanted > there:
            found.append(f"{wanted / GIB:.1f} GiB of {words}, but there are {there / GIB:.1f}; {advice}")
    return found


def check_room(ckpt: OpenCheckpoint, method: Method, machine: Machine, cell: str) -> None:
    """ValueError where ``cell`` certainly cannot run; layers spread over devices (max_memory) are not judged."""
    if machine.max_memory is None:
        need = needs(Shape.of(ckpt.config), method, machine.device, ckpt.model.dtype)
        if found := lacking(need, available(machine.device, machine.cache_dir)):
            raise ValueError(f"{cell} needs at least {found[0]}")


def memory() -> int:
    """Bytes of CPU memory of this machine, or of the control group that confines this process, if less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # there is no group, or it has no limit
        return total


def free(folder: str | Path) -> int:
    """Free bytes of the disk that holds ``folder``, or will."""
    path = Path(folder).expanduser().absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
