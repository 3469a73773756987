"""Where and how to run."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from qbench.models.placement import Placement
from qbench.settings import check


@dataclass
class Machine:
    """Where and how to run; never part of a record's identity. Fields as in conf/machine."""

    device: str
    threads: int | None
    hidden_device: str
    hidden_gib: float
    statistics_gib: float
    max_memory: dict[str, float] | None
    data_dir: Path | None
    results_dir: Path
    cache_dir: Path
    keep_weights: bool

    def __post_init__(self):
        check(self, "machine")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"machine.threads must be at least 1, got {self.threads}")
        for field in ("data_dir", "results_dir", "cache_dir"):
            if (path := getattr(self, field)) and path.exists() and not path.is_dir():
                raise NotADirectoryError(f"machine.{field}={path} is a file; give a directory")
        if self.data_dir and not self.data_dir.is_dir():
            raise FileNotFoundError(f"machine.data_dir={self.data_dir} is not a directory")

    def start(self) -> None:
        """Sets the number of threads; ValueError where this machine lacks the device."""
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"machine.device={self.device}, but torch {torch.__version__} sees no CUDA device; use machine=cpu"
            )
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    @property
    def placement(self) -> Placement:
        """Where the layers of a model lie while it is evaluated."""
        memory = None if self.max_memory is None else dict(self.max_memory)
        return Placement(self.device, memory, self.cache_dir / "offload" / str(os.getpid()))

    def rest(self, hidden_bytes: int) -> str:
        """The device where hidden states of so many bytes wait between two blocks."""
        if self.hidden_device != "auto":
            return self.hidden_device
        return self.device if hidden_bytes <= self.hidden_gib * 2**30 else "cpu"
