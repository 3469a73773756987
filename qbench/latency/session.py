"""One call of the measurement: what is measured in which order, and the record saved on the way."""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from qbench.latency import jobs as plan
from qbench.latency.bench import Bench
from qbench.latency.ceilings import ceilings
from qbench.latency.kernels import (
    DRIFT,
    SLACK,
    DeviceLostError,
    KernelLevel,
    check_device,
    first_line,
    left_out_notes,
)
from qbench.latency.record import LEFT_OUT, Latency, file_name
from qbench.latency.warm_up import WarmUp

PARTS = ("ceilings", "kernels", "models")
FIRST_RANK = 1  # kernel rows up to this rank come before the models
FIRST_END, MODELS_END = 0.45, 0.85  # of the time: where these end at the latest, if there is more to do
SAVE_EVERY = 20.0  # seconds


class Session:
    """Measures ``parts`` until ``minutes`` are over and writes the record into ``out``, a folder. ``resume``: the
    record to continue."""

    def __init__(self, bench: Bench, out: Path, minutes: float, parts: Sequence[str] = PARTS, resume=None):
        if unknown := set(parts) - set(PARTS):
            raise ValueError(f"parts are {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
        self.bench, self.clock, self.parts, self.seconds = bench, bench.clock, parts, 60 * minutes
        self.started = self.saved = self.clock.now()
        self.record = Latency(out / file_name(bench.provenance["gpu"]), bench.provenance, resume)
        for note in bench.notes:
            self.record.note(note)
        if "models" in parts and "ceilings" not in parts and not self.record.data["ceilings"]:
            raise ValueError("decoders are compared with the measured bandwidth; add ceilings to --only, or --resume")
        self.kernels = KernelLevel(self.record, bench.clock, bench.device, bench.l2_bytes)
        self.compile = WarmUp(bench.device, bench.workers)
        self.jobs = plan.jobs(self._contenders(), bench.models, bench.tokens)

    def run(self) -> None:
        """All parts. Raises: DeviceLostError, after which only a new process can go on; the record is whole then."""
        try:
            if "ceilings" in self.parts:
                self._ceilings()
            if "kernels" in self.parts and "models" in self.parts:
                self._products([job for job in self.jobs if job.rank <= FIRST_RANK], FIRST_END)
            if "models" in self.parts:
                self._models()
            if "kernels" in self.parts:
                for note in left_out_notes(self._products(self.jobs, 1), len(self.jobs)):
                    self.record.note(note)
                self.kernels.drift()
        except DeviceLostError as e:
            self.record.note(f"went on in a new process: {e}")
            raise
        finally:
            self._save()
            self.compile.close()

    def _ceilings(self):
        """Those of the first call stay; a later call measures them again to see whether the GPU is what it was."""
        found, notes = ceilings(self.bench.device, self.clock, self.bench.copy_bytes, self.bench.gemm)
        old = self.record.data["ceilings"]
        for name in old:
            then, now = old[name]["value"], found[name]["value"]
            if abs(now / then - 1) > DRIFT:
                self.record.note(f"not steady: {name} was {then:.5g} at first and {now:.5g} in a later call")
        self.record.data["ceilings"] = old or found
        for note in notes:
            self.record.note(note)
        self._save()

    def _contenders(self):
        """Those that can run here; what is missing is noted with the reason."""
        there = []
        for contender in self.bench.contenders:
            name = f"{contender.kernel}, {contender.bits} bits, groups of {contender.group}"
            if reason := contender.missing():
                self.record.note(f"{name}: not measured: {reason}")
                continue
            if contender.note:
                self.record.note(f"{name}: {contender.note}")
            there.append(contender)
        return there

    def _products(self, jobs, share):
        left, end = [], self._end(share)
        waiting = [job for job in jobs if job.key not in self.record.done]
        for rank, same_rank in groupby(waiting, key=lambda job: job.rank):
            same_rank = list(same_rank)
            if self.clock.now() + SLACK < end:
                self._say(f"{len(same_rank)} products of rank {rank}")
                self._compile(same_rank, end)
            left += self.kernels.run(same_rank, end, self._tick)
        return left

    def _models(self):
        end = self._end(MODELS_END if "kernels" in self.parts else 1)
        known, left = set(self.record.done_models), 0
        same = [j for j in self.jobs if (j.contender.kernel, j.contender.bits) in self.bench.decoded]
        self._compile([job for job in same if job.model in self.bench.decoders], end)
        for name in self.bench.decoders:
            self._say(name)
            try:
                for row in self.bench.decode(name, self.clock, self.record.data["ceilings"], end, done=known):
                    self.record.add_model(row)
                    left += LEFT_OUT in row["notes"]
                    self._tick()
            except DeviceLostError:
                raise
            except Exception as e:  # the products after it can still be measured
                self.record.note(f"decoding of {name} failed: {type(e).__name__}: {first_line(e)}")
                check_device(self.clock, f"decoding of {name}")
        if left:
            self.record.note(f"{LEFT_OUT}: {left} rows of decoders; --resume measures them")

    def _compile(self, jobs, end):
        for note in self.compile(jobs, max(end - self.clock.now(), 1.0)):
            self.record.note(note)

    def _say(self, what):
        print(f"{self.clock.now() - self.started:4.0f} s: {what}", file=sys.stderr, flush=True)

    def _end(self, share):
        return self.started + share * self.seconds

    def _tick(self):
        if self.clock.now() - self.saved > SAVE_EVERY:
            self._save()

    def _save(self):
        self.saved = self.clock.now()
        self.record.save(self.saved - self.started)
