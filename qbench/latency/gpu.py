"""The GPU and its state, as nvidia-smi reports them; no setting is changed.

Times are comparable only if no other process used the GPU and it ran at its full clocks. Other processes are looked for
before this one uses the GPU, and the clocks are read under load; the record notes what was not as it should be.
"""

import csv
import os
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch
import triton

from qbench import provenance

WAIT = 3.0  # seconds before a second look at a GPU that is in use
IDLE = 5  # % of utilisation above which a GPU counts as in use before the measurement starts
STATE = {
    "driver": "driver_version",
    "sm_clock_mhz": "clocks.sm",
    "sm_clock_max_mhz": "clocks.max.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
}
Ask = Callable[..., str]


def nvidia_smi(*arguments: str) -> str:
    """The answer of nvidia-smi to a query. RuntimeError where there is none."""
    try:
        command = ["nvidia-smi", *arguments, "--format=csv,noheader,nounits"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as e:
        raise RuntimeError(f"nvidia-smi does not answer ({e}): clocks and other processes are unknown") from e


class Gpu:
    """The GPU that torch calls ``device``. Create it before this process uses CUDA: it notes other users of the GPU."""

    def __init__(self, device: str = "cuda", ask: Ask = nvidia_smi):
        self.device, self.ask = device, ask
        self.properties = torch.cuda.get_device_properties(device)
        self.uuid = f"GPU-{str(self.properties.uuid).removeprefix('GPU-')}"
        try:
            self.notes = self._busy()
            if self.notes:  # perhaps the end of an earlier call
                time.sleep(WAIT)
                self.notes = self._busy()
        except RuntimeError as e:
            self.notes = [str(e)]

    def _busy(self) -> list[str]:
        """Notes on other users of the GPU."""
        others = _table(self.ask, "--query-compute-apps=gpu_uuid,pid,used_memory")
        notes = [
            f"busy GPU: process {pid} was on it at the start, with {memory} MiB"
            for uuid, pid, memory in others
            if uuid == self.uuid and pid != str(os.getpid())
        ]
        used = dict(_table(self.ask, "--query-gpu=uuid,utilization.gpu")).get(self.uuid, "")
        return notes + [f"busy GPU: utilisation was {used} % before the start"] * ((_number(used) or 0) > IDLE)

    def describe(self, commit: str | None = None) -> dict:
        """The record's ``provenance`` without the seconds, with the clocks under load; adds to ``notes``.

        ``commit``: of the code, for a copy without .git; None: it is looked up."""
        state = dict.fromkeys(STATE)
        try:
            with _work(self.device):
                rows = _table(self.ask, f"--query-gpu=uuid,{','.join(STATE.values())}")
            values = next((row[1:] for row in rows if row[0] == self.uuid), [""] * len(STATE))
            state = {name: (text or None) if name == "driver" else _number(text) for name, text in zip(STATE, values)}
            self.notes += _clock_notes(state["sm_clock_mhz"], state["sm_clock_max_mhz"])
        except RuntimeError as e:
            self.notes += [str(e)] if str(e) not in self.notes else []
        base = provenance.collect("cpu", 0)
        return {
            "time": base["time"],
            "gpu": self.properties.name,
            **state,
            "multiprocessors": self.properties.multi_processor_count,
            "l2_bytes": self.properties.L2_cache_size,
            "memory_bytes": self.properties.total_memory,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "commit": commit or base["commit"],
        }


@contextmanager
def _work(device):
    """Runs some seconds of copies meanwhile: a load on memory, as of few tokens, which does not lower the clocks."""
    a = torch.empty(2**32, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    for _ in range(1500):
        b.copy_(a)
    yield
    torch.cuda.synchronize()


def _clock_notes(now, most) -> list[str]:
    if now is None or most is None:
        return ["the driver does not report the clocks"]
    if now < 0.9 * most:
        return [f"the SM clock under load was {now:.0f} MHz of {most:.0f}: throttled or limited"]
    return []


def _table(ask, query) -> list[list[str]]:
    rows = csv.reader(ask(query).splitlines(), skipinitialspace=True)
    return [[text.strip() for text in row] for row in rows if row]


def _number(text):
    try:
        return float(text)
    except ValueError:
        return None
