"""The story of one run: config, checkpoint, calibration, method, weight, linear, measurement, record."""

import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from qbench import preflight, provenance
from qbench.config import Config, name_of
from qbench.costs import Shape
from qbench.footprint import statistics_bytes, waiting_bytes
from qbench.measure.base import Context
from qbench.models.quantized import QuantizedFolder
from qbench.record import LayerReport, Measurement, Metric, Store, digest
from qbench.stream import Remembered, quantize


@dataclass
class Outcome:
    """How one run of a sweep ended: measured, present (it was there already), elsewhere (another process has it),
    failed (now or before; recorded), refused (bad input; nothing was started), left out (the paper's table that was
    asked for does not print it)."""

    cell: str
    status: str
    message: str = ""
    seconds: float = 0.0
    metrics: dict[str, Metric] = field(default_factory=dict)

    @property
    def is_bad(self) -> bool:
        return self.status in ("failed", "refused")


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
        self.quantization = self._science()
        self.sciences = {
            name: self.quantization | {"eval": m.science(self.context)} for name, m in self.measures.items()
        }
        if any(m.runs_packed for m in self.measures.values()):
            preflight.check_packable(self.method, self.ckpt.linears)
        self.ids = {name: digest(science) for name, science in self.sciences.items()}

    def _science(self) -> dict:
        """What the quantized weights depend on. The unquantized model depends on no calibration."""
        grid = self.method.grid and asdict(self.method.grid)
        is_float = self.method.name == "none"
        calib = None if is_float else self.calib.science(self.ckpt.tokenizer, self.machine.data_dir)
        return {"model": self.ckpt.science(), "method": self.method.science(), "grid": grid, "calib": calib}

    @cached_property
    def context(self) -> Context:
        return Context(
            tokenizer=self.ckpt.tokenizer,
            device=self.machine.device,
            data_dir=self.machine.data_dir,
            cache_dir=self.machine.cache_dir,
            model_id=digest(self.ckpt.science()),
            reference=lambda: self.ckpt.load(self.machine.device, placement=self.machine.placement),
            packed=None if self.method.name == "none" else self._packed,
        )

    @property
    def cell(self) -> str:
        """What a person calls this run."""
        grid, acts = self.method.grid, self.method.acts
        bits = f" W{grid.bits}A{acts.bits if acts else 16}" if grid else ""
        return f"{self.ckpt.model.name} {self.method.name}{bits}"

    def execute(self) -> Outcome:
        """Measures what is missing and records it. Whatever fails is recorded too and raised to nobody."""
        started = time.perf_counter()
        if not self._missing():
            return Outcome(self.cell, "present", metrics=self._metrics())
        preflight.check_room(self.ckpt, self.method, self.machine, self.cell)
        with self.store.claim(digest(self.quantization)) as mine:
            if not mine:
                return Outcome(self.cell, "elsewhere", "another process is measuring it")
            todo = self._missing()  # another process may have finished just now
            failures = [f for name in todo if (f := self.store.get_failure(self.ids[name]))]
            if failures and not self.retry_failed:
                message = failures[0]["error"] + " (failed before; retry_failed=true tries again)"
                return Outcome(self.cell, "failed", message)
            errors = self._measure(todo)
        seconds = time.perf_counter() - started
        return Outcome(self.cell, "failed" if errors else "measured", "; ".join(errors), seconds, self._metrics())

    def _missing(self) -> list[str]:
        return [name for name, id in self.ids.items() if self.store.get(id) is None]

    def _measure(self, todo) -> list[str]:
        """Quantizes, evaluates the parts ``todo`` and records them; the errors met, a line each."""
        errors = []

        def attempt(names, work: Callable):
            try:
                return work()
            except Exception as e:
                for name in names:
                    self.store.put_failure(self.ids[name], self.sciences[name], e, traceback.format_exc())
                errors.append(f"{type(e).__name__}: {one_line(e)}")

        def prepare_and_load():
            for name in todo:
                self.measures[name].prepare(self.context)
            return self.model()

        loaded = attempt(todo, prepare_and_load)
        if loaded is not None:
            model, reports = loaded
            for name in todo:
                attempt([name], partial(self._record, name, model, reports))
        if not (errors or self.machine.keep_weights):  # after an error a second try goes on from what is there
            shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.machine.placement.folder, ignore_errors=True)
        return errors

    def _record(self, name, model, reports):
        started = time.perf_counter()
        metrics = self.measures[name].run(model, self.context)
        nominal, stored, size = self.sizes(reports)
        where = provenance.collect(self.machine.device, time.perf_counter() - started)
        if self.quantization["calib"] and self.machine.data_dir is None:  # in the identity their hash stands for them
            where["calib_data"] = {file.repo: file.revision for file in self.calib.hub_files()}
        record = Measurement(self.ids[name], self.sciences[name], metrics, nominal, stored, size, reports, where)
        self.store.put(record)
        self.wandb.log(record)

    @property
    def folder(self) -> Path:
        """Where the quantized weights lie."""
        return self.machine.cache_dir / "quantized" / digest(self.quantization)

    def model(self) -> tuple[torch.nn.Module, list[LayerReport]]:
        """The quantized model and what quantization did to each linear; quantizes unless the cache has it."""
        if self.method.name == "none":
            return self.ckpt.load(self.machine.device, placement=self.machine.placement), []
        folder, blocks = QuantizedFolder(self.folder), self.ckpt.config.num_hidden_layers
        if not folder.is_complete(blocks):
            self._quantize(folder)
        reports = [report for index in range(blocks) for report in folder.reports(index)]
        return folder.load(self.ckpt, self.method.acts, self.machine.device, self.machine.placement), reports

    def _packed(self) -> torch.nn.Module:
        """The quantized model on the kernels; it has been quantized before."""
        folder, machine = QuantizedFolder(self.folder), self.machine
        return folder.load(self.ckpt, self.method.acts, machine.device, machine.placement, path="packed")

    def _quantize(self, folder: QuantizedFolder) -> None:
        ids_BT = self.calib.tokens(self.ckpt.tokenizer, self.machine.data_dir)
        quantize(
            self.ckpt,
            self.method,
            ids_BT,
            folder,
            device=self.machine.device,
            rest=self.machine.rest(waiting_bytes(Shape.of(self.ckpt.config), ids_BT.numel(), self.ckpt.model.dtype)),
            remembered=self._remembered(),
            progress=partial(tqdm, desc=self.cell, leave=False, disable=None),
        )

    def _remembered(self) -> Remembered | None:
        """Where statistics of the unquantized model are shared between methods and bit-widths, if they may take the
        room."""
        if statistics_bytes(Shape.of(self.ckpt.config)) > self.machine.statistics_gib * 2**30:
            return None
        what = {"model": self.ckpt.science(), "calib": self.quantization["calib"]}
        return Remembered(self.machine.cache_dir / "statistics" / digest(what | {"device": self.machine.device}))

    def sizes(self, reports: list[LayerReport]) -> tuple[float, float, int]:
        """Nominal and stored bits, means over quantized weights, and bytes of the whole model; the rest at 16 bits."""
        shapes = self.ckpt.linears
        numel = {name: N * K for name, (N, K) in shapes.items()}
        total = sum(numel.values())
        bits = {f"model.layers.{r.block}.{r.name}": (r.nominal_bits, r.stored_bits) for r in reports}
        nominal, stored = (sum(bits.get(name, (16, 16))[i] * n for name, n in numel.items()) for i in (0, 1))
        rest = self.ckpt.parameters() - total
        return nominal / total, stored / total, round(stored / 8) + 2 * rest

    def _metrics(self) -> dict[str, Metric]:
        records = (self.store.get(id) for id in self.ids.values())
        return {key: metric for r in records if r for key, metric in r.metrics.items()}


def run(cfg: DictConfig) -> Outcome:
    """Runs one configuration; bad input is an Outcome too, with the reason, and so is a bug, with its traceback."""
    try:
        config = Config.of(cfg)
        if config.table is not None and not preflight.is_printed(config.table, config.model.name, config.method):
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
