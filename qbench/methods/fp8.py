"""FP8 as the Qwen3-*-FP8 models and DeepSeek-V3 (arXiv 2412.19437, section 3.3.2) are stored: weights rounded to the
nearest e4m3 number in blocks of 128 x 128, with one scale max|w| / 448 per block.

``acts: null`` is W8A16, which vLLM and transformers compute where a device has no FP8 product. The official models are
W8A8: ``method=fp8_w8a8`` rounds activations too, dynamically, with one scale per token and 128 channels. Qwen's files
store the scales in bfloat16, DeepSeek's in float32 (``scales``). Weights are rounded with the scale as stored, so the
measured weight is the one in the file.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from qbench.costs import Work, rounding
from qbench.grid import Fp8ActQuant
from qbench.methods.base import Method
from qbench.shape import BYTES, fp8_bytes
from qbench.weights import Fp8Weight


@dataclass(frozen=True)
class FP8(Method):
    """``acts``: how activations are rounded; None: not at all. ``scales``: the type of the blocks' scales."""

    name: ClassVar[str] = "fp8"
    weight = Fp8Weight
    acts: Fp8ActQuant | None = None
    scales: Literal["bfloat16", "float32"] = "bfloat16"

    def quantize(self, w_NK, stat, name):
        return Fp8Weight.rounded(w_NK, getattr(torch, self.scales))

    def work(self, shape, n, length):
        return sum((rounding(N, K) for N, K in shape.linears), Work())

    def stored_bytes(self, N, K):
        return fp8_bytes(N, K, BYTES[self.scales])
