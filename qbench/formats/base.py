"""The contract of a checkpoint format of other engines. To add one, write one file in this folder: a frozen dataclass
whose fields are the format's options (``format.FIELD=VALUE`` on the command line), with the methods below.

``qbench export`` refuses a weight that the format cannot hold while it is still an outline (``QuantWeight.outline``: a
weight on the meta device), before anything is quantized. It then streams the model block by block through ``write``,
and reads every linear back before the folder gets its name.

Dimension key of all formats: N output channels, K input channels, G groups of K.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from qbench import settings
from qbench.grid import ActQuant, Grid
from qbench.models.files import INDEX, TOKENIZER, save_tensors
from qbench.weights import Fp8Weight, QuantWeight, UniformWeight

SHARD = 2**30  # bytes of tensors that are collected before a file is written
OTHERS = (*TOKENIZER, "generation_config.json", "chat_template*")  # files of the checkpoint that are copied


@dataclass(frozen=True)
class Part:
    """A piece of a model that fits into memory: the embedding, one block, or what comes after the blocks. Names are
    those of the whole model: ``tensors`` are not quantized, ``weights`` are linears without their ``.weight``."""

    tensors: dict[str, Tensor]
    weights: dict[str, QuantWeight]


@dataclass(frozen=True)
class Source:
    """The model to write. ``folder``: its unquantized checkpoint, with config.json and the tokenizer; ``parts()``
    streams it; ``outlines``: all of its quantized weights without numbers; ``dtype``: of everything else."""

    folder: Path
    parts: Callable[[], Iterator[Part]]
    outlines: dict[str, QuantWeight]
    acts: ActQuant | None
    dtype: torch.dtype


@dataclass(frozen=True)
class Stored:
    """How the linears of a file are stored: the format with that file's options, and outlines of the weights."""

    format: "Format"
    outlines: dict[str, QuantWeight]
    acts: ActQuant | None = None


