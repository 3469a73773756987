"""MLX files, the affine quantization of mlx-lm: words along K in ``weight``, and for each group ``scales`` s and
``biases`` -s z, so that w = s q - s z.

Scales and biases are float32, since -s z is no float16 number. mlx-lm leaves every linear without ``scales`` as it is.
Source: mlx, ops.cpp (dequantize); mlx-lm, utils.py (load_model).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from qbench.formats.base import Format
from qbench.formats.bits import pack, unpack
from qbench.weights import UniformWeight


@dataclass(frozen=True)
class MLX(Format):
    """2 to 6 and 8 bits in groups of 32, 64 or 128."""

    name: ClassVar[str] = "mlx"

    def refuse(self, weight, acts):
        super().refuse(weight, acts)
        if weight.bits not in (2, 3, 4, 5, 6, 8):
            raise ValueError(f"it has 2, 3, 4, 5, 6 or 8 bits, not {weight.bits}; use format=compressed-tensors")
        if (size := group_size(weight)) not in (32, 64, 128):
            raise ValueError(f"its groups are 32, 64 or 128 columns, not {size}; use grid.group_size=64")

    def tensors(self, weight, acts, dtype):
        scale_NG = weight.scale_NG.float()
        words = pack(weight.codes_NK, weight.bits).view(torch.uint32)
        return {"weight": words, "scales": scale_NG, "biases": -scale_NG * weight.zeros()}

    def config(self, weights, acts):
        kinds = {(group_size(weight), weight.bits) for weight in weights.values()}
        if len(kinds) > 1:
            raise ValueError(f"format=mlx has one grid for all linears, not {len(kinds)}; use compressed-tensors")
        return {"quantization": dict(zip(("group_size", "bits"), *kinds))}

    def read(self, name, tensors, config):
        """With a zero per group, also where the grid was symmetric."""
        told, scale_NG = config["quantization"], tensors["scales"]
        codes_NK = unpack(tensors["weight"].view(torch.int32), told["bits"], scale_NG.shape[1] * told["group_size"])
        zero_NG = (-tensors["biases"] / scale_NG).round().byte()
        return UniformWeight(codes_NK, scale_NG.half(), told["bits"], zero_NG)

    def notes(self, weights, acts):
        return ["mlx-lm reads this file. Its scales are float32, and so are the products of its linears."]


def group_size(weight: UniformWeight) -> int:
    """Columns of a group."""
    return weight.codes_NK.shape[1] // weight.scale_NG.shape[1]
