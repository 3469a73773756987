"""AWQ, arXiv 2306.00978, sections 3.2 and 4: channels with large activations are scaled up before rounding, so that
their relative error is smaller, and ranges are clipped where that lowers the error.

Scale search: s = mean|x|^a, normalised so that max(s) min(s) = 1, for a = 0, 1/20, ..., 19/20; the s with the least
loss is folded into the preceding operation. ``loss: gram`` is the output error of the linears themselves,
||(Q(W s)/s - W) X||^2 = tr(D G D^T) with the Gram G, exact over all calibration tokens and without a forward pass;
``loss: module`` is the authors', the output error of the whole attention or MLP. Clip search: each group's range is cut
to (1 - i/20) of max|w|, i = 0..9; q and k are not clipped, because their product amplifies errors.

Deviations from the authors' code (mit-han-lab/llm-awq):
* The grid always contains zero and its scales are float16, as for every method here. Theirs is computed in the weight's
  dtype and may leave zero out of a one-sided group; ``arithmetic: bfloat16`` does the same.
* The clip search uses all calibration tokens through the Gram; theirs, and so the study's, samples 512 of them.
* Folding multiplies the columns by the ratio of the norm's rounded gains (``Block.rescale``).

Dimension key: A exponents, and that of ``methods.base``.
"""

from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from qbench.costs import Work, energy_flops, forward_flops, rounding
from qbench.grid import Grid, rounded
from qbench.methods.base import Method
from qbench.settings import Positive, Range
from qbench.stats import Gram
from qbench.weights import round_to_nearest

TILE = 2**19  # weights searched at a time: they fit a CPU's cache
DEVICE_TILE = 2**25  # on an accelerator


class WeightDtypeGrid(Grid):
    """llm-awq's quantizer: all arithmetic in bfloat16, and a group's range need not contain zero."""

    def fit(self, w, clip=1.0):
        w = w.bfloat16()
        low, high = torch.aminmax(w, dim=-1)
        if isinstance(clip, Tensor) or clip < 1:
            limit = (clip * torch.maximum(low.abs(), high.abs())).bfloat16()
            low, high = torch.maximum(low, -limit), torch.minimum(high, limit)
        most = 2**self.bits - 1
        scale = (high - low).clamp(min=1e-5) / most
        return scale, (-torch.round(low / scale)).clamp(0, most)

    def encode(self, w, scale, zero):
        return ((w.bfloat16() / scale).round() + zero).clamp(0, 2**self.bits - 1)


