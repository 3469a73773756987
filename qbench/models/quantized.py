"""A quantized model on disk: one safetensors file a block.

A file holds the stored tensors of each quantized weight as ``<linear>/<field>``, and whatever else the block has
(norms, biases) under its own name; its metadata says the class and the plain fields of each weight.
"""

import json
import os
from pathlib import Path
from pydoc import locate

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from qbench.grid import ActQuant, QuantWeight
from qbench.linear import QuantLinear
from qbench.models.block import Block
from qbench.models.checkpoint import OpenCheckpoint


def block_path(folder: Path, index: int) -> Path:
    return folder / f"block-{index:05d}.safetensors"


def save_block(folder: Path, block: Block, weights: dict[str, QuantWeight]) -> None:
    """Writes the block, whose linears ``weights`` names, so that the file is whole or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, about = {}, {}
    for name, weight in weights.items():
        about[name] = {
            "class": f"{type(weight).__module__}.{type(weight).__qualname__}",
            "settings": weight.settings(),
        }
        tensors |= {f"{name}/{field}": t.cpu().contiguous() for field, t in weight.state().items()}
    inside = tuple(f"{name}.weight" for name in weights)
    tensors |= {name: p.cpu().contiguous() for name, p in block.module.named_parameters() if name not in inside}
    path = block_path(folder, block.index)
    save_file(tensors, path.with_suffix(".tmp"), metadata={"weights": json.dumps(about)})
    os.replace(path.with_suffix(".tmp"), path)


def read_block(ckpt: OpenCheckpoint, folder: Path, index: int, device) -> tuple[Block, dict[str, QuantWeight]]:
    """A block without its quantized linears, and their weights."""
    with safe_open(block_path(folder, index), framework="pt", device=str(device)) as f:
        about = json.loads(f.metadata()["weights"])
        tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
    weights = {}
    for name, what in about.items():
        state = {key.rpartition("/")[2]: t for key, t in tensors.items() if key.startswith(f"{name}/")}
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in what["settings"].items()}
        weights[name] = locate(what["class"])(**state, **settings)
    block = ckpt.empty_block(index)
    block.module.load_state_dict({k: v for k, v in tensors.items() if "/" not in k}, strict=False, assign=True)
    return block, weights


def load(ckpt: OpenCheckpoint, folder: Path, acts: ActQuant | None, device) -> nn.Module:
    """The whole quantized model, ready to evaluate."""

    def block(index):
        block, weights = read_block(ckpt, folder, index, device)
        for name, weight in weights.items():
            bias = getattr(block[name], "bias", None)
            block.install(name, QuantLinear(weight, bias, acts, ckpt.dtype))
        block.module.requires_grad_(False)
        return block

    return ckpt.load(device, block)
