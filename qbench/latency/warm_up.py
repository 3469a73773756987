"""Compiles every kernel that a list of jobs launches, once each and in several processes, before they are timed.

Triton compiles a kernel at its first launch, which takes one or two seconds, and a measurement launches hundreds of
variants: by bits, tiles, and properties of M, N and K (equal to 1, divisible by 16). Worker processes launch each
variant once and so fill Triton's cache on disk, from which the measuring process loads them. While it measures, the
workers are idle.
"""

import json
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from qbench.latency.jobs import Job

MOST_WORKERS = 14


def variants(jobs: Iterable[Job], device: str) -> dict[tuple, Job]:
    """One job per variant to compile; sizes that Triton does not look at do not make another variant."""
    found: dict[tuple, Job] = {}
    for job in jobs:
        contender = job.contender
        if contender.config is not None:
            config = json.dumps(contender.config(job.N, job.K, job.M, device), sort_keys=True)
            sizes = (job.M == 1, job.M % 16 == 0, job.N % 16 == 0, job.K % 16 == 0, job.K % 128 == 0)
            found.setdefault((contender.kernel, config, sizes), job)
    return found


class WarmUp:
    """Called with jobs, it launches each new variant once. ``workers`` None: one per processor; 0: in this process."""

    def __init__(self, device: str, workers: int | None = None):
        self.device, self.done, self.pool = device, set(), None
        self.workers = min(MOST_WORKERS, os.cpu_count() or 1) if workers is None else workers

    def __call__(self, jobs: Iterable[Job], seconds: float) -> list[str]:
        """Takes at most about ``seconds``; returns notes. Kernels that fail are ignored: their rows will say so."""
        new = {key: job for key, job in variants(jobs, self.device).items() if key not in self.done}
        self.done |= set(new)
        if not self.workers or not new:
            for job in new.values():
                _launch(job, self.device)
            return []
        if self.pool is None:  # a process that uses a GPU cannot fork
            self.pool = ProcessPoolExecutor(self.workers, mp_context=multiprocessing.get_context("spawn"))
        try:
            list(self.pool.map(_launch, new.values(), [self.device] * len(new), timeout=seconds))
        except TimeoutError:
            return [f"compiling {len(new)} kernels took longer than the {seconds:.0f} s that were left"]
        except BrokenProcessPool as e:
            self.close()
            return [f"a process that compiled kernels died ({e}); the rest compiles at the first launch of each kernel"]
        return []

    def close(self) -> None:
        """Ends the processes."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
        self.pool = None


def _launch(job: Job, device: str) -> None:
    try:
        product = job.contender.load(job.N, job.K, device, 0)
        y = product.multiply(*product.activations(job.M, 0))
        float(y.flatten()[0])  # waits for the kernel
        del product, y
        if device != "cpu":
            torch.cuda.empty_cache()
    except Exception:  # the measurement reports it
        return
