"""The GPU and its state, as nvidia-smi reports them; no setting is changed.

Times are comparable only if no other process used the GPU and it ran at its full clocks. Other processes are looked for
before this one uses the GPU, and the clocks are read under load; the record notes what was not as it should be.
"""

import os
import platform
import subprocess
import time
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


def nvidia_smi(uuid: str, query: str) -> list[list[str]]:
    """The rows of nvidia-smi's answer about one GPU. RuntimeError where there is none."""
    command = ["nvidia-smi", "-i", uuid, query, "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as e:
        raise RuntimeError(f"nvidia-smi does not answer ({e}): clocks and other processes are unknown") from e
    return [[value.strip() for value in line.split(",")] for line in text.splitlines() if line.strip()]


def describe(device: str = "cuda", commit: str | None = None) -> tuple[dict, list[str]]:
    """The record's ``provenance`` without the seconds, with the clocks under load, and notes on the GPU's state.

    Call it before this process uses CUDA, since it notes other users of the GPU that torch calls ``device``.
    ``commit``: of the code, for a copy without .git; None: it is looked up.
    """
    properties = torch.cuda.get_device_properties(device)
    uuid = f"GPU-{str(properties.uuid).removeprefix('GPU-')}"
    state: dict = dict.fromkeys(STATE)
    try:
        notes = _busy(uuid)
        if notes:  # perhaps the end of an earlier call
            time.sleep(WAIT)
            notes = _busy(uuid)
        with _work(device):
            (values,) = nvidia_smi(uuid, f"--query-gpu={','.join(STATE.values())}")
        state = {name: text if name == "driver" else _number(text) for name, text in zip(STATE, values)}
        now, most = state["sm_clock_mhz"], state["sm_clock_max_mhz"]
        if now is None or most is None:
            notes.append("the driver does not report the clocks")
        elif now < 0.9 * most:
            notes.append(f"the SM clock under load was {now:.0f} MHz of {most:.0f}: throttled or limited")
    except RuntimeError as e:
        notes = [str(e)]
    base = provenance.collect("cpu", 0)
    found = {
        "time": base["time"],
        "gpu": properties.name,
        **state,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": commit or base["commit"],
    }
    return found, notes


def _busy(uuid: str) -> list[str]:
    """Notes on other users of the GPU."""
    others = [row for row in nvidia_smi(uuid, "--query-compute-apps=pid,used_memory") if row[0] != str(os.getpid())]
    notes = [f"busy GPU: process {pid} was on it at the start, with {memory} MiB" for pid, memory in others]
    ((used,),) = nvidia_smi(uuid, "--query-gpu=utilization.gpu")
    return notes + [f"busy GPU: utilisation was {used} % before the start"] * ((_number(used) or 0) > IDLE)


@contextmanager
def _work(device):
    """Runs some seconds of copies meanwhile: a load on memory, as of few tokens, which does not lower the clocks."""
    a = torch.empty(2**32, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    for _ in range(1500):
        b.copy_(a)
    yield
    torch.cuda.synchronize()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
