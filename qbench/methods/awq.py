"""AWQ, arXiv 2306.00978, sections 3.2 and 4: channels that carry large activations are scaled up before rounding, so
that they lose less, and ranges are clipped where that costs less than it saves.

Scale search: s = mean|x|^a, normalised so that max(s) min(s) = 1, for a = 0, 1/20, ..., 19/20; the least loss
wins and is folded into the operation before. Clip search: each group's range is cut to (1 - i/20) of max|w|, i
= 0..9, the least loss wins; q and k are never clipped, they meet in a product where errors grow.

``loss``: "gram" is the output error of the linears themselves, ||(Q(W s)/s - W) X||^2 = tr(D G D^T) with the
Gram G, exact over all calibration tokens and without a forward pass. "module" is the authors': the output error
of the whole attention or MLP.

Deviations from the authors' code (mit-han-lab/llm-awq):
* The grid always contains zero and keeps its scales in float16, as for every method here; theirs is computed in
  the weight's dtype and may leave zero out of a one-sided group.
* The clip search uses all calibration tokens through the Gram; theirs samples 512.
* v to o is scaled only where every value head has one query head; under grouped-query attention it is skipped,
  as theirs does silently, and the record's notes say so.
* The columns take the ratio that the norm's rounded gain really has.

Dimension key: N output channels, K input channels, G groups of K.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from qbench.grid import Grid, round_to_nearest, rounded
from qbench.methods.base import Method
from qbench.stats import Gram


@dataclass(frozen=True)
class AWQ(Method):
    """``n_scale`` exponents and ``n_clip`` ranges are tried; ``n_clip: 1`` does not clip. ``unclipped``: linears, by
    the end of their names, whose range is left whole."""

    name: ClassVar[str] = "awq"
    statistic = Gram
    grid: Grid = Grid()
    loss: Literal["gram", "module"] = "gram"
    n_scale: int = 20
    n_clip: int = 10
    unclipped: tuple[str, ...] = ("q_proj", "k_proj")

    def __post_init__(self):
        object.__setattr__(self, "unclipped", tuple(self.unclipped))
        if self.loss not in ("gram", "module"):
            raise ValueError(f"method.loss must be gram or module, got {self.loss!r}")
        if self.n_scale < 1 or not 1 <= self.n_clip <= 20:
            raise ValueError(f"method.n_scale must be >= 1, n_clip 1..20; got {self.n_scale} and {self.n_clip}")

    def transform(self, block, calib):
        stages = [stage for stage in block.stages if stage.fold is not None]
        found = [self._search_scale(block, calib, stage) for stage in stages]  # all on the weights as they were
        for stage, s_K in zip(stages, found):
            calib.rescale(stage, s_K)

    def _search_scale(self, block, calib, stage):
        gram = calib.stats[stage][Gram]
        loss = _ModuleLoss(block, calib, stage) if self.loss == "module" else _GramLoss(block, gram, stage)
        weights = [block[name].weight.float() for name in stage.linears]
        best, best_s = float("inf"), None
        for i in range(self.n_scale):
            s_K = gram.mean_abs_K.pow(i / self.n_scale).clamp(min=1e-4)
            s_K = s_K / (s_K.max() * s_K.min()).sqrt()
            value = loss([rounded(w * s_K, self.grid) / s_K for w in weights])
            if value < best:
                best, best_s = value, s_K
        if best_s is None:
            raise ArithmeticError(
                f"AWQ: no scale gives a finite loss in block {block.index}, {', '.join(stage.linears)}"
            )
        return best_s

    def stage_notes(self, stage):
        return () if stage.fold is not None else (stage.why_no_fold,)

    def quantize(self, w_NK, stat, name):
        clip = 1.0
        if self.n_clip > 1 and not name.endswith(self.unclipped):
            clip = self._search_clip(w_NK.float(), stat, name)
        return round_to_nearest(w_NK, self.grid, clip)

    def _search_clip(self, w_NK, stat, name):
        N, K = w_NK.shape
        g = self.grid.columns(K, name)
        G = K // g
        gram_Ggg = stat.gram_KK.view(G, g, G, g)[range(G), :, range(G)]
        best_NG = torch.full((N, G), float("inf"), device=w_NK.device)
        clip_NG = torch.ones_like(best_NG)
        for i in range(self.n_clip):
            d_GNg = (rounded(w_NK, self.grid, 1 - i / 20) - w_NK).view(N, G, g).transpose(0, 1)
            loss_NG = ((d_GNg @ gram_Ggg) * d_GNg).sum(-1).T
            better = loss_NG < best_NG
            best_NG = torch.where(better, loss_NG, best_NG)
            clip_NG = torch.where(better, 1 - i / 20, clip_NG)
        return clip_NG


class _GramLoss:
    """sum over the stage's linears of ||(W' - W) X||^2."""

    def __init__(self, block, gram, stage):
        self.weights, self.gram = [block[name].weight.float() for name in stage.linears], gram

    def __call__(self, new_weights) -> float:
        return float(sum(self.gram.energy(new - w).sum() for new, w in zip(new_weights, self.weights)))


class _ModuleLoss:
    """Mean squared change of the output of the module that holds the stage; for a single linear, of its own."""

    def __init__(self, block, calib, stage):
        self.linears = [block[name] for name in stage.linears]
        single = len(stage.linears) == 1
        self.module = block[stage.linears[0] if single else stage.linears[0].rpartition(".")[0]]
        self.calls = calib.calls(stage.linears[0] if single else stage.linears[0].rpartition(".")[0])
        self.before = [self._forward(args, kwargs) for args, kwargs in self.calls]

    @torch.no_grad()
    def _forward(self, args, kwargs):
        y = self.module(*args, **kwargs)
        return y[0] if isinstance(y, tuple) else y

    @torch.no_grad()
    def __call__(self, new_weights) -> float:
        kept = [linear.weight.data for linear in self.linears]
        for linear, w in zip(self.linears, new_weights):
            linear.weight.data = w.to(linear.weight.dtype)
        try:
            pairs = zip(self.calls, self.before)
            return float(sum((self._forward(*call) - y).float().square().sum() for call, y in pairs))
        finally:
            for linear, w in zip(self.linears, kept):
                linear.weight.data = w
