"""The story of one run: config, checkpoint, calibration, method, weight, linear, measurement, record."""

import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property, partial

import torch
from omegaconf import DictConfig

from qbench import faults, preflight, provenance
from qbench.config import Config, name_of
from qbench.files import remove_stale, scratch
from qbench.measure.base import Context
from qbench.models.quantized import QuantizedFolder
from qbench.outcomes import Outcome
from qbench.plan.footprint import hidden_bytes, statistics_bytes, stored_bytes, waiting_bytes
from qbench.progress import Progress
from qbench.protocol import judge
from qbench.record import LayerReport, Measurement, digest
from qbench.shape import Shape
from qbench.statistics_cache import CachedStatistics, open_statistics
from qbench.store import Store
from qbench.stream import quantize
from qbench.weights_cache import CachedWeights


class Run:
    """One configuration, checked as far as it can be without reading weights."""

    def __init__(self, cfg: Config | DictConfig):
        config = cfg if isinstance(cfg, Config) else Config.of(cfg)
        self.machine, self.method, self.calib, self.measures = config.machine, config.method, config.calib, config.eval
        self.wandb, self.retry_failed = config.wandb, config.retry_failed
        self.machine.start()
        self.wandb.check()
        self.store = Store(self.machine.results_dir)
        self.ckpt = config.model.open()
        self.method.check(self.ckpt.linears)
        config.check_lengths(self.ckpt.config.max_position_embeddings)
        self.store.check_writable()
        preflight.check_revision(self.store, self.ckpt)
        self.quantization = config.settings() | {"model": self.ckpt.science()}
        if self.quantization["calib"]:
            self.quantization["calib"] = self.calib.science(self.ckpt.tokenizer, self.machine.data_dir)
        self.sciences = {
            name: self.quantization | {"eval": m.science(self.context)} for name, m in self.measures.items()
        }
        if any(m.runs_packed for m in self.measures.values()):
            preflight.check_packable(self.method, self.ckpt.linears)
        self.ids = {name: digest(science) for name, science in self.sciences.items()}

    @cached_property
    def context(self) -> Context:
        return Context(
            tokenizer=self.ckpt.tokenizer,
            device=self.machine.device,
            data_dir=self.machine.data_dir,
            cache_dir=self.machine.cache_dir,
            model_id=digest(self.ckpt.science()),
            reference=lambda: self.ckpt.load(self.machine.device, placement=self.placement),
            packed=None if self.method.name == "none" else self._packed,
        )

    @property
    def cell(self) -> str:
        """What a person calls this run."""
        grid, acts = self.method.grid, self.method.acts
        bits = f" W{grid.bits}A{acts.bits if acts else 16}" if grid else ""
        return f"{self.ckpt.model.name} {self.method.name}{bits}"

    def execute(self) -> Outcome:
        """Measures and records what is missing and no other process measures. Errors are in the outcome."""
        started = time.perf_counter()
        if not (missing := self._missing()):
            return self._outcome("present")
        preflight.check_room(self.ckpt, self.method, self.machine, self.cell)
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
        if self.retry_failed:
            return names, []
        failed = {name: f for name in names if (f := self.store.get_failure(self.ids[name]))}
        known = dict.fromkeys(f["error"] + " (failed before; retry_failed=true tries again)" for f in failed.values())
        return [name for name in names if name not in failed], list(known)

    def _measure(self, todo: list[str]) -> list[str]:
        """Quantizes, evaluates the parts ``todo`` and records them; the errors met, a line each."""
        errors: list[str] = []

        def attempt(names, work: Callable) -> None:
            try:
                work()
            except Exception as e:
                errors.append(f"{type(e).__name__}: {one_line(e)}")
                if faults.is_of_machine(e):
                    errors[-1] += " (a fault of this machine, not recorded; mend it, and the same command goes on)"
                    return
                for name in set(names).intersection(self._missing()):
                    science = self.sciences[name]
                    self.store.put_failure(self.ids[name], science, e, traceback.format_exc(), judge(science))

        def measure_all():
            for name in todo:
                self.measures[name].prepare(self.context)
            with self._quantized() as folder:
                model, reports = self._load(folder)
                for name in todo:
                    attempt([name], partial(self._record, name, model, reports))

        cache = self.machine.cache_dir
        remove_stale(*cache.glob("quantized/*"), *cache.glob("statistics/*"), cache / "reference")
        with scratch(cache / "offload") as folder:
            self.placement = self.machine.placement(folder)
            attempt(todo, measure_all)
        if not (errors or self.machine.keep_weights):  # after an error a second try goes on from what is there
            self.weights.drop()
        return errors

    def _record(self, name, model, reports):
        started = time.perf_counter()
        metrics = self.measures[name].run(model, self.context)
        nominal, stored, size = self.sizes(reports)
        where = provenance.collect(self.machine.device, time.perf_counter() - started)
        if self.quantization["calib"] and self.machine.data_dir is None:  # in the identity their hash stands for them
            where["calib_data"] = {file.repo: file.revision for file in self.calib.hub_files()}
        science = self.sciences[name]
        record = Measurement(
            self.ids[name], science, metrics, nominal, stored, size, reports, where, protocol=judge(science)
        )
        self.store.put(record)
        self.wandb.log(record)

    @cached_property
    def weights(self) -> CachedWeights:
        """The quantized weights in the cache."""
        return CachedWeights(self.machine.cache_dir, digest(self.quantization), self.ckpt.config.num_hidden_layers)

    def _quantized(self):
        return nullcontext() if self.method.name == "none" else self.weights.whole(self._quantize)

    def _load(self, folder: QuantizedFolder | None) -> tuple[torch.nn.Module, list[LayerReport]]:
        """The model to evaluate and what quantization did to each linear."""
        if folder is None:
            return self.ckpt.load(self.machine.device, placement=self.placement), []
        reports = [report for index in range(self.ckpt.config.num_hidden_layers) for report in folder.reports(index)]
        return folder.load(self.ckpt, self.method.acts, self.machine.device, self.placement), reports

    def _packed(self) -> torch.nn.Module:
        """The quantized model on the kernels; it has been quantized before."""
        folder = self.weights.folder
        return folder.load(self.ckpt, self.method.acts, self.machine.device, self.placement, path="packed")

    def _quantize(self, folder: QuantizedFolder) -> None:
        ids_BT = self.calib.tokens(self.ckpt.tokenizer, self.machine.data_dir)
        size = (Shape.of(self.ckpt.config), ids_BT.numel(), self.ckpt.model.dtype)
        quantize(
            self.ckpt,
            self.method,
            ids_BT,
            folder,
            device=self.machine.device,
            rest=self.machine.rest(waiting_bytes(*size)),
            statistics=self._statistics(hidden_bytes(*size)) if self.method.calibrates_on == "float" else None,
            progress=partial(Progress, desc=self.cell, unit="blocks"),
        )

    def _statistics(self, hidden: int) -> CachedStatistics | None:
        """Where statistics of the unquantized model are shared between methods and bit-widths, if there is room beside
        the quantized weights and ``hidden`` bytes of hidden states."""
        what = {"model": self.ckpt.science(), "calib": self.quantization["calib"]}
        return open_statistics(
            self.machine.cache_dir / "statistics",
            digest(what | {"device": self.machine.device}),
            size=statistics_bytes(Shape.of(self.ckpt.config)),
            limit=self.machine.statistics_gib * 2**30,
            spare=hidden + stored_bytes(Shape.of(self.ckpt.config), self.method),
        )

    def sizes(self, reports: list[LayerReport]) -> tuple[float, float, int]:
        """Nominal and stored bits, means over quantized weights, and bytes of the whole model; the rest at 16 bits."""
        shapes = self.ckpt.linears
        numel = {name: N * K for name, (N, K) in shapes.items()}
        total = sum(numel.values())
        bits = {f"model.layers.{r.block}.{r.name}": (r.nominal_bits, r.stored_bits) for r in reports}
        nominal, stored = (sum(bits.get(name, (16, 16))[i] * n for name, n in numel.items()) for i in (0, 1))
        rest = self.ckpt.parameters() - total
        return nominal / total, stored / total, round(stored / 8) + 2 * rest

    def _outcome(self, status: str, message: str = "", seconds: float = 0.0) -> Outcome:
        """With the metrics of all records that there are, and where those lie."""
        records = [r for id in self.ids.values() if (r := self.store.get(id))]
        metrics = {key: metric for r in records for key, metric in r.metrics.items()}
        return Outcome(self.cell, status, message, seconds, metrics, {r.id: self.store.where(r.id) for r in records})


def run(cfg: DictConfig) -> Outcome:
    """Runs one configuration; bad input is an Outcome too, with the reason, and so is a bug, with its traceback."""
    try:
        config = Config.of(cfg)
        if not config.is_wanted:
            return Outcome(name_of(cfg), "left out", f"not in table {config.table} of the paper")
        return Run(config).execute()
    except Exception as e:
        if not isinstance(e, (ValueError, OSError)):
            traceback.print_exc()
        return Outcome(name_of(cfg), "refused", one_line(e))


def one_line(e: BaseException) -> str:
    """What an error says, its lines joined; of more than 600 characters the start and the end, where remedies stand."""
    text = " ".join(str(e).split()) or type(e).__name__
    return text if len(text) <= 600 else f"{text[:300]} ... {text[-300:]}"
