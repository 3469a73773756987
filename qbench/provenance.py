"""Where and when a number was measured. None of it belongs to a record's identity."""

import platform
import resource
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from qbench.record import now

GENERATED = ("results", "paper", "notebooks", "docs", "README.md", "experiments/LOG.md")  # no number depends on these
PACKAGES = (
    *("qbench", "torch", "triton", "transformers", "tokenizers", "safetensors", "accelerate", "numpy"),
    *("lm_eval", "datasets", "pyarrow", "huggingface_hub"),
)


def collect(device: str, seconds: float) -> dict:
    """Versions, machine, threads, time and peak memory (of the process so far, MiB)."""
    cuda = device.startswith("cuda")
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1 << 20)
    return dict(
        time=now(),
        seconds=round(seconds, 3),
        device=torch.cuda.get_device_name(device) if cuda else _processor(),
        threads=torch.get_num_threads(),
        peak_cpu_mib=rss,
        peak_gpu_mib=torch.cuda.max_memory_allocated(device) >> 20 if cuda else None,
        python=platform.python_version(),
        packages=_versions(),
        commit=_commit(),
    )


@lru_cache
def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@lru_cache
def _commit() -> str | None:
    """The commit of the working copy that runs, None for an installed package.

    A "+" means that tracked files differ from the commit; GENERATED ones do not count.
    """
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "-uno", "--", ".", *(f":(exclude){path}" for path in GENERATED)]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed.strip() else "")


@lru_cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
