"""Places the decoder layers of a model that does not fit on one device.

Layers fill the devices of ``max_memory`` in its order, in the order of the forward pass; the rest is kept on disk. A
layer on another accelerator runs there; accelerate moves a layer from the CPU or disk to the main device for each call.
Embedding, final norm and head stay on the main device.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn

GIB = 2**30


@dataclass(frozen=True)
class Placement:
    """``max_memory``: GiB that weights may take per device ("cuda:0", "cuda:1", "cpu"); layers that fit nowhere go
    to ``folder``. None: everything is on ``device``."""

    device: str
    max_memory: dict[str, float] | None = None
    folder: Path | None = None

    def __post_init__(self):
        for name, gib in (self.max_memory or {}).items():
            device_named(name, "max_memory")
            if not isinstance(gib, int | float) or not gib >= 0:
                raise ValueError(f"machine.max_memory: {name} is given {gib!r}; give GiB as a number")

    def layers(self, layer_bytes: int, count: int, rest_bytes: int) -> list[str]:
        """The place of each of ``count`` layers; ``rest_bytes``: the size of embedding, norm and head."""
        if self.max_memory is None:
            return [self.device] * count
        free = {_name(device): gib * GIB for device, gib in self.max_memory.items()}
        free[_name(self.device)] = free.get(_name(self.device), 0) - rest_bytes
        places = []
        for device, room in free.items():
            places += [device] * max(0, int(room // layer_bytes))
        return (places + ["disk"] * count)[:count]

    def settle(self, layer: nn.Module, place: str, index: int) -> nn.Module:
        """``layer`` with hooks that run it on its device; its weights are on ``place`` (for "disk", on the CPU)."""
        main = _name(self.device)
        if place == main:
            return layer
        if place == "disk":
            self.folder.mkdir(parents=True, exist_ok=True)
            folder = tempfile.mkdtemp(dir=self.folder, prefix=f"layer-{index:05d}-")  # models may be alive together
            return disk_offload(layer, folder, execution_device=torch.device(main))
        if place == "cpu":
            return cpu_offload(layer, execution_device=torch.device(main))
        return add_hook_to_module(layer, AlignDevicesHook(execution_device=place, io_same_device=True))


def device_named(name: str, field: str) -> torch.device:
    """The device called ``name``; ValueError where machine.``field`` is not the name of a device."""
    try:
        return torch.device(str(name))
    except RuntimeError as e:
        raise ValueError(f"machine.{field}: {name!r} is not a device; use names like cuda:0 or cpu") from e


def check_device(name: str, field: str) -> None:
    """Raises ValueError where this torch cannot use the device ``name``, the value of machine.``field``."""
    device = device_named(name, field)
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "cuda" and there <= (device.index or 0):
        found = f"sees {there or 'no'} CUDA device{'s' * (there > 1)}"
        raise ValueError(f"machine.{field}={name}, but torch {torch.__version__} {found}; use machine=cpu")
    if device.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError) as e:
            raise ValueError(f"machine.{field}={name}: torch {torch.__version__} cannot use it here") from e


def _name(device: str) -> str:
    return "cuda:0" if str(device) == "cuda" else str(device)
