"""The linears of a checkpoint that someone else quantized: how they are stored, and their weights bit for bit.

The headers of the files say which linears are quantized: one with a ``.weight`` in a float type is not, whatever names
config.json lists, so no pattern of a checkpoint is interpreted. That config.json tells the truth is held by encoding
each weight again: its tensors must be those of the file.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from qbench.formats import stored_as
from qbench.formats.base import Stored, grids
from qbench.models.files import FLOATS, Expected, Header
from qbench.weights import QuantWeight, UniformWeight

KINDS = {torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32", torch.uint32: "U32", torch.int64: "I64"}
KINDS |= {torch.float8_e4m3fn: "F8_E4M3"}  # as safetensors calls them
ANY = torch.float16  # the type of a model's other tensors, which these formats do not depend on


@dataclass(frozen=True)
class Prequantized:
    """How the model in ``folder`` is stored; ``floats`` of its linears are not quantized. An outline is made from
    config.json until its weight is read: only then is it known whether groups move."""

    folder: Path
    stored: Stored
    floats: int

    @classmethod
    def of(
        cls, folder: Path, told: dict, linears: dict[str, tuple[int, int]], headers: dict[str, Header]
    ) -> "Prequantized":
        """Raises: ValueError for what no format reads, before any weight is."""
        floats = {name for name in linears if headers.get(f"{name}.weight", ("", "", ()))[1] in FLOATS}
        try:
            stored = stored_as(told, {name: shape for name, shape in linears.items() if name not in floats})
            stored.format.check(stored.outlines, stored.acts)
        except ValueError as e:
            raise ValueError(f"cannot read the quantized model in {folder}: {e}; use an unquantized checkpoint") from e
        if headers and not stored.outlines:
            raise ValueError(f"config.json in {folder} has a quantization_config, but no linear is quantized")
        return cls(folder, stored, len(floats))

    def science(self) -> dict:
        """Its part of a record's identity."""
        weights, acts = self.stored.outlines, self.stored.acts
        config = self.stored.format.config(weights, acts)["quantization_config"]
        layout = next(config[key] for key in ("checkpoint_format", "version", "format", "fmt") if key in config)
        found: dict = {"quant_method": config["quant_method"], "format": layout}
        if len(bits := {weight.nominal_bits for weight in weights.values()}) == 1:
            found["bits"] = int(bits.pop())
        uniform = {name: weight for name, weight in weights.items() if isinstance(weight, UniformWeight)}
        if len(uniform) == len(weights) and len(kinds := grids(uniform)) == 1:
            found |= asdict(next(iter(kinds)))
        found |= {"acts": asdict(acts)} if acts else {}
        return found | ({"unquantized_linears": self.floats} if self.floats else {})

    @property
    def words(self) -> str:
        """What a person calls it."""
        told = self.science()
        return " ".join([told["quant_method"], f"W{told.get('bits', '')}A{told.get('acts', {}).get('bits', 16)}"])

    def expected(self) -> Expected:
        """The tensors of the quantized linears; all but numbers in 8 bits may have any float type."""
        found: Expected = {}
        for name, weight in self.stored.outlines.items():
            for suffix, t in self.stored.format.tensors(weight, self.stored.acts, ANY).items():
                found[f"{name}.{suffix}"] = ((KINDS[t.dtype],) if t.dtype in KINDS else FLOATS, tuple(t.shape))
        return found

    def read(self, name: str, tensor: Callable[[str], Tensor]) -> QuantWeight:
        """The weight of the linear ``name``; ``tensor`` reads one by its full name.

        Raises: ValueError where the tensors are not what the format stores of any weight.
        """
        format, outlines, acts = self.stored.format, self.stored.outlines, self.stored.acts
        found = {key: tensor(f"{name}.{key}") for key in format.tensors(outlines[name], acts, ANY)}
        weight = format.read(name, found, format.config({name: outlines[name]}, acts))
        if not all(t.float().isfinite().all() for t in weight.state().values() if t.is_floating_point()):
            raise ValueError(f"NaN or inf in {name} of {self.folder}; the checkpoint is broken")
        if isinstance(weight, UniformWeight):
            weight = replace(weight, scale_NG=_float16(weight.scale_NG, f"a scale of {name} in {self.folder}"))
            groups_K, G = weight.group_K, weight.scale_NG.shape[1]
            if groups_K is not None and not 0 <= int(groups_K.amin()) <= int(groups_K.amax()) < G:
                raise ValueError(f"{name}.g_idx in {self.folder} names groups that are not among the {G} of its scales")
        format.check({name: weight}, acts)
        for key, t in format.tensors(weight, acts, ANY).items():
            if not torch.equal(_exact(t.to(found[key].dtype)), _exact(found[key])):
                raise ValueError(
                    f"{name}.{key} in {self.folder} holds other numbers than {format.name} files of this configuration "
                    f"do; its quantization_config may be wrong: {self.science()}"
                )
        outlines[name] = weight.outline()
        return weight


def _exact(t: Tensor) -> Tensor:
    """The same numbers in a type that can be compared."""
    return t.float() if t.is_floating_point() else t


def _float16(scale_NG: Tensor, what: str) -> Tensor:
    """The same numbers in float16."""
    if not torch.equal((half_NG := scale_NG.half()).float(), scale_NG.float()):
        raise ValueError(f"{what} is not a float16 number, which is how scales are stored here")
    return half_NG
