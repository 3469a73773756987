"""A quantized model on disk: one safetensors file per block, complete or absent.

A file holds the tensors of each quantized weight as ``<linear>/<field>``, and the block's other parameters (norms,
biases) under their own names. Its metadata has the class and the plain fields of each weight, and the report on each
linear. An interrupted quantization leaves the finished blocks and the inputs of the next one.
"""

import json
import warnings
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.types import Device

from qbench.files import plain
from qbench.grid import ActQuant
from qbench.linear import QuantLinear
from qbench.models.block import Block
from qbench.models.checkpoint import OpenCheckpoint
from qbench.models.files import save_tensors
from qbench.models.placement import Placement
from qbench.record import LayerReport
from qbench.weights import QuantWeight

# errors of reading a file that is truncated, of another version, or not a block
_DAMAGE = (SafetensorError, AttributeError, KeyError, TypeError, ValueError)


class QuantizedFolder:
    """The finished blocks of one quantized model."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def block_path(self, index: int) -> Path:
        return self.path / f"block-{index:05d}.safetensors"

    def has(self, index: int) -> bool:
        """Whether the block is there; a damaged file is removed with a warning."""
        path = self.block_path(index)
        try:
            with safe_open(path, framework="pt") as f:
                about = json.loads(f.metadata()["weights"])
                json.loads(f.metadata()["reports"])
            return all(_weight_class(what["class"]) for what in about.values())
        except FileNotFoundError:
            return False
        except _DAMAGE as e:
            _remove(path, e)
            return False

    def is_complete(self, blocks: int) -> bool:
        return all(self.has(index) for index in range(blocks))

    def save(self, block: Block, weights: dict[str, QuantWeight], reports: list[LayerReport]) -> None:
        """Writes the block; ``weights`` has its quantized linears by name."""
        tensors, about = {}, {}
        for name, weight in weights.items():
            about[name] = {"class": type(weight).__name__, "settings": weight.settings()}
            tensors |= {f"{name}/{field}": t for field, t in weight.state().items()}
        inside = tuple(f"{name}.weight" for name in weights)
        tensors |= {name: p for name, p in block.module.named_parameters() if name not in inside}
        metadata = {"weights": json.dumps(about), "reports": json.dumps(plain(reports))}
        save_tensors(tensors, self.block_path(block.index), metadata)

    def reports(self, index: int) -> list[LayerReport]:
        """The reports on the linears of an existing block."""
        with safe_open(self.block_path(index), framework="pt") as f:
            return [LayerReport.of(r) for r in json.loads(f.metadata()["reports"])]

    def read(self, ckpt: OpenCheckpoint, index: int, device: Device) -> tuple[Block, dict[str, QuantWeight]]:
        """A block without its quantized linears, and their weights.

        Raises: OSError where the file does not hold this block; the file is removed, and the next run makes it again.
        """
        path, block = self.block_path(index), ckpt.empty_block(index)
        with safe_open(path, framework="pt", device=str(device)) as f:
            about = json.loads(f.metadata()["weights"])
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
        rest = {key: t for key, t in tensors.items() if "/" not in key}
        try:
            weights = {}
            for name, what in about.items():
                state = {key.rpartition("/")[2]: t for key, t in tensors.items() if key.startswith(f"{name}/")}
                settings = {k: tuple(v) if isinstance(v, list) else v for k, v in what["settings"].items()}
                weights[name] = _weight_class(what["class"])(**state, **settings)
            for name, p in block.module.named_parameters():
                if name.removesuffix(".weight") not in weights and rest[name].shape != p.shape:
                    raise ValueError(f"{name} is {tuple(rest[name].shape)}, not {tuple(p.shape)}")
        except _DAMAGE as e:
            path.unlink()
            raise OSError(f"{path} did not hold this block ({e}) and is removed; run the same command again") from e
        block.module.load_state_dict(rest, strict=False, assign=True)
        return block, weights

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
        """The whole quantized model, ready to evaluate; ``path`` as in ``QuantLinear``."""
        return ckpt.load(device, lambda index, place: self.block(ckpt, index, acts, place, path), placement)

    def save_hidden(self, index: int, x_BTD: Tensor) -> None:
        """Writes the inputs of block ``index``, and only those: an interrupted quantization resumes there."""
        save_tensors({"x_BTD": x_BTD}, self.path / "hidden.safetensors", {"block": str(index)})

    def hidden(self) -> tuple[int, Tensor] | None:
        """The last block whose inputs were written, and these; a damaged file is removed with a warning."""
        path = self.path / "hidden.safetensors"
        try:
            with safe_open(path, framework="pt") as f:
                return int(f.metadata()["block"]), f.get_tensor("x_BTD")
        except FileNotFoundError:
            return None
        except _DAMAGE as e:
            _remove(path, e)
            return None

    def drop_hidden(self) -> None:
        (self.path / "hidden.safetensors").unlink(missing_ok=True)


def _weight_class(name: str) -> type[QuantWeight]:
    """The class of weights called ``name``. Only classes already imported count: a file must not choose what runs."""
    known: list[type[QuantWeight]] = [QuantWeight]
    for cls in known:
        known += cls.__subclasses__()
    found = {cls.__name__: cls for cls in known[1:]}
    if name not in found:
        raise ValueError(f"no class of quantized weights is called {name}")
    return found[name]


def _remove(path: Path, why: Exception) -> None:
    path.unlink(missing_ok=True)
    warnings.warn(f"{path} is damaged ({type(why).__name__}: {why}); it is removed and made again", stacklevel=3)
