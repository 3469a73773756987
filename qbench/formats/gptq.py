"""GPTQ files, as AutoGPTQ and GPTQModel write them: ``qweight``, ``qzeros``, ``scales`` and ``g_idx`` of each linear.

Words run along K in ``qweight`` and along N in ``qzeros``. Version 1 (checkpoint_format "gptq") stores z - 1, and
readers add 1, so z = 0 does not survive there; version 2 ("gptq_v2") stores z. ``g_idx`` is the group of each column.
Source: GPTQModel, gptqmodel/nn_modules/qlinear/__init__.py (pack_block, dequantize_weight).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from qbench.formats.base import Format, Stored
from qbench.formats.bits import pack, unpack
from qbench.grid import Grid
from qbench.weights import UniformWeight

FORMATS = {1: "gptq", 2: "gptq_v2"}


@dataclass(frozen=True)
class GPTQFormat(Format):
    """``version``: 1, which most engines read, or 2."""

    name: ClassVar[str] = "gptq"
    holds_moving_groups = True
    version: Literal[1, 2] = 1

    @classmethod
    def stored(cls, told, shapes) -> Stored:
        grid = Grid(told["bits"], told["group_size"], told["sym"])
        if (layout := told.get("checkpoint_format", told.get("format", "gptq"))) not in FORMATS.values():
            raise ValueError(f"checkpoint_format {layout} is not supported; supported: {', '.join(FORMATS.values())}")
        return Stored(cls(1 if layout == FORMATS[1] else 2), UniformWeight.outlines(grid, shapes))

    def refuse(self, weight, acts):
        super().refuse(weight, acts)
        N, K = weight.codes_NK.shape
        if weight.bits not in (2, 3, 4, 8):
            raise ValueError(f"it has 2, 3, 4 or 8 bits, not {weight.bits}; use format=compressed-tensors")
        if N * weight.bits % 32 or K * weight.bits % 32:
            raise ValueError(
                f"its words of 32 bits hold whole rows and columns, but [{N}, {K}] has {weight.bits} bits; "
                "use format=compressed-tensors"
            )
        zero_NG = weight.zero_NG
        if self.version == 1 and zero_NG is not None and not zero_NG.is_meta and not zero_NG.all():
            raise ValueError(
                f"version 1 stores z - 1, and {int((zero_NG == 0).sum())} groups have z = 0; use format.version=2"
            )

    def tensors(self, weight, acts, dtype):
        (_, K), (_, G) = weight.codes_NK.shape, weight.scale_NG.shape
        columns_K = torch.arange(K, dtype=torch.int32, device=weight.codes_NK.device)
        stored_NG = (weight.zeros().byte() - int(self.version == 1)) & (2**weight.bits - 1)
        return {
            "qweight": pack(weight.codes_NK, weight.bits).T.contiguous(),
            "qzeros": pack(stored_NG.T, weight.bits),
            "scales": weight.scale_NG.T.contiguous(),
            "g_idx": columns_K // (K // G) if weight.group_K is None else weight.group_K.int(),
        }

    def config(self, weights, acts):
        grid = self.one_grid(weights)
        return {
            "dtype": "float16",  # that of the scales, which readers convert to it
            "quantization_config": {
                "quant_method": "gptq",
                "bits": grid.bits,
                "group_size": grid.group_size,
                "sym": grid.symmetric,
                "desc_act": any(weight.group_K is not None for weight in weights.values()),
                "lm_head": False,
                "checkpoint_format": FORMATS[self.version],
                "pack_dtype": "int32",
            },
        }

    def read(self, name, tensors, config):
        told, scale_GN, group_K = config["quantization_config"], tensors["scales"], tensors["g_idx"]
        (G, N), K = scale_GN.shape, len(group_K)
        stored_GN = unpack(tensors["qzeros"], told["bits"], N)
        zero_GN = (stored_GN + int(told["checkpoint_format"] == "gptq")) & (2 ** told["bits"] - 1)
        runs_K = torch.arange(K, dtype=torch.int32, device=group_K.device) // (K // G)
        return UniformWeight(
            codes_NK=unpack(tensors["qweight"].T, told["bits"], K),
            scale_NG=scale_GN.T.contiguous(),
            bits=told["bits"],
            zero_NG=None if told["sym"] else zero_GN.T.contiguous(),
            group_K=None if torch.equal(group_K, runs_K) else group_K.to(torch.int16),
        )

    def notes(self, weights, acts):
        grid = self.one_grid(weights)
        if any(weight.group_K is not None for weight in weights.values()):
            return ["GPTQModel reads this file; others refuse groups of columns that are not neighbours."]
        if grid.symmetric and grid.bits in (4, 8):
            return ["vLLM, GPTQModel and AutoRound read this file."]
        return ["GPTQModel reads this file; vLLM reads GPTQ only with 4 or 8 bits and a symmetric grid."]
