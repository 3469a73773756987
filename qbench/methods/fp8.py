"""FP8 as the Qwen3-*-FP8 models and DeepSeek-V3 (arXiv 2412.19437, section 3.3.2) are stored: weights rounded to the
nearest e4m3 number in blocks of 128 x 128, with one scale max|w| / 448 per block.

``acts: null`` is W8A16, which vLLM and transformers compute where a device has no FP8 product. The official models are
W8A8: ``method=fp8_w8a8`` rounds activations too, dynamically, with one scale per token and 128 channels. Qwen's files
store the scales in bfloat16, DeepSeek's in float32 (``scales``). Weights are rounded with the scale as stored, so the
measured weight is the one in the file.

Dimension key: N output channels, K input channels; n, k blocks of 128 of N and K, b rows or columns of a block.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.nn.functional import pad

from qbench.costs import Work, rounding
from qbench.grid import E4M3_MAX, FP8_BLOCK, Fp8ActQuant, e4m3, over_blocks
from qbench.methods.base import Method
from qbench.weights import Fp8Weight


@dataclass(frozen=True)
class FP8(Method):
    """``acts``: how activations are rounded; None: not at all. ``scales``: the type of the blocks' scales."""

    name: ClassVar[str] = "fp8"
    acts: Fp8ActQuant | None = None
    scales: Literal["bfloat16", "float32"] = "bfloat16"

    def quantize(self, w_NK, stat, name):
        w_NK, (N, K), b = w_NK.float(), w_NK.shape, FP8_BLOCK
        blocks_nbkb = pad(w_NK, (0, -K % b, 0, -N % b)).unflatten(1, (-1, b)).unflatten(0, (-1, b))
        scale_nk = blocks_nbkb.abs().amax((1, 3)) / E4M3_MAX
        if not torch.isfinite(scale_nk).all():
            raise ValueError("the weight has NaN or inf")
        scale_nk = scale_nk.clamp_(min=torch.finfo(torch.float32).tiny).to(self._dtype)
        return Fp8Weight(e4m3(w_NK, over_blocks(scale_nk, N, K)), scale_nk)

    def outline(self, N, K):
        return Fp8Weight.outlined(N, K, self._dtype)

    def work(self, shape, n, length):
        return sum((rounding(N, K) for N, K in shape.linears), Work())

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.scales == "bfloat16" else torch.float32
