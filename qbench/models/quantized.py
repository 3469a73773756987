"""A quantized model on disk: one safetensors file per block, complete or absent.

A file holds the tensors of each quantized weight as ``<linear>/<field>``, and the block's other parameters (norms,
biases) under their own names. Its metadata has the class and the plain fields of each weight, and the report on each
linear. An interrupted quantization leaves the finished blocks and the inputs of the next one.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.types import Device

from qbench.files import plain
from qbench.grid import ActQuant
from qbench.linear import QuantLinear
from qbench.models.block import Block
from qbench.models.checkpoint import OpenCheckpoint
from qbench.models.files import metadata, save_tensors
from qbench.models.placement import Placement
from qbench.models.prequantized import Prequantized
from qbench.record import LayerReport
from qbench.weights import QuantWeight

T = TypeVar("T")
DAMAGE = (SafetensorError, AttributeError, KeyError, TypeError, ValueError)  # truncated, another version, no block


class QuantizedBlocks:
    """The blocks of a quantized model, from wherever ``read`` has them."""

    def read(self, ckpt: OpenCheckpoint, index: int, device: Device) -> tuple[Block, dict[str, QuantWeight]]:
        """A block without its quantized linears, and their weights."""
        raise NotImplementedError

    def block(
        self, ckpt: OpenCheckpoint, index: int, acts: ActQuant | None, device: Device, path="dequantized"
    ) -> Block:
        """A block with its quantized linears; ``path`` as in ``QuantLinear``."""
        block, weights = self.read(ckpt, index, device)
        for name, weight in weights.items():
            bias = getattr(block[name], "bias", None)
            block.module.set_submodule(name, QuantLinear(weight, bias, acts, ckpt.dtype, path))
        block.module.requires_grad_(False)
        return block

    def load(
        self,
        ckpt: OpenCheckpoint,
        acts: ActQuant | None,
        device: Device,
        placement: Placement | None = None,
        path: Literal["dequantized", "packed"] = "dequantized",
    ) -> nn.Module:
        """The whole quantized model, ready to evaluate."""
        return ckpt.load(device, lambda index, place: self.block(ckpt, index, acts, place, path), placement)


class StoredBlocks(QuantizedBlocks):
    """The blocks of a checkpoint that someone else quantized."""

    def __init__(self, prequantized: Prequantized):
        self.prequantized = prequantized

    def read(self, ckpt: OpenCheckpoint, index: int, device: Device) -> tuple[Block, dict[str, QuantWeight]]:
        """As the base class."""
        block, weights = ckpt.empty_block(index), {}
        prefix = f"model.layers.{index}."
        for name in (name for stage in block.stages for name in stage.linears if prefix + name in ckpt.outlines):
            weights[name] = self.prequantized.read(prefix + name, lambda key: ckpt.tensor(key, device))
        ckpt.fill(block.module, prefix, device)
        return block, weights


class QuantizedFolder(QuantizedBlocks):
    """The finished blocks of one quantized model; a damaged file is removed with a warning."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def block_path(self, index: int) -> Path:
        return self.path / f"block-{index:05d}.safetensors"

    def has(self, index: int) -> bool:
        return _read(self.block_path(index), _about) is not None

    def is_complete(self, blocks: int) -> bool:
        return all(self.has(index) for index in range(blocks))

    def save(self, block: Block, weights: dict[str, QuantWeight], reports: list[LayerReport]) -> None:
        """Writes the block; ``weights`` has its quantized linears by name."""
        about = {name: {"class": type(w).__name__, "settings": w.settings()} for name, w in weights.items()}
        tensors = {f"{name}/{field}": t for name, w in weights.items() for field, t in w.state().items()}
        rest = dict(block.module.named_parameters())
        tensors |= {name: p for name, p in rest.items() if name.removesuffix(".weight") not in weights}
        told = {"weights": json.dumps(about), "reports": json.dumps(plain(reports))}
        save_tensors(tensors, self.block_path(block.index), told)

    def reports(self, index: int) -> list[LayerReport]:
        """The reports on the linears of an existing block."""
        return _about(self.block_path(index))[1]

    def read(self, ckpt: OpenCheckpoint, index: int, device: Device) -> tuple[Block, dict[str, QuantWeight]]:
        """As the base class.

        Raises: OSError where the file does not hold this block; the file is removed, and the next run makes it again.
        """
        path, block = self.block_path(index), ckpt.empty_block(index)
        tensors = load_file(path, str(device))
        rest = {key: t for key, t in tensors.items() if "/" not in key}
        try:
            weights = {}
            for name, (cls, settings) in _about(path)[0].items():
                state = {key.rpartition("/")[2]: t for key, t in tensors.items() if key.startswith(f"{name}/")}
                weights[name] = cls(**state, **settings)
            for name, p in block.module.named_parameters():
                if name.removesuffix(".weight") not in weights and rest[name].shape != p.shape:
                    raise ValueError(f"{name} is {tuple(rest[name].shape)}, not {tuple(p.shape)}")
        except DAMAGE as e:
            path.unlink()
            raise OSError(f"{path} did not hold this block ({e}) and is removed; run the same command again") from e
        block.module.load_state_dict(rest, strict=False, assign=True)
        return block, weights

    def save_hidden(self, index: int, x_BTD: Tensor) -> None:
        """Writes the inputs of block ``index``, and only those: an interrupted quantization resumes there."""
        save_tensors({"x_BTD": x_BTD}, self.path / "hidden.safetensors", {"block": str(index)})

    def hidden(self) -> tuple[int, Tensor] | None:
        """The last block whose inputs were written, and these."""
        path = self.path / "hidden.safetensors"
        return _read(path, lambda path: (int(metadata(path)["block"]), load_file(path)["x_BTD"]))

    def drop_hidden(self) -> None:
        (self.path / "hidden.safetensors").unlink(missing_ok=True)


def _read(path: Path, read: Callable[[Path], T]) -> T | None:
    """``read(path)``; None where there is no file, or a damaged one."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except DAMAGE as e:
        path.unlink(missing_ok=True)
        warnings.warn(f"{path} is damaged ({type(e).__name__}: {e}); it is removed and made again", stacklevel=3)
        return None


def _about(path: Path) -> tuple[dict[str, tuple[type[QuantWeight], dict]], list[LayerReport]]:
    """What a block's file says of itself: {linear: (class of its weight, settings)}, and the reports."""
    told = {name: json.loads(text) for name, text in metadata(path).items()}
    weights = {}
    for name, what in told["weights"].items():
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in what["settings"].items()}
        weights[name] = _weight_class(what["class"]), settings
    return weights, [LayerReport.of(r) for r in told["reports"]]


def _weight_class(name: str) -> type[QuantWeight]:
    """The class of weights called ``name``. Only classes already imported count: a file must not choose what runs."""
    known: list[type[QuantWeight]] = [QuantWeight]
    for cls in known:
        known += cls.__subclasses__()
    found = [cls for cls in known[1:] if cls.__name__ == name]
    if not found:
        raise ValueError(f"no class of quantized weights is called {name}")
    return found[0]
