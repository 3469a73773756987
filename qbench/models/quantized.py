"""A quantized model on disk: one safetensors file a block, whole or absent.

A file holds the stored tensors of each quantized weight as ``<linear>/<field>``, and whatever else the block has
(norms, biases) under its own name; its metadata says the class and the plain fields of each weight, and what
quantization did to each linear. A quantization that was cut off leaves the blocks that were done, and the
hidden states on their way to the next one.
"""

import json
import warnings
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qbench.files import written_whole
from qbench.grid import ActQuant
from qbench.json_values import plain
from qbench.linear import QuantLinear
from qbench.models.block import Block
from qbench.models.checkpoint import OpenCheckpoint
from qbench.models.placement import Placement
from qbench.record import LayerReport
from qbench.weights import QuantWeight

# what reading a file raises that is cut off, of another version, or not ours
_DAMAGE = (SafetensorError, AttributeError, KeyError, TypeError, ValueError)


class QuantizedFolder:
    """The blocks of one quantized model, as far as they are done."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def block_path(self, index: int) -> Path:
        return self.path / f"block-{index:05d}.safetensors"

    def has(self, index: int) -> bool:
        """Whether the block is there whole; a damaged file is removed, with a warning, and made again."""
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
        """Writes the block, whose linears ``weights`` names."""
        tensors, about = {}, {}
        for name, weight in weights.items():
            about[name] = {"class": type(weight).__name__, "settings": weight.settings()}
            tensors |= {f"{name}/{field}": t for field, t in weight.state().items()}
        inside = tuple(f"{name}.weight" for name in weights)
        tensors |= {name: p for name, p in block.module.named_parameters() if name not in inside}
        metadata = {"weights": json.dumps(about), "reports": json.dumps(plain(reports))}
        save_whole(tensors, self.block_path(block.index), metadata)

    def reports(self, index: int) -> list[LayerReport]:
        """What quantization did to the linears of a block that is there."""
        with safe_open(self.block_path(index), framework="pt") as f:
            return [LayerReport.of(r) for r in json.loads(f.metadata()["reports"])]

    def read(self, ckpt: OpenCheckpoint, index: int, device) -> tuple[Block, dict[str, QuantWeight]]:
        """A block without its quantized linears, and their weights.

        Raises: OSError where the file does not hold this block; it is removed, so that the next run makes it again.
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

    def block(self, ckpt: OpenCheckpoint, index: int, acts: ActQuant | None, device, path="dequantized") -> Block:
        """A block as it runs: with its quantized linears; ``path`` as in ``QuantLinear``."""
        block, weights = self.read(ckpt, index, device)
        for name, weight in weights.items():
            bias = getattr(block[name], "bias", None)
            block.install(name, QuantLinear(weight, bias, acts, ckpt.dtype, path))
        block.module.requires_grad_(False)
        return block

    def load(
        self,
        ckpt: OpenCheckpoint,
        acts: ActQuant | None,
        device,
        placement: Placement | None = None,
        path: Literal["dequantized", "packed"] = "dequantized",
    ) -> nn.Module:
        """The whole quantized model, ready to evaluate; ``path`` as in ``QuantLinear``."""
        return ckpt.load(device, lambda index, place: self.block(ckpt, index, acts, place, path), placement)

    def save_hidden(self, index: int, x_BTD: Tensor) -> None:
        """Keeps what block ``index`` reads, the latest only: with it a cut-off quantization goes on there."""
        save_whole({"x_BTD": x_BTD}, self.path / "hidden.safetensors", {"block": str(index)})

    def hidden(self) -> tuple[int, Tensor] | None:
        """The block and what it reads, as kept last; a damaged file is removed, with a warning."""
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


def save_whole(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file so that ``path`` holds either the whole of it or what it held before."""
    with written_whole(path) as temporary:
        save_file({k: t.detach().to("cpu", copy=False).contiguous() for k, t in tensors.items()}, temporary, metadata)
