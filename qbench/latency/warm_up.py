"""Compiling before timing: every kernel that a list of jobs launches, once each, in several processes.

Triton compiles a kernel when it is first launched, one or two seconds each, and hundreds of variants are launched here:
by bits, tiles, and what it knows of M, N and K (1, or divisible by 16). Worker processes launch one of each; they fill
Triton's cache on disk, where the measuring process finds them, and are idle while it measures.
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
    """One job for each thing to compile: those that differ only in sizes that Triton does not look at are one."""
    found: dict[tuple, Job] = {}
    for job in jobs:
        contender = job.contender
        if contender.config is not None:
            config = json.dumps(contender.config(job.N, job.K, job.M, device), sort_keys=True)
            sizes = (job.M == 1, job.M % 16 == 0, job.N % 16 == 0, job.K % 16 == 0, job.K % 128 == 0)
            found.setdefault((contender.kernel, contender.bits, contender.group, config, sizes), job)
    return found


class WarmUp:
    """Call it with jobs; each variant is run once in its life. ``workers`` None: one a processor, 0: this process."""

    def __init__(self, device: str, workers: int | None = None):
        self.device, self.done, self.pool = device, set(), None
        self.workers = min(MOST_WORKERS, os.cpu_count() or 1) if workers is None else workers

    def __call__(self, jobs: Iterable[Job], seconds: float) -> list[str]:
        """Takes at most about ``seconds``. Returns notes. A kernel that fails says so to nobody here: its row will."""
        new = {key: job for key, job in variants(jobs, self.device).items() if key not in self.done}
        self.done |= set(new)
        if not self.workers or not new:
            for job in new.values():
                _launch(job, self.device)
            return []
        if self.pool is None:  # a process that uses a GPU cannot be forked
            self.pool = ProcessPoolExecutor(self.workers, mp_context=multiprocessing.get_context("spawn"))
        try:
            list(self.pool.map(_launch, new.values(), [self.device] * len(new), timeout=seconds))
        except TimeoutError:
            return [f"compiling {len(new)} kernels took longer than the {seconds:.0f} s that were left"]
        except BrokenProcessPool as e:
            self.close()
            return [f"a process that compiled kernels died ({e}); what it left is compiled when first launched"]
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
        float(y.flatten()[0])  # waits, so that a failure is this job's
        del product, y
        if device != "cpu":
            torch.cuda.empty_cache()
    except Exception:  # the row of the job will say it
        return
