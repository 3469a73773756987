"""SmoothQuant, arXiv 2211.10438, equation 4: outliers of the activations move into the weights before both are rounded.

For the linears behind a norm, channel j of the input is divided by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), and
column j of the weights is multiplied by it. Then weights are rounded symmetrically with one scale per row, and
activations symmetrically with one scale per token ("per-token dynamic").

As in the authors' code, o_proj and down_proj are quantized, weights and inputs, but not smoothed, because no norm
precedes them. Deviations: columns are multiplied by the ratio of the norm's rounded gains (``Block.rescale``), and one
bit per weight, which equation 1 does not define, is +-mean|w|. The study's released "SmoothQuant" never smooths; that
is ``alpha: null`` here.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from qbench.costs import Work, rounding
from qbench.grid import ActQuant, Grid
from qbench.methods.base import Method
from qbench.settings import Range
from qbench.stats import AbsMax
from qbench.weights import round_to_nearest


@dataclass(frozen=True)
class SmoothQuant(Method):
    """``alpha``: how much of the difficulty moves into the weights, 0 to 1; None: no smoothing."""

    name: ClassVar[str] = "smoothquant"
    statistic = AbsMax
    grid: Grid = Grid(bits=8, group_size=-1, symmetric=True)
    acts: ActQuant = ActQuant(bits=8)
    alpha: Annotated[float, Range(0, 1)] | None = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not self.grid.symmetric:
            raise ValueError("SmoothQuant rounds weights symmetrically; set method.grid.symmetric=true")

    def transform(self, block, calib):
        if self.alpha is None:
            return
        for stage in block.stages:
            if stage.fold is None or block[stage.fold].weight.ndim != 1:
                continue
            x = calib.stats[stage][AbsMax].absmax_K.clamp(min=1e-5)
            largest = [block[name].weight.float().abs().amax(0) for name in stage.linears]
            w = torch.stack(largest).amax(0).clamp(min=1e-5)
            calib.rescale(stage, (x**self.alpha / w ** (1 - self.alpha)).clamp(min=1e-5))

    def quantize(self, w_NK, stat, name):
        return round_to_nearest(w_NK, self.grid)

    def work(self, shape, n, length):
        return sum((rounding(N, K) for N, K in shape.linears), Work())
