"""Searches the launch parameters of our kernels on this GPU and stores them for ``qbench.kernels.configs``; called by
``python experiments/latency.py --tune``.

The candidates for a kernel, bits, shape and number of tokens differ in a few choices. From the estimate on, the search
optimizes one choice after another: the split along K, tiles and warps, stages, and whether to dequantize. That takes a
dozen measurements instead of sixty, each on a cold ring as for the record. A candidate with a wrong product, or that
does not launch, is excluded and printed.

The most important shapes come first (``jobs``). The file is saved on the way, and its other shapes are kept.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from experiments.gpu_timing.jobs import make_jobs
from qbench.kernels import configs
from qbench.kernels.pack import chunks
from qbench.latency.bench import Bench, DeviceLostError, first_line
from qbench.latency.jobs import Job
from qbench.latency.products import Ring

CHOICES = ({"split"}, {"block_n", "warps"}, {"stages"})
BUDGET_US, REPLAY_US = 5_000, 500  # device time of a candidate
SHARED = 227 * 1024  # bytes of shared memory per processor


def tune(bench: Bench) -> None:
    """Tunes what the GPU's file lacks, until it is interrupted.

    A job that loses the device keeps its estimate, so that it is not tried again. Raises: DeviceLostError.
    """
    gpu = bench.provenance["gpu"]
    kernels = copy.deepcopy(configs.measured(gpu))

    def by_tokens(job: Job) -> dict:
        kernel = job.contender.kernel
        by_shape = kernels.setdefault(kernel.name, {}).setdefault(str(kernel.bits), {})
        return by_shape.setdefault(f"{job.N}x{job.K}", {})

    def work(job: Job, ring: Ring) -> None:
        found = by_tokens(job)
        if str(job.M) in found:  # another model has this shape too
            return
        try:
            found[str(job.M)] = best(bench, job, ring)
        except DeviceLostError:
            found[str(job.M)] = job.contender.config(job.N, job.K, job.M, bench.device)
            raise
        finally:
            configs.save(gpu, kernels)

    contenders = [c for c in bench.contenders if c.kernel.name in configs.KERNELS]
    jobs = make_jobs(contenders, bench.models, configs.TOKENS)
    bench.sweep([j for j in jobs if str(j.M) not in by_tokens(j)], work, _every_candidate)
    print(f"written: {configs.save(gpu, kernels)}")


def best(bench: Bench, job: Job, ring: Ring) -> dict:
    """The fastest configuration that is right; the estimate where none is. Raises: DeviceLostError."""
    times: dict[str, float] = {}

    def us(config: dict) -> float:
        if str(config) not in times:
            times[str(config)] = timed(bench, job, ring, config)
        return times[str(config)]

    kernel, start = job.contender.kernel, job.contender.config(job.N, job.K, job.M, bench.device)
    every = candidates(kernel.name, kernel.bits, job.N, job.K, job.M)
    found = start if start["path"] == "fused" else every[0]
    for choice in CHOICES:
        near = [c for c in every if {name for name in c if c[name] != found.get(name)} <= choice]
        found = min([found, *near], key=us)
    found = min([start, found, *(c for c in every if c["path"] != "fused")], key=us)
    print(f"{kernel.name} {kernel.bits} {job.N}x{job.K} M={job.M}: {us(found):.2f} us {found}")
    return found


def candidates(kernel: str, bits: int, N: int, K: int, M: int) -> list[dict]:
    """Configurations worth measuring for a shape."""
    block_m, found = configs.block_m(M), []
    planes = 2 if kernel == "binary" else bits  # stored bits per weight
    for block_n, warps in ((64, 4), (128, 4), (128, 8)):
        if block_n * block_m // warps > 128 * 16 or ((kernel, warps) == ("binary", 4) and block_n == 128):
            continue  # a thread's sums, or BiLLM's three planes, would not fit its registers
        for split in (1, 2, 3, 4, 6, 8, 12, 16):
            if split > 1 and (split > chunks(K) // 2 or block_m < M):
                continue
            for stages in (3, 4, 6, 8):
                if stages * (block_n * 16 * planes + 256 * block_m) <= SHARED:
                    found.append(configs.fused(block_n, block_m, split, warps, stages))
    return found + ([configs.DEQUANTIZE] if kernel in configs.DENSE_FROM and M > 16 else [])


def timed(bench: Bench, job: Job, ring: Ring, config: dict) -> float:
    """Microseconds of a product with ``config``, infinite where it fails or is wrong. Raises: DeviceLostError."""
    what = f"{job.key} with {config}"
    try:
        for product in ring.products:
            product.config = config
        error = ring.error(job.M)
        if error <= ring.products[0].tolerance:
            return ring.time(job.M, bench.clock, BUDGET_US, REPLAY_US).us
        print(f"wrong: {what}: relative error {error:.2g}")
    except Exception as e:
        print(f"failed: {what}: {first_line(e)}")
        bench.check(what)
    return math.inf


def _every_candidate(job: Job) -> Iterator[Job]:
    """One job per candidate."""
    contender = job.contender
    for config in candidates(contender.kernel.name, contender.kernel.bits, job.N, job.K, job.M):
        fixed = replace(contender, load=partial(contender.load, config=config), config=partial(_fixed, config))
        yield replace(job, contender=fixed)


def _fixed(config, N, K, M, device):
    return config
