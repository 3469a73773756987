"""Searches the launch parameters of our kernels on this GPU and stores them for ``qbench.kernels.configs``.

The candidates for a kernel, bits, shape and number of tokens differ in a few choices. From the estimate on, the search
optimizes one choice after another: the split along K, tiles and warps, stages, and whether to dequantize. That takes a
dozen measurements instead of sixty, each on a cold ring as for the record. A candidate with a wrong product, or that
does not launch, is excluded and printed.

The most important shapes come first (``jobs``). The file is saved on the way, and its other shapes are kept.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from qbench.kernels import configs
from qbench.latency.bench import Bench, DeviceLostError, Sweep, check_device, first_line
from qbench.latency.jobs import Job, make_jobs
from qbench.latency.products import Ring

CHOICES = ({"split"}, {"block_n", "warps"}, {"stages"})
BUDGET_US, REPLAY_US = 5_000, 500  # device time of a candidate


class Tuner(Sweep):
    """Adds to ``kernels``, in the form that ``configs.save`` takes. ``say`` prints a line.

    Raises: DeviceLostError. The job that caused it keeps its estimate, so that it is not tried again.
    """

    slack = 5.0

    def __init__(self, bench: Bench, kernels: dict, say: Callable[[str], None] = print):
        super().__init__(bench)
        self.kernels, self.say = kernels, say

    def note(self, *texts: str) -> None:
        for text in texts:
            self.say(text)

    def to_compile(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """One job per candidate of each job."""
        for job in jobs:
            contender = job.contender
            for config in configs.candidates(contender.kernel.name, contender.kernel.bits, job.N, job.K, job.M):
                fixed = replace(contender, load=partial(contender.load, config=config), config=partial(_fixed, config))
                yield replace(job, contender=fixed)

    def wanted(self, job: Job) -> bool:
        by_shape = self.kernels.get(job.contender.kernel.name, {}).get(str(job.contender.kernel.bits), {})
        return str(job.M) not in by_shape.get(f"{job.N}x{job.K}", {})

    def best(self, job: Job, ring: Ring) -> tuple[dict, float]:
        """The best configuration and its microseconds. Raises: ValueError if none gives a right product."""
        times: dict[str, float] = {}
        kernel, start = job.contender.kernel, self._start(job)
        candidates = configs.candidates(kernel.name, kernel.bits, job.N, job.K, job.M)
        best = start if start["path"] == "fused" else candidates[0]
        for choice in CHOICES:
            near = [c for c in candidates if _differ(c, best) <= choice]
            best = min([best, *near], key=lambda c: self._time(job, ring, c, times))
        others = [c for c in [start, *candidates] if c["path"] != "fused"]
        best = min([best, *others], key=lambda c: self._time(job, ring, c, times))
        if times[str(best)] == float("inf"):
            raise ValueError(f"no configuration of {kernel.name} is right for {job.key}; it was {start}")
        return best, times[str(best)]

    def work(self, job: Job, ring: Ring) -> None:
        try:
            self._keep(job, *self.best(job, ring))
        except DeviceLostError:
            self._keep(job, self._start(job), float("nan"))
            raise
        except Exception as e:
            self.say(f"left as it is: {job.key}: {first_line(e)}")

    def _time(self, job: Job, ring: Ring, config: dict, times: dict[str, float]) -> float:
        """Microseconds, infinite where it fails; ``times`` remembers them."""
        if str(config) in times:
            return times[str(config)]
        times[str(config)] = float("inf")
        for product in ring.products:
            product.config = config
        try:
            error = ring.error(job.M)
            if error <= ring.products[0].tolerance:
                times[str(config)] = ring.time(job.M, self.bench.clock, BUDGET_US, REPLAY_US).us
            else:
                self.say(f"wrong: {job.key} with {config}: relative error {error:.2g}")
        except Exception as e:
            self.say(f"failed: {job.key} with {config}: {first_line(e)}")
            check_device(self.bench.clock, f"{job.key} with {config}")
        return times[str(config)]

    def _start(self, job: Job) -> dict:
        return job.contender.config(job.N, job.K, job.M, self.bench.device)

    def _keep(self, job: Job, config: dict, us: float) -> None:
        kernel = job.contender.kernel
        by_shape = self.kernels.setdefault(kernel.name, {}).setdefault(str(kernel.bits), {})
        by_shape.setdefault(f"{job.N}x{job.K}", {})[str(job.M)] = config
        self.say(f"{kernel.name} {kernel.bits} {job.N}x{job.K} M={job.M}: {us:.2f} us {config}")


def tune(bench: Bench, deadline: float) -> None:
    """Tunes what the GPU's file lacks until ``deadline`` (seconds of the bench's clock).

    Raises: DeviceLostError, after which a new process can go on.
    """
    gpu = bench.provenance["gpu"]
    tuner = Tuner(bench, copy.deepcopy(configs.measured(gpu)))
    jobs = make_jobs((c for c in bench.contenders if c.kernel.name in configs.KERNELS), bench.models, configs.TOKENS)
    try:
        left = tuner.run(jobs, deadline, lambda: configs.save(gpu, tuner.kernels))
        print(f"{len(left)} shapes left for another call")
    finally:
        tuner.compile.close()
        print(f"written: {configs.save(gpu, tuner.kernels)}")


def _differ(a: dict, b: dict) -> set[str]:
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


def _fixed(config, N, K, M, device):
    return config