@dataclass(frozen=True)
class Format:
    """The base class: a folder of safetensors with the quantization in config.json. ``name`` is what users type."""

    name: ClassVar[str]
    holds_acts: ClassVar[bool] = False  # whether a file can say how activations are quantized
    holds_moving_groups: ClassVar[bool] = False  # whether the columns of a group may lie anywhere

    def __post_init__(self):
        settings.check(self, "format")

    @classmethod
    def stored(cls, told: dict, shapes: dict[str, tuple[int, int]]) -> Stored:
        """How a file whose config.json has the quantization_config ``told`` holds linears of these shapes (N, K).
        ValueError for what ``read`` would read wrongly. A format without this method is written only."""
        raise NotImplementedError

    def refuse(self, weight: QuantWeight, acts: ActQuant | None) -> None:
        """ValueError where this format cannot hold ``weight`` or say how activations are quantized: the constraint,
        what came, and what to do. Values are judged only where there are any (``is_meta``). Extend it: this much
        refuses what is no ``UniformWeight``, and what the flags exclude."""
        if not isinstance(weight, UniformWeight):
            other = "fp8" if isinstance(weight, Fp8Weight) else "hf"
            raise ValueError(f"it holds uniform codes, not a {type(weight).__name__}; use format={other}")
        if acts and not self.holds_acts:
            raise ValueError("it does not say how activations are quantized; use format=compressed-tensors")
        if weight.group_K is not None and not self.holds_moving_groups:
            raise ValueError("its groups are neighbouring columns; use method.static_groups=true, or format=gptq")

    def check(self, weights: dict[str, QuantWeight], acts: ActQuant | None) -> None:
        """``refuse`` for all of ``weights``, with the name of the linear."""
        for name, weight in weights.items():
            try:
                self.refuse(weight, acts)
            except ValueError as e:
                raise ValueError(f"format={self.name} cannot hold {name}: {e}") from e

    def check_model(self, folder: Path) -> None:
        """ValueError where the format has no place for the kind of model whose checkpoint is in ``folder``."""

    def tensors(self, weight: QuantWeight, acts: ActQuant | None, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of one linear by the last part of their names, also of an outline; ``dtype`` is that of the
        model's other tensors."""
        raise NotImplementedError

    def config(self, weights: dict[str, QuantWeight], acts: ActQuant | None) -> dict:
        """What config.json gets for the linears ``weights``, which may be outlines; ValueError where their kinds do not
        go into one file."""
        raise NotImplementedError

    def one_grid(self, weights: dict[str, UniformWeight]) -> Grid:
        """The grid of all linears, for formats that have one; else ValueError."""
        found = grids(weights)
        if len(found) > 1:
            several = ", ".join(f"{grid} in {names[0]}" for grid, names in found.items())
            raise ValueError(f"format={self.name} has one grid for all linears, not {several}; use compressed-tensors")
        return next(iter(found))

    def read(self, name: str, tensors: dict[str, Tensor], config: dict) -> QuantWeight:
        """The linear ``name`` again from its ``tensors`` and the file's ``config``: the same codes, scales, zeros."""
        raise NotImplementedError

    def notes(self, weights: dict[str, QuantWeight], acts: ActQuant | None) -> list[str]:
        """Sentences for the model card: which engines read such a file, and how their arithmetic differs from what
        qbench measures."""
        return []

    def size(self, weight: QuantWeight, acts: ActQuant | None, dtype: torch.dtype) -> int:
        """Bytes of one linear on disk."""
        return sum(t.nbytes for t in self.tensors(weight.outline(), acts, dtype).values())

    def write(self, model: Source, folder: Path) -> None:
        """Writes everything but the model card into the empty ``folder``. Overridden by formats of another layout."""
        settings = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
        settings.pop("torch_dtype", None)  # the former name of dtype
        settings |= {"dtype": str(model.dtype).removeprefix("torch.")} | self.config(model.outlines, model.acts)
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        for path in {path for pattern in OTHERS for path in model.folder.glob(pattern) if path.is_file()}:
            shutil.copyfile(path, folder / path.name)
        save_shards(self._named(model), folder)

    def _named(self, model: Source) -> Iterator[tuple[str, Tensor]]:
        for part in model.parts():
            yield from part.tensors.items()
            for name, weight in part.weights.items():
                self.check({name: weight}, model.acts)
                told, expected = (self.config({name: w}, model.acts) for w in (weight, model.outlines[name]))
                if told != expected:
                    raise ValueError(f"{name}: the method's outline() is not what its quantize() returned")
                tensors = self.tensors(weight, model.acts, model.dtype)
                back = self.read(name, tensors, told)
                if not torch.equal(back.dequantize().to(model.dtype), weight.dequantize().to(model.dtype)):
                    raise AssertionError(f"{name} is not read back as it was written; this is a bug of {self.name}")
                yield from ((f"{name}.{suffix}", t) for suffix, t in tensors.items())


def is_signs(weight: UniformWeight) -> bool:
    """Whether the levels are -s/2 and s/2."""
    return weight.bits == 1 and weight.zero_NG is None


def check_halves(weight: UniformWeight) -> None:
    """ValueError where the weight is -s/2 and s/2 and a scale s is too small to be stored as s / 2."""
    scale_NG = weight.scale_NG
    if is_signs(weight) and not scale_NG.is_meta and not torch.equal(scale_NG / 2 * 2, scale_NG):
        raise ValueError("one symmetric bit has the scale s / 2, and an s is too small to be halved; use format=hf")


def grids(weights: dict[str, UniformWeight]) -> dict[Grid, list[str]]:
    """The linears of each grid by name; a row of one group counts to those whose groups are as long as it is."""
    found: dict[Grid, list[str]] = {weight.grid: [] for weight in weights.values()}
    for name, weight in weights.items():
        grid, row = weight.grid, replace(weight.grid, group_size=weight.codes_NK.shape[1])
        found[row if grid.group_size == -1 and row in found else grid].append(name)
    return {grid: names for grid, names in found.items() if names}


def save_shards(named: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Writes ``model.safetensors``, or numbered files of at least SHARD bytes and their index."""
    shards: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    total = 0

    def save() -> None:
        save_tensors(waiting, folder / f"{len(shards)}.safetensors", {"format": "pt"})
        shards.append(list(waiting))
        waiting.clear()

    for name, tensor in named:
        waiting[name] = tensor
        total += tensor.nbytes
        if sum(t.nbytes for t in waiting.values()) >= SHARD:
            save()
    if waiting:
        save()
    whole, where = "model.safetensors", {}
    for i, names in enumerate(shards):
        file = whole if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"{i}.safetensors").rename(folder / file)
        where |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
