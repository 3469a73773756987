"""``qbench export``: writes one quantized model as a checkpoint that other engines read.

    qbench export model=qwen3-0.6b method=gptq grid.bits=4 format=compressed-tensors out=FOLDER

Arguments are those of ``qbench run`` for one model. ``format`` is one of the files in qbench/formats, and
``format.FIELD`` one of its options. What cannot be written is refused before anything is quantized. The model is
quantized, or taken from the cache, and written block by block beside FOLDER, which gets its name when it is whole.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from qbench.config import Config
from qbench.files import scratch
from qbench.formats import format_of
from qbench.formats.base import Format, Part, Source
from qbench.models.files import read_tensor
from qbench.outcomes import table
from qbench.overrides import parsed, sweep_arguments
from qbench.plan import footprint
from qbench.plan.sweep import configs
from qbench.progress import Progress
from qbench.quantization import Quantization
from qbench.record import LayerReport, digest
from qbench.report.quality.variants import flatten, quantization
from qbench.settings import build
from qbench.store import Store

CARD = """\
---
{base}library_name: transformers
---
# {title}

Made by qbench: {bits}. Embedding, norms and lm_head are not quantized. All files have {size} bytes.

| setting | value |
|---|---|
{settings}

## Measured by qbench

Of the weights {id}, multiplied after dequantization in {dtype}:

{measured}

## Engines

Codes, scales and zeros are those that were measured, to the last bit. Where an engine multiplies in another type than
{dtype}, or in another order, its numbers differ by rounding. {notes}
"""


def main(args: list[str]) -> int:
    """Runs the command; 1 for what is refused or fails, 2 for a command line that cannot be read, else 0."""
    parser = argparse.ArgumentParser(
        prog="qbench export",
        usage="qbench export [GROUP=CHOICE | GROUP.FIELD=VALUE ...] format=NAME [format.FIELD=VALUE ...] out=FOLDER",
        description="Writes a quantized model for other engines; arguments as for `qbench run`, without -m.",
    )
    words = sweep_arguments(parser, args).overrides
    mine = dict(word.split("=", 1) for word in words if re.match(r"(format(\.\w+)?|out)=", word))
    if missing := {"format", "out"} - mine.keys():
        parser.error(f"{' and '.join(sorted(missing))} must be set, as in format=gptq out=FOLDER")
    try:
        options = {key[7:]: parsed(f"{key}={mine[key]}").value() for key in mine if key.startswith("format.")}
        format = build(options, "format", format_of(mine["format"]))
        found, refused = configs([word for word in words if word.partition("=")[0] not in mine])
        if refused or len(found) != 1:
            raise ValueError((refused or [f"one model is exported at a time, these arguments name {len(found)}"])[0])
        print(Export(found[0], format, Path(mine["out"]).expanduser()).write())
    except (ArithmeticError, ValueError, OSError, OmegaConfBaseException) as e:
        print(f"qbench export: {e}", file=sys.stderr)
        return 1
    return 0


class Export:
    """One model on its way into the folder ``out``. Raises ValueError or OSError for what cannot be written."""

    def __init__(self, config: Config, format: Format, out: Path):
        self.config, self.format, self.out = config, format, out
        self.method, self.machine, self.ckpt = config.method, config.machine, config.model.open()
        self.machine.start()
        if not config.quantizes:
            raise ValueError("method=none leaves the model as it is; choose a method, as in method=gptq")
        self.method.check(self.ckpt.linears)
        replace(config, eval={}).check_lengths(self.ckpt.config.max_position_embeddings)  # nothing is evaluated
        self.outlines = {name: self.method.outline(N, K) for name, (N, K) in self.ckpt.linears.items()}
        format.check_model(self.ckpt.folder)
        format.check(self.outlines, self.method.acts)
        format.config(self.outlines, self.method.acts)
        self._check_room()
        self.quantized = Quantization(config, self.ckpt)

    def _check_room(self) -> None:
        if self.out.exists():
            raise FileExistsError(f"out={self.out} exists; delete it, or choose another folder")
        sizes = sum(self.format.size(w, self.method.acts, self.ckpt.dtype) for w in self.outlines.values())
        linears = sum(N * K for N, K in self.ckpt.linears.values())
        sizes += (self.ckpt.parameters() - linears) * self.ckpt.dtype.itemsize
        if (free := footprint.free(self.out)) < sizes:
            raise OSError(f"out={self.out} needs {sizes:,} bytes, but the disk has {free:,}; choose another disk")

    def write(self) -> str:
        """Quantizes what is not in the cache, writes the folder, and returns one line that says so."""
        weights, beside = self.quantized.weights, self.out.with_name(f".{self.out.name}.partial")
        if not (was_there := weights.folder.is_complete(self.quantized.blocks)):
            footprint.check_room(self.ckpt, self.method, self.machine, self.quantized.cell)
        source = Source(self.ckpt.folder, self._parts, self.outlines, self.method.acts, self.ckpt.dtype)
        try:
            with self.quantized.whole(), scratch(beside) as folder:
                self.format.write(source, folder)
                size = sum(path.stat().st_size for path in folder.iterdir())
                (folder / "README.md").write_text(self.card(self.quantized.reports(), size))
                folder.rename(self.out)
        finally:
            with suppress(OSError):  # it is not there yet, or another process writes there
                beside.rmdir()
        if not (was_there or self.machine.keep_weights):
            weights.drop()
        return f"{self.quantized.cell} as {self.format.name} in {self.out}, {size:,} bytes"

    def _parts(self) -> Iterator[Part]:
        ckpt = self.ckpt
        for key in (key for key, _ in ckpt.skeleton.named_parameters() if not key.startswith("model.layers.")):
            yield Part({key: read_tensor(ckpt.folder / ckpt.files[key], key).to(ckpt.dtype)}, {})
        for index in Progress(range(self.quantized.blocks), desc=f"write {self.quantized.cell}", unit="blocks"):
            block, weights = self.quantized.weights.folder.read(ckpt, index, "cpu")
            at = f"model.layers.{index}."
            rest = {at + name: p.detach() for name, p in block.module.named_parameters() if not p.is_meta}
            yield Part(rest, {at + name: weight for name, weight in weights.items()})

    def card(self, reports: list[LayerReport], size: int) -> str:
        """The model card: how the weights were made, what was measured, and for which file the numbers hold."""
        ckpt, science = self.ckpt, self.quantized.science
        nominal, stored, _ = self.quantized.sizes(reports)
        records = [m for m in Store(self.machine.results_dir).measurements() if quantization(m.science) == science]
        measured = [f"Record {m.id}:\n{table(m.metrics)}" for m in records]
        return CARD.format(
            base=f"base_model: {ckpt.model.repo}\n" if ckpt.model.repo else "",
            title=f"{self.quantized.cell}, {self.format.name}",
            id=digest(science),
            bits=f"{nominal:.4g} bits per quantized weight, {stored:.4g} with scales and zeros",
            size=f"{size:,}",
            settings="\n".join(f"| {key} | {value} |" for key, value in flatten(science).items()),
            measured="\n\n".join(measured) or "Nothing was recorded when this file was written.",
            dtype=ckpt.model.dtype,
            notes=" ".join(self.format.notes(self.outlines, self.method.acts)),
        )
