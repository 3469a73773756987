"""The machine that a run uses: its device, memory limits and folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from qbench.models.placement import Placement, check_device
from qbench.settings import Positive, Range, check


@dataclass
class Machine:
    """Never part of a record's identity. conf/machine/auto.yaml explains the fields."""

    device: str
    threads: Positive | None
    hidden_device: str
    hidden_gib: Annotated[float, Range(0)]
    statistics_gib: Annotated[float, Range(0)]
    max_memory: dict[str, float] | None
    data_dir: Path | None
    results_dir: Path
    cache_dir: Path
    keep_weights: bool

    def __post_init__(self):
        check(self, "machine")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        for field in ("data_dir", "results_dir", "cache_dir"):
            if (path := getattr(self, field)) and path.exists() and not path.is_dir():
                raise NotADirectoryError(f"machine.{field}={path} is a file; give a directory")
        if self.data_dir and not self.data_dir.is_dir():
            raise FileNotFoundError(f"machine.data_dir={self.data_dir} is not a directory")
        self.placement(Path())  # checks max_memory

    def start(self) -> None:
        """Sets the number of threads; ValueError where this machine lacks a device."""
        check_device(self.device, "device")
        if self.hidden_device != "auto":
            check_device(self.hidden_device, "hidden_device")
        for name in self.max_memory or {}:
            check_device(name, "max_memory")
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def placement(self, folder: Path) -> Placement:
        """Where the layers of a model lie while it is evaluated; those that fit nowhere else go to ``folder``."""
        return Placement(self.device, self.max_memory, folder)

    def rest(self, hidden_bytes: int, device: str | None = None) -> str:
        """Where that many bytes of hidden states wait between two blocks; ``device`` replaces the machine's own."""
        if self.hidden_device != "auto":
            return self.hidden_device
        return (device or self.device) if hidden_bytes <= self.hidden_gib * 2**30 else "cpu"
