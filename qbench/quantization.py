"""The quantized model of one configuration: made once, kept in the cache, and loaded to be evaluated."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from qbench.config import Config
from qbench.files import Lock, remove_stale
from qbench.models.checkpoint import OpenCheckpoint
from qbench.models.placement import Placement
from qbench.models.quantized import QuantizedBlocks, QuantizedFolder, StoredBlocks
from qbench.plan.footprint import hidden_bytes, statistics_bytes, stored_bytes, waiting_bytes
from qbench.progress import Progress
from qbench.record import LayerReport, digest
from qbench.shape import Shape
from qbench.statistics_cache import CachedStatistics, open_statistics
from qbench.stream import quantize
from qbench.weights import QuantWeight


class CachedWeights:
    """The quantized weights ``id`` of a model of ``blocks`` decoder layers, in a folder that all processes share.

    One process quantizes while others wait; then any number evaluate at once, and the last of them deletes the weights.
    """

    def __init__(self, cache_dir: Path, id: str, blocks: int):
        self.folder, self.blocks = QuantizedFolder(cache_dir / "quantized" / id), blocks
        self._lock = Lock(cache_dir / ".locks" / id)

    @contextmanager
    def whole(self, make: Callable[[QuantizedFolder], None]) -> Iterator[QuantizedFolder]:
        """The folder, after ``make`` wrote the missing blocks; no process deletes it while the context is open."""
        try:
            while not self._is_ready(make):
                self._lock.release()
            yield self.folder
        finally:
            self._lock.release()

    def _is_ready(self, make: Callable[[QuantizedFolder], None]) -> bool:
        if self._lock.acquire():
            if not self.folder.is_complete(self.blocks):
                remove_stale(self.folder.path, age=0)  # no other process is writing here
                make(self.folder)
        elif not self._lock.acquire(shared=True):
            print(f"waiting for another process that quantizes {self.folder.path}", file=sys.stderr, flush=True)
        self._lock.acquire(shared=True, wait=True)
        return self.folder.is_complete(self.blocks)  # not if the other process failed, or deleted it just now

    def drop(self) -> None:
        """Deletes the weights unless another process uses them."""
        if self.folder.path.exists() and self._lock.acquire():
            shutil.rmtree(self.folder.path, ignore_errors=True)
            self._lock.release(remove=True)


class Quantization:
    """What a method makes of a model, or what someone else has made of it. ``science`` is its part of every record's
    identity. ``source`` has the quantized blocks; None: the model is unquantized."""

    def __init__(self, config: Config, ckpt: OpenCheckpoint):
        self.ckpt, self.method, self.calib, self.machine = ckpt, config.method, config.calib, config.machine
        if ckpt.prequantized and config.quantizes:
            raise ValueError(
                f"model {ckpt.model.name} is quantized already ({ckpt.prequantized.words}); use method=none to "
                f"measure it as it is, or an unquantized model for method={self.method.name}"
            )
        self.science = config.settings() | {"model": ckpt.science()}
        if self.science["calib"]:
            self.science["calib"] = self.calib.science(ckpt.tokenizer, self.machine.data_dir)
        self.blocks, self.quantizes, self.acts = ckpt.config.num_hidden_layers, config.quantizes, self.method.acts
        self.weights = CachedWeights(self.machine.cache_dir, digest(self.science), self.blocks)
        self.source: QuantizedBlocks | None = self.weights.folder if self.quantizes else None
        if ckpt.prequantized:
            self.source, self.acts = StoredBlocks(ckpt.prequantized), ckpt.prequantized.stored.acts

    @property
    def cell(self) -> str:
        """What a person calls it."""
        if self.ckpt.prequantized:
            return f"{self.ckpt.model.name} as stored ({self.ckpt.prequantized.words})"
        grid, acts = self.method.grid, self.method.acts
        bits = f" W{grid.bits}A{acts.bits if acts else 16}" if grid else f" A{acts.bits}" if acts else ""
        return f"{self.ckpt.model.name} {self.method.name}{bits}"

    def whole(self) -> AbstractContextManager:
        """Quantizes what is not in the cache; while the context is open, no process deletes the weights."""
        return self.weights.whole(self._quantize) if self.quantizes else nullcontext()

    def load(
        self, placement: Placement | None, path: Literal["dequantized", "packed"] = "dequantized"
    ) -> torch.nn.Module:
        """The model to evaluate, inside ``whole``; ``path`` as in ``QuantLinear``."""
        if self.source is None:
            return self.ckpt.load(self.machine.device, placement=placement)
        return self.source.load(self.ckpt, self.acts, self.machine.device, placement, path)

    def outlines(self) -> dict[str, QuantWeight]:
        """The quantized weights by the full name of their linear, without numbers, as far as they are known before."""
        made = {name: self.method.outline(*shape) for name, shape in self.ckpt.linears.items() if self.quantizes}
        return made or self.ckpt.outlines

    def reports(self) -> list[LayerReport]:
        """What quantization did to each linear."""
        folder = self.weights.folder
        return [report for index in range(self.blocks) for report in folder.reports(index)] if self.quantizes else []

    def sizes(self, reports: list[LayerReport]) -> tuple[float, float, int]:
        """Nominal and stored bits, means over quantized weights, and bytes of the whole model; the rest at 16 bits.
        Weights that someone else quantized have been read before."""
        numel = {name: N * K for name, (N, K) in self.ckpt.linears.items()}
        total = sum(numel.values())
        bits = {name: (weight.nominal_bits, weight.stored_bits) for name, weight in self.ckpt.outlines.items()}
        bits |= {f"model.layers.{r.block}.{r.name}": (r.nominal_bits, r.stored_bits) for r in reports}
        nominal, stored = (sum(bits.get(name, (16, 16))[i] * n for name, n in numel.items()) for i in (0, 1))
        rest = self.ckpt.parameters() - total
        return nominal / total, stored / total, round(stored / 8) + 2 * rest

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
        """Statistics of the unquantized model, shared by methods and bit-widths, if the disk has room for them beside
        the quantized weights and ``hidden`` bytes of hidden states."""
        shape, what = Shape.of(self.ckpt.config), {"model": self.ckpt.science(), "calib": self.science["calib"]}
        return open_statistics(
            self.machine.cache_dir / "statistics",
            digest(what | {"device": self.machine.device}),
            size=statistics_bytes(shape),
            limit=self.machine.statistics_gib * 2**30,
            spare=hidden + stored_bytes(shape, self.method),
        )
