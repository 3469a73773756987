"""One run: checks a configuration, quantizes its model, measures what has no record yet, and writes the records."""

import time
import traceback
from collections.abc import Callable
from functools import partial

import httpx
import torch
from omegaconf import DictConfig
from safetensors import SafetensorError

from qbench import overrides, provenance, signals
from qbench.config import Config, name_of
from qbench.files import remove_stale, scratch
from qbench.measure.base import Context
from qbench.models.checkpoint import OpenCheckpoint
from qbench.models.placement import Placement
from qbench.outcomes import Outcome
from qbench.plan import footprint
from qbench.protocol import judge
from qbench.quantization import Quantization
from qbench.record import LayerReport, Measurement, digest
from qbench.store import Store
from qbench.weights import BinaryWeight, UniformWeight

OF_MACHINE = (OSError, ImportError, MemoryError, httpx.HTTPError, SafetensorError, torch.OutOfMemoryError)
OF_DEVICE = ("DefaultCPUAllocator", "CUDA error", "CUDA driver", "CUDNN", "cuDNN error", "HIP error", "Triton Error")


class Run:
    """One configuration, checked as far as it can be without reading weights. ``ids`` are those of its records."""

    def __init__(self, cfg: Config | DictConfig):
        config = cfg if isinstance(cfg, Config) else Config.of(cfg)
        self.config, self.machine, self.measures = config, config.machine, config.eval
        self.machine.start()
        config.wandb.check()
        self.store, self.ckpt = Store(self.machine.results_dir), config.model.open()
        for measure in self.measures.values():
            measure.check_model(self.ckpt.config)
        self.quantized = Quantization(config, self.ckpt)
        config.method.check(self.ckpt.linears)
        config.check_lengths(self.ckpt.config.max_position_embeddings)
        self.store.check_writable()
        self._check_revision()
        self.base = self._unquantized()
        evals = {name: measure.science(self.context(None)) for name, measure in self.measures.items()}
        if self.base is not self.ckpt:
            evals |= {
                name: evals[name] | {"base": self.base.science()} for name, m in self.measures.items() if m.compares
            }
        self.sciences = {name: self.quantized.science | {"eval": science} for name, science in evals.items()}
        if any(m.runs_packed for m in self.measures.values()):
            check_packable(self.quantized)
        self.ids = {name: digest(science) for name, science in self.sciences.items()}

    def _unquantized(self) -> OpenCheckpoint:
        """The model that divergences are measured from: this one, or the one that it was made of by someone else."""
        if self.ckpt.prequantized is None or not any(measure.compares for measure in self.measures.values()):
            return self.ckpt
        base = self.config.model.unquantized().open()
        mine, theirs = ((ckpt.linears, ckpt.config.vocab_size) for ckpt in (self.ckpt, base))
        if base.prequantized or theirs != mine:
            kind = "is quantized itself" if base.prequantized else "has other linears or another vocabulary"
            raise ValueError(f"model.base={self.config.model.base} {kind}; name the model {self.ckpt.model.name} is of")
        return base

    def _check_revision(self) -> None:
        """ValueError where records exist of another revision: in one results folder a model name stands for one."""
        model, revision = self.config.model, self.ckpt.revision
        if others := self.store.revisions(model.name) - {revision}:
            back = f"model.revision={min(others)} takes the former again, or " if model.repo else ""
            raise ValueError(
                f"model {model.name} is now revision {revision}, but the records in {self.store.root} are of revision "
                f"{', '.join(sorted(others))}; {back}set machine.results_dir to another folder, or model.name"
            )

    def context(self, placement: Placement | None) -> Context:
        """What the measures need; models are loaded where ``placement`` says."""
        return Context(
            tokenizer=self.ckpt.tokenizer,
            device=self.machine.device,
            data_dir=self.machine.data_dir,
            cache_dir=self.machine.cache_dir,
            model_id=digest(self.base.science()),
            reference=lambda: self.base.load(self.machine.device, placement=placement),
            head=None if self.base is self.ckpt else lambda: self.base.head(self.machine.device),
            packed=None if self.quantized.source is None else lambda: self.quantized.load(placement, "packed"),
        )

    def execute(self) -> Outcome:
        """Measures and records what is missing and no other process measures. Errors are in the outcome."""
        started = time.perf_counter()
        if not (missing := self._missing()):
            return self._outcome("present")
        footprint.check_room(self.ckpt, self.config.method, self.machine, self.quantized.cell)
        with self.store.claim(*(self.ids[name] for name in missing)) as mine:
            missing = self._missing()  # another process may have finished just now
            todo, errors = self._not_failed([name for name in missing if self.ids[name] in mine])
            errors += self._measure(todo) if todo else []
        seconds = time.perf_counter() - started
        left = len(missing) - len(mine.intersection(self.ids[name] for name in missing))
        if errors:
            return self._outcome("failed", "; ".join(errors), seconds)
        if left:
            return self._outcome("elsewhere", f"another process measures {left} of {len(self.ids)}", seconds)
        return self._outcome("measured" if todo else "present", seconds=seconds)

    def _missing(self) -> list[str]:
        return [name for name, id in self.ids.items() if self.store.get(id) is None]

    def _not_failed(self, names: list[str]) -> tuple[list[str], list[str]]:
        """Those of ``names`` to measure, and what is known of the others, which failed before."""
        if self.config.retry_failed:
            return names, []
        failed = {name: f for name in names if (f := self.store.get_failure(self.ids[name]))}
        known = dict.fromkeys(f["error"] + " (failed before; retry_failed=true tries again)" for f in failed.values())
        return [name for name in names if name not in failed], list(known)

    def _measure(self, todo: list[str]) -> list[str]:
        """Quantizes, evaluates the parts ``todo`` and records them; one line per error."""
        errors: list[str] = []

        def attempt(names, work: Callable) -> None:
            try:
                work()
            except Exception as e:
                signals.end_if_asked()
                errors.append(f"{type(e).__name__}: {one_line(e)}")
                if is_of_machine(e):
                    errors[-1] += " (a fault of this machine, not recorded; mend it, and the same command continues)"
                    return
                for name in set(names).intersection(self._missing()):
                    science = self.sciences[name]
                    said = traceback.format_exc(), judge(science), overrides.of_this_job()
                    self.store.put_failure(self.ids[name], science, e, *said)

        def measure_all() -> None:
            for name in todo:
                self.measures[name].prepare(context)
            with self.quantized.whole():
                model, reports = self.quantized.load(placement), self.quantized.reports()
                for name in todo:
                    attempt([name], partial(self._record, name, model, reports, context))

        cache = self.machine.cache_dir
        remove_stale(*cache.glob("quantized/*"), *cache.glob("statistics/*"), cache / "reference")
        with scratch(cache / "offload") as folder:
            placement = self.machine.placement(folder)
            context = self.context(placement)
            attempt(todo, measure_all)
        if not (errors or self.machine.keep_weights):  # after an error the same command continues from the weights
            self.quantized.weights.drop()
        return errors

    def _record(self, name: str, model: torch.nn.Module, reports: list[LayerReport], context: Context) -> None:
        started, science = time.perf_counter(), self.sciences[name]
        metrics = self.measures[name].run(model, context)
        where = provenance.collect(self.machine.device, time.perf_counter() - started)
        where["overrides"] = overrides.of_this_job()
        if science["calib"] and self.machine.data_dir is None:  # the identity has the hash of the tokens
            where["calib_data"] = {file.repo: file.revision for file in self.config.calib.hub_files()}
        sizes, id = self.quantized.sizes(reports), self.ids[name]
        record = Measurement(id, science, metrics, *sizes, reports, where, protocol=judge(science))
        self.store.put(record)
        self.config.wandb.log(record)

    def _outcome(self, status: str, message: str = "", seconds: float = 0.0) -> Outcome:
        """With the metrics of all records that there are, and where those lie."""
        records = [r for id in self.ids.values() if (r := self.store.get(id))]
        metrics = {key: metric for r in records for key, metric in r.metrics.items()}
        places = {r.id: self.store.where(r.id) for r in records}
        return Outcome(self.quantized.cell, status, message, seconds, metrics, places)


