"""FP8 files in blocks of 128 x 128, as the official Qwen3-*-FP8 and DeepSeek-V3: e4m3 numbers in ``weight`` and one
scale per block in ``weight_scale_inv``, which multiplies in spite of its name.

Sources: transformers, integrations/finegrained_fp8.py (FP8Linear, Fp8Dequantize) and quantizer_finegrained_fp8.py.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from qbench.formats.base import Format, Stored
from qbench.grid import FP8_BLOCK, Fp8ActQuant
from qbench.weights import Fp8Weight

SETTINGS = {  # of the official files
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
}


@dataclass(frozen=True)
class FP8Format(Format):
    """The weights of ``method=fp8``, with either type of scales."""

    name: ClassVar[str] = "fp8"
    holds_acts = True

    @classmethod
    def stored(cls, told, shapes) -> Stored:
        wanted = SETTINGS | {"scale_fmt": told.get("scale_fmt") and "float"}  # absent, or said
        if differ := {key: told.get(key) for key in wanted if told.get(key) != wanted[key]}:
            raise ValueError(f"it says {differ}; supported: {SETTINGS | {'scale_fmt': 'float'}}")
        return Stored(cls(), {name: Fp8Weight.outlined(N, K) for name, (N, K) in shapes.items()}, Fp8ActQuant())

    def refuse(self, weight, acts):
        if not isinstance(weight, Fp8Weight):
            raise ValueError(f"it holds e4m3 numbers in blocks, not a {type(weight).__name__}; use format=hf")
        if acts is not None and not isinstance(acts, Fp8ActQuant):
            raise ValueError(f"its activations are e4m3 too, not {acts}; use method=fp8_w8a8")
        N, K = weight.codes_NK.shape
        if N % FP8_BLOCK or K % FP8_BLOCK:  # transformers infers the size of a block from the number of scales
            raise ValueError(f"its readers need whole blocks of 128 x 128, not [{N}, {K}]; use format=hf")

    def tensors(self, weight, acts, dtype):
        return {"weight": weight.codes_NK, "weight_scale_inv": weight.scale_nk}

    def config(self, weights, acts):
        return {"quantization_config": SETTINGS}

    def read(self, name, tensors, config):
        told, scale_nk = config["quantization_config"], tensors["weight_scale_inv"]
        if (block := told.get("weight_block_size")) != SETTINGS["weight_block_size"]:
            raise ValueError(f"{name} has blocks of {block}; only blocks of 128 x 128 are read")
        if scale_nk.dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"{name} has scales of {scale_nk.dtype}; only bfloat16 and float32 are read")
        return Fp8Weight(tensors["weight"], scale_nk)

    def notes(self, weights, acts):
        readers = "vLLM and transformers read this file."
        if acts:
            return [
                readers,
                "transformers on a CPU does not round activations: the measured numbers do not hold there.",
            ]
        rounds = "On a GPU with FP8 products they also round activations, which method=fp8_w8a8 measures."
        return [
            readers,
            rounds,
            "The measured numbers hold where weights are dequantized, as in transformers on a CPU.",
        ]
