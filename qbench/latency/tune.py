"""The search for launch parameters on this GPU, kept where the kernels look for them (``qbench.kernels.configs``).

For a kernel, bits, shape and number of tokens the candidates differ in a few choices. They are searched one choice
after another from the estimate on: the split along K, tiles and warps, stages, and whether to dequantize. That is a
dozen measurements instead of sixty, each on a cold ring as for the record. A candidate whose product is wrong, or that
does not launch, is out, and said.

The most important shapes come first (``plan``). The file is written on the way, and what it had of other shapes stays.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import groupby

from qbench.kernels import configs
from qbench.latency.bench import Bench
from qbench.latency.clock import measure
from qbench.latency.jobs import Job, jobs
from qbench.latency.kernels import DeviceLostError, check_device, copies, first_line, give_back, launches
from qbench.latency.own_kernels import Ours
from qbench.latency.products import relative_error
from qbench.latency.warm_up import WarmUp

CHOICES = ({"split"}, {"block_n", "warps"}, {"stages"})
BUDGET_US, REPLAY_US = 5_000, 500  # device time of a candidate
SLACK = 5.0  # seconds that a shape may take after the look at the clock


class Tuner:
    """``kernels`` grows as ``configs.save`` takes it; ``say`` prints a line."""

    def __init__(self, bench: Bench, kernels: dict, say: Callable[[str], None] = print):
        self.bench, self.kernels, self.say = bench, kernels, say
        self.compile = WarmUp(bench.device, bench.workers)

    def run(self, tunable: Iterable[Job], deadline: float, save: Callable[[], None]) -> int:
        """Tunes until ``deadline``; returns the number of jobs there was no time for. Raises: DeviceLostError, and
        keeps the estimate of the job that caused it, so that it is not tried again."""
        left = 0
        for _, same_rank in groupby(tunable, key=lambda job: job.rank):
            same_rank = [job for job in same_rank if not self._found(job)]
            if self.bench.clock.now() + SLACK < deadline:
                for note in self.compile(_variants(same_rank), deadline - self.bench.clock.now()):
                    self.say(note)
            for _, same_weight in groupby(same_rank, key=lambda job: job.weight):
                ring = None
                for job in same_weight:
                    if self._found(job):  # another layer has the same shape
                        continue
                    if self.bench.clock.now() + SLACK > deadline:
                        left += 1
                        continue
                    try:
                        if ring is None:
                            load = partial(job.contender.load, job.N, job.K, self.bench.device)
                            ring = copies(load, self.bench.l2_bytes)
                        self._keep(job, *self.best(job, ring))
                    except DeviceLostError:
                        self._keep(job, self._start(job), float("nan"))
                        raise
                    except Exception as e:
                        self.say(f"left as it is: {job.key}: {first_line(e)}")
                if ring is not None:
                    ring = None
                    give_back(self.bench.device)
                    save()
        return left

    def best(self, job: Job, ring: list[Ours]) -> tuple[dict, float]:
        """The best configuration and its microseconds. ValueError if none is right."""
        times: dict[str, float] = {}
        w_NK = ring[0].dequantized().double()
        candidates = configs.candidates(job.contender.kernel, job.contender.bits, job.N, job.K, job.M)
        start = self._start(job)
        best = start if start["path"] == "fused" else candidates[0]
        for choice in CHOICES:
            near = [c for c in candidates if _differ(c, best) <= choice]
            best = min([best, *near], key=lambda c: self._time(job, ring, w_NK, c, times))
        others = [c for c in [start, *candidates] if c["path"] != "fused"]
        best = min([best, *others], key=lambda c: self._time(job, ring, w_NK, c, times))
        if times[str(best)] == float("inf"):
            raise ValueError(f"no configuration of {job.contender.kernel} is right for {job.key}; it was {start}")
        return best, times[str(best)]

    def _time(self, job, ring, w_NK, config, times) -> float:
        """Microseconds, infinite where it fails; each configuration once."""
        if str(config) in times:
            return times[str(config)]
        times[str(config)] = float("inf")
        for product in ring:
            product.config = config
        try:
            error = relative_error(ring[0], ring[0].activations(job.M, seed=0), w_NK)
            if error <= ring[0].tolerance:
                work = launches(ring, job.M, self.bench.l2_bytes)
                times[str(config)] = measure(work, self.bench.clock, BUDGET_US, REPLAY_US).us
            else:
                self.say(f"wrong: {job.key} with {config}: relative error {error:.2g}")
        except Exception as e:
            self.say(f"failed: {job.key} with {config}: {first_line(e)}")
            check_device(self.bench.clock, f"{job.key} with {config}")
        return times[str(config)]

    def _found(self, job) -> bool:
        by_shape = self.kernels.get(job.contender.kernel, {}).get(str(job.contender.bits), {})
        return str(job.M) in by_shape.get(f"{job.N}x{job.K}", {})

    def _start(self, job) -> dict:
        return job.contender.config(job.N, job.K, job.M, self.bench.device)

    def _keep(self, job, config, us):
        by_shape = self.kernels.setdefault(job.contender.kernel, {}).setdefault(str(job.contender.bits), {})
        by_shape.setdefault(f"{job.N}x{job.K}", {})[str(job.M)] = config
        self.say(f"{job.contender.kernel} {job.contender.bits} {job.N}x{job.K} M={job.M}: {us:.2f} us {config}")


def tune(bench: Bench, deadline: float) -> None:
    """Until ``deadline`` (seconds of the bench's clock), with what the GPU's file has already. Raises:
    DeviceLostError, after which a new process can go on."""
    gpu = bench.provenance["gpu"]
    tuner = Tuner(bench, copy.deepcopy(configs.measured(gpu)))
    own = [contender for contender in bench.contenders if contender.kernel in configs.KERNELS]
    try:
        left = tuner.run(jobs(own, bench.models, configs.TOKENS), deadline, lambda: configs.save(gpu, tuner.kernels))
        print(f"{left} shapes left for another call")
    finally:
        tuner.compile.close()
        print(f"written: {configs.save(gpu, tuner.kernels)}")


def _differ(a: dict, b: dict) -> set[str]:
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


def _variants(tunable):
    """A job for each candidate of each job."""
    for job in tunable:
        contender = job.contender
        for config in configs.candidates(contender.kernel, contender.bits, job.N, job.K, job.M):
            fixed = replace(contender, load=partial(contender.load, config=config), config=partial(_fixed, config))
            yield replace(job, contender=fixed)


def _fixed(config, N, K, M, device):
    return config