def run(cfg: DictConfig) -> Outcome:
    """Runs one configuration; bad input is an Outcome too, with the reason, and so is a bug, with its traceback."""
    signals.end_if_asked()
    try:
        config = Config.of(cfg)
        if not config.is_wanted:
            return Outcome(name_of(cfg), "left out", f"not in table {config.table} of the paper")
        return Run(config).execute()
    except Exception as e:
        signals.end_if_asked()
        if not isinstance(e, (ValueError, OSError)):
            traceback.print_exc()
        return Outcome(name_of(cfg), "refused", one_line(e))


def check_packable(quantized: Quantization) -> None:
    """ValueError where no kernel multiplies with one of the quantized weights."""
    from qbench.kernels import binary, wna8  # needs Triton

    for weight in quantized.outlines().values():
        if weight.kernel is None:
            raise ValueError(
                f"no kernel multiplies with the packed weights of {quantized.cell} ({type(weight).__name__}); measure "
                "its quality, e.g. with eval=ppl"
            )
        if isinstance(weight, UniformWeight) and quantized.acts:
            wna8.check(weight.codes_NK.shape[1], weight.grid.group_size)
        if isinstance(weight, BinaryWeight):
            binary.check_block(weight.block_size)


def one_line(e: BaseException) -> str:
    """What an error says, its lines joined; of more than 600 characters the start and the end, where remedies stand."""
    text = " ".join(str(e).split()) or type(e).__name__
    return text if len(text) <= 600 else f"{text[:300]} ... {text[-300:]}"


def is_of_machine(error: BaseException | None) -> bool:
    """Whether ``error`` or its cause is a fault of this machine, so that the cell may succeed elsewhere or later.

    Such are disks, the network, a missing package, memory, and a lost device. All other errors (a number that is not
    finite, a shape that does not fit, a bug) would happen again, and are recorded.
    """
    if error is None:
        return False
    is_lost = isinstance(error, RuntimeError) and any(word in str(error) for word in OF_DEVICE)
    is_lost = is_lost or type(error).__name__ == "AcceleratorError"
    return isinstance(error, OF_MACHINE) or is_lost or is_of_machine(error.__cause__)
