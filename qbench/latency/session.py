"""One call of the measurement: what is measured in which order, saving the record on the way."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from qbench.latency import models
from qbench.latency.bench import Bench, DeviceLostError, check_device, first_line
from qbench.latency.ceilings import ceilings
from qbench.latency.jobs import Job, make_jobs
from qbench.latency.kernels import DRIFT, KernelTimer
from qbench.latency.record import LEFT_OUT, LatencyRecord, file_name

PARTS = ("ceilings", "kernels", "models")
FIRST_RANK = 1  # kernel rows up to this rank come before the models
FIRST_END, MODELS_END = 0.45, 0.85  # shares of the time at which the first kernel rows and the models end at the latest
SAVE_EVERY = 20.0  # seconds


class Session:
    """Measures ``parts`` until ``minutes`` are over and writes the record into the folder ``out``.

    ``resume``: the record to continue. ``decode``: gives the rows of a model, as ``models.rows``. Raises: ValueError
    for a record that cannot be continued.
    """

    def __init__(
        self,
        bench: Bench,
        out: Path,
        minutes: float,
        parts: Sequence[str] = PARTS,
        resume: Path | None = None,
        decode: Callable = models.rows,
    ):
        self.bench, self.clock, self.parts, self.decode = bench, bench.clock, parts, decode
        self.started = self.saved = self.clock.now()
        self.seconds = 60 * minutes
        self.path = out / file_name(bench.provenance["gpu"])
        self.record = LatencyRecord.start(bench.provenance, resume)
        self.earlier = self.record.provenance["seconds"]
        self.record.note(*bench.notes)
        if "models" in parts and "ceilings" not in parts and not self.record.ceilings:
            raise ValueError("decoders are compared with the measured bandwidth; add ceilings to --only, or --resume")
        self.kernels = KernelTimer(bench, self.record)
        self.jobs = make_jobs(self._contenders(), bench.models, bench.tokens)

    def run(self) -> None:
        """Measures all parts. Raises: DeviceLostError, when only a new process can go on; the record is whole then."""
        try:
            if "ceilings" in self.parts:
                self._ceilings()
            if "kernels" in self.parts and "models" in self.parts:
                self._kernels([job for job in self.jobs if job.rank <= FIRST_RANK], FIRST_END)
            if "models" in self.parts:
                self._models()
            if "kernels" in self.parts:
                if left := self._kernels(self.jobs, 1):
                    each = ", ".join(f"{model} {n}" for model, n in Counter(job.model for job in left).items())
                    count = f"{len(left)} of {len(self.jobs)} kernel rows ({each})"
                    self.record.note(f"{LEFT_OUT}: {count}; --resume measures them")
                self.kernels.drift()
        except DeviceLostError as e:
            self.record.note(f"went on in a new process: {e}")
            raise
        finally:
            self._save()
            self.kernels.compile.close()

    def _ceilings(self) -> None:
        """The first call's ceilings stay; a later call measures them again and notes what has changed."""
        found, notes = ceilings(self.bench.device, self.clock, self.bench.copy_bytes, self.bench.gemm)
        for name, old in self.record.ceilings.items():
            if abs(found[name].value / old.value - 1) > DRIFT:
                notes.append(
                    f"not steady: {name} was {old.value:.5g} at first and {found[name].value:.5g} in a later call"
                )
        self.record.ceilings = self.record.ceilings or found
        self.record.note(*notes)
        self._save()

    def _contenders(self) -> list:
        """The contenders that can run here; a note with the reason for each other one."""
        present = []
        for contender in self.bench.contenders:
            name = f"{contender.kernel.name}, {contender.kernel.bits} bits, groups of {contender.kernel.group}"
            if contender.missing:
                self.record.note(f"{name}: not measured: {contender.missing}")
                continue
            if contender.note:
                self.record.note(f"{name}: {contender.note}")
            present.append(contender)
        return present

    def _kernels(self, jobs: list[Job], share: float) -> list[Job]:
        return self.kernels.run(jobs, self.started + share * self.seconds, self._save_now_and_then)

    def _models(self) -> None:
        end = self.started + (MODELS_END if "kernels" in self.parts else 1) * self.seconds
        done, left = {row.key for row in self.record.models}, 0
        launched = [j for j in self.jobs if j.model in self.bench.decoders and j.contender.kernel in models.CHOICES]
        self.record.note(*self.kernels.compile(launched, max(end - self.clock.now(), 1.0)))
        for name in self.bench.decoders:
            self.bench.say(name)
            try:
                bandwidth = 1e9 * self.record.ceilings["copy_gbps"].value
                shape = self.bench.models[name]
                for row in self.decode(name, shape, self.clock, bandwidth, end, done=done, device=self.bench.device):
                    self.record.models.append(row)
                    left += LEFT_OUT in row.notes
                    self._save_now_and_then()
            except DeviceLostError:
                raise
            except Exception as e:  # the products after it can still be measured
                self.record.note(f"decoding of {name} failed: {type(e).__name__}: {first_line(e)}")
                check_device(self.clock, f"decoding of {name}")
        if left:
            self.record.note(f"{LEFT_OUT}: {left} rows of decoders; --resume measures them")

    def _save_now_and_then(self) -> None:
        if self.clock.now() - self.saved > SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        self.saved = self.clock.now()
        self.record.provenance["seconds"] = round(self.earlier + self.saved - self.started, 1)
        self.record.write(self.path)
