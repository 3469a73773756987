"""AWQ files in the layout "gemm": 4 bits with a zero per group, packed along N in an order of its own.

Bits 4 i to 4 i + 3 of word j hold output channel 8 j + ORDER[i], in ``qweight`` [K, N / 8] and ``qzeros`` [G, N / 8].
AWQ's scales of channels are folded into the block's norms and linears, as everywhere in qbench, so the format holds the
weights of any method. Source: GPTQModel, gptqmodel/quantization/awq/utils/packing_utils.py.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qbench.formats.base import Format, Stored
from qbench.formats.bits import pack, unpack
from qbench.grid import Grid
from qbench.weights import UniformWeight

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class AWQFormat(Format):
    """Four asymmetric bits, groups of neighbouring columns."""

    name: ClassVar[str] = "awq"

    @classmethod
    def stored(cls, told, shapes) -> Stored:
        if (layout := (told["version"].lower(), told["zero_point"])) != ("gemm", True):
            raise ValueError(f"(version, zero_point) is {layout}; supported: ('gemm', True)")
        return Stored(cls(), UniformWeight.outlines(Grid(told["bits"], told["group_size"]), shapes))

    def refuse(self, weight, acts):
        super().refuse(weight, acts)
        if weight.bits != 4 or weight.zero_NG is None:
            raise ValueError(f"it has 4 bits and a zero per group, not {weight.grid}; use format=compressed-tensors")
        if (N := len(weight.codes_NK)) % 8:
            raise ValueError(f"a word holds 8 rows, which does not divide N={N}; use format=compressed-tensors")

    def tensors(self, weight, acts, dtype):
        return {
            "qweight": pack(permuted(weight.codes_NK.T, ORDER), 4),
            "qzeros": pack(permuted(weight.zero_NG.T, ORDER), 4),
            "scales": weight.scale_NG.T.contiguous(),
        }

    def config(self, weights, acts):
        grid = self.one_grid(weights)
        return {
            "dtype": "float16",  # that of the scales, which readers convert to it
            "quantization_config": {
                "quant_method": "awq",
                "bits": grid.bits,
                "group_size": grid.group_size,
                "zero_point": True,
                "version": "gemm",
                "modules_to_not_convert": None,
            },
        }

    def read(self, name, tensors, config):
        N = tensors["scales"].shape[1]
        back = [ORDER.index(i) for i in range(8)]
        codes_NK, zero_NG = (permuted(unpack(tensors[key], 4, N), back).T for key in ("qweight", "qzeros"))
        scale_NG = tensors["scales"].T.contiguous()
        return UniformWeight(codes_NK.contiguous(), scale_NG, 4, zero_NG.contiguous())

    def notes(self, weights, acts):
        return ["vLLM, GPTQModel and mlx-lm read this file."]


def permuted(x_RN: Tensor, order: tuple[int, ...] | list[int]) -> Tensor:
    """Column ``order[i]`` of each eight columns at place i."""
    index = torch.tensor(order, device=x_RN.device)
    return x_RN.reshape(len(x_RN), -1, 8)[:, :, index].reshape(x_RN.shape)