@dataclass(frozen=True)
class AWQ(Method):
    """``n_scale`` exponents and ``n_clip`` ranges are tried; ``n_clip: 1`` does not clip. ``unclipped``: linears whose
    names end so are not clipped."""

    name: ClassVar[str] = "awq"
    version: ClassVar[int] = 3
    statistic = Gram
    grid: Grid = Grid()
    loss: Literal["gram", "module"] = "gram"
    n_scale: Positive = 20
    n_clip: Annotated[int, Range(1, 20)] = 10
    unclipped: tuple[str, ...] = ("q_proj", "k_proj")
    arithmetic: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        super().__post_init__()
        if self.arithmetic == "bfloat16" and self.grid.symmetric:
            raise ValueError("method.arithmetic=bfloat16 is llm-awq's asymmetric quantizer; set grid.symmetric=false")

    @property
    def reads_inputs(self):
        return self.loss == "module"

    @property
    def _grid(self) -> Grid:
        return self.grid if self.arithmetic == "float32" else WeightDtypeGrid(**asdict(self.grid))

    def transform(self, block, calib):
        stages = [stage for stage in block.stages if stage.fold is not None]
        found = [self._search_scale(block, calib, stage) for stage in stages]  # all before any weight changes
        for stage, s_K in zip(stages, found):
            calib.rescale(stage, s_K)

    def _search_scale(self, block, calib, stage):
        gram = calib.stats[stage][Gram]
        exponents_A1 = torch.arange(self.n_scale, device=gram.mean_abs_K.device)[:, None] / self.n_scale
        s_AK = gram.mean_abs_K.pow(exponents_A1).clamp(min=1e-4)
        s_AK /= (s_AK.amax(1, keepdim=True) * s_AK.amin(1, keepdim=True)).sqrt()
        weights = [block[name].weight.data for name in stage.linears]
        if self.loss == "gram":
            loss_A = self._gram_loss(torch.cat(weights), gram, s_AK)
        else:
            scaled = ([rounded(w.float() * s_K, self._grid) / s_K for w in weights] for s_K in s_AK)
            loss_A = torch.tensor(list(_module_losses(block, calib, stage, scaled)))
        loss_A = torch.where(torch.isfinite(loss_A), loss_A, torch.inf)
        if torch.isinf(loss_A).all():
            where = f"block {block.index}, {', '.join(stage.linears)}"
            raise ArithmeticError(f"AWQ: no scale gives a finite loss in {where}")
        return s_AK[int(loss_A.argmin())]

    def _gram_loss(self, w_NK, gram, s_AK):
        """The sum over rows of ||(W' - W) X||^2 per scale."""
        loss_A = torch.zeros(len(s_AK), device=w_NK.device)
        for w in _tiles(w_NK):
            for a, s_K in enumerate(s_AK):
                loss_A[a] += gram.energy(rounded(w * s_K, self._grid).div(s_K).sub_(w)).sum()
        return loss_A

    def stage_notes(self, stage):
        return () if stage.fold is not None else (stage.why_no_fold,)

    def quantize(self, w_NK, stat, name):
        clip = 1.0
        if self.n_clip > 1 and not name.endswith(self.unclipped):
            blocks_Ggg = stat.diagonal_blocks(self.grid.columns(w_NK.shape[1], name))
            clip = torch.cat([self._search_clip(w, blocks_Ggg) for w in _tiles(w_NK)])
        return round_to_nearest(w_NK, self._grid, clip)

    def _search_clip(self, w_NK, blocks_Ggg):
        """The best range per group, as a share of max|w|: [N, G]."""
        N, (G, g, _) = len(w_NK), blocks_Ggg.shape
        best_NG = torch.full((N, G), float("inf"), device=w_NK.device)
        clip_NG = torch.ones_like(best_NG)
        for i in range(self.n_clip):
            d_GNg = rounded(w_NK, self._grid, 1 - i / 20).sub_(w_NK).view(N, G, g).transpose(0, 1)
            loss_NG = ((d_GNg @ blocks_Ggg) * d_GNg).sum(-1).T
            better = loss_NG < best_NG
            best_NG = torch.where(better, loss_NG, best_NG)
            clip_NG[better] = 1 - i / 20
        return clip_NG

    def work(self, shape, n, length):
        """For each exponent the energy of the error, or with ``loss: module`` attention, MLP and down_proj once more;
        for each range the product of every group with its block of the Gram."""
        total = Work()
        for K, linears, folds in shape.stages:
            for name, N in linears.items():
                scales = self.n_scale if folds else 0
                ranges = 0 if name.endswith(self.unclipped) else self.n_clip
                by_gram = scales * energy_flops(N, K) if self.loss == "gram" else 0
                total += rounding(N, K, 1 + scales + ranges)
                total += Work(float32=by_gram + ranges * 2 * N * K * self.grid.columns(K))
        if self.loss == "module":
            layer = forward_flops(shape, n, length) // shape.layers
            N, K = shape.linears[-1]
            total += Work(model=(self.n_scale + 1) * (layer + 2 * N * K * n * length) + 2 * layer)
        return total


def _tiles(w_NK: Tensor):
    """The rows in float32, a bounded number at a time."""
    most = TILE if w_NK.device.type == "cpu" else DEVICE_TILE
    return (w.float() for w in w_NK.split(max(1, most // w_NK.shape[1])))


@torch.no_grad()
def _module_losses(block, calib, stage, candidates):
    """The squared change of the output of the module that contains ``stage``, or of its only linear, under each of the
    ``candidates`` for its weights."""
    name, *others = stage.linears
    name = name.rpartition(".")[0] if others else name
    module, calls = block[name], calib.calls(name)
    kept = {f"{linear}.weight".removeprefix(f"{name}."): block[linear].weight for linear in stage.linears}

    def outputs(parameters):
        for args, kwargs in calls:
            y = functional_call(module, parameters, args, kwargs)
            yield y[0] if isinstance(y, tuple) else y

    before = list(outputs(kept))
    for weights in candidates:
        changed = outputs({key: w.to(kept[key].dtype) for key, w in zip(kept, weights)})
        yield float(sum((y - old).float().square().sum(-1).double().sum() for y, old in zip(changed, before)))
