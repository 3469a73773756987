"""BiLLM, arXiv 2402.04291, algorithm 1: one sign per weight, and a second one in the most important columns.

Blocks of 128 columns are binarized one after another. In a block:
* Salient columns, ranked by the sum over rows of s = w^2 / [H^-1]_jj^2 (section 3.2), are binarized twice, the
  second time their residual. Their number, 1..``max_salient``, is the one that separates s best: both parts of s,
  salient columns and rest, are binarized twice, and the number with the least error is taken.
* The other weights, whose distribution is bell-shaped, are split at a magnitude p into a concentrated and a sparse
  part, and each part is binarized separately (section 3.3); p is the best of 81 quantiles from 10 % to 90 %.
* Later columns make up for the block's error: E = (W - W_hat) / diag(U), W_rest -= E U, with U as in GPTQ.

A set of weights is binarized per row: mean + scale sign(w - mean), scale = mean|w - mean|. The mean is missing in the
paper's equation 2; the authors' code, which made the published numbers, subtracts it.

Deviations from the authors' code, the first three with a field to choose:
* s uses diag(H^-1), as in the paper; the code takes the diagonal of its Cholesky factor (``salience``).
* The split minimises the error of the weights, as in the paper; the code minimises that of s, and its quantiles count a
  zero per salient weight (``split_on``).
* The salient columns of all blocks are counted; the code counts those of each linear's last block (``count``).
* sign(0) is +1, so that a sign is one bit. Means and scales are float16.
The search for the number of salient columns is the code's; the paper's compares errors of the weights.

``nominal_bits`` is the paper's 1 + share of salient columns. ``stored_bits`` also counts which columns are salient,
which part each other weight belongs to (one bit each), and the means and scales.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qbench.costs import Work, factor_flops, rounding
from qbench.methods.base import Method
from qbench.settings import Positive, Share
from qbench.stats import Gram
from qbench.weights import BinaryWeight

SPLITS = 81  # quantiles from 10 % to 90 % that are tried as the magnitude p
SALIENT_PASSES, SPLIT_PASSES = 25, 41  # reads and writes of a float32 copy of the block per candidate of either search
SALIENT_LAUNCHES, SPLIT_LAUNCHES = 29, 44  # and the operations that do it


@dataclass(frozen=True)
class BiLLM(Method):
    """``max_salient``: the largest number of salient columns per block; ``damp`` as in GPTQ."""

    name: ClassVar[str] = "billm"
    version: ClassVar[int] = 2
    statistic = Gram
    calibrates_on = "block"
    block_size: Positive = 128
    max_salient: Positive = 49
    damp: Share = 0.01
    salience: Literal["inverse", "cholesky"] = "inverse"
    split_on: Literal["weights", "salience"] = "weights"
    count: Literal["all", "last_block"] = "all"

    def __post_init__(self):
        super().__post_init__()
        if self.max_salient >= self.block_size:
            raise ValueError(f"method.max_salient={self.max_salient} must be below method.block_size={self.block_size}")

    def check(self, shapes):
        for name, (_, K) in shapes.items():
            last = K % self.block_size
            if 0 < last <= self.max_salient:
                raise ValueError(
                    f"method.block_size={self.block_size} leaves {last} of the K={K} columns of {name} for the last "
                    f"block, which needs more than max_salient={self.max_salient}; use a method.block_size that "
                    f"divides K or a method.max_salient below {last}"
                )

    def quantize(self, w_NK, stat, name):
        U, notes = stat.inverse_cholesky(self.damp)
        W = w_NK.float().clone()
        inverse_K = U.diagonal() if self.salience == "cholesky" else U.square().sum(0)
        planes, masks, levels = [], [], []
        for i1 in range(0, W.shape[1], self.block_size):
            i2 = min(i1 + self.block_size, W.shape[1])
            w = W[:, i1:i2]
            block_inverse = inverse_K[i1:i2]
            metric = (w * (block_inverse.min() / block_inverse)).square()  # to a factor, so that no square overflows
            salient = self._search_salient(metric)
            rest = ~salient.expand_as(w)
            if self.split_on == "weights":
                sparse = _search_split(w, rest, w[rest].abs())
            else:
                sparse = _search_split(metric, rest, (metric * rest).flatten())
            first = _Binary(w, ~rest)
            second = _Binary(w - first.value, ~rest)
            low, high = _Binary(w, rest & ~sparse), _Binary(w, rest & sparse)
            sign = torch.where(rest, torch.where(sparse, high.sign, low.sign), first.sign)
            w_hat = torch.where(rest, torch.where(sparse, high.value, low.value), first.value + second.value)
            E = (w - w_hat) / U.diagonal()[i1:i2]
            W[:, i2:] -= E @ U[i1:i2, i2:]
            planes.append((sign, second.sign, sparse))
            masks.append(salient)
            levels.append(torch.stack([part.levels for part in (first, second, low, high)], 1))
        sign, residual, sparse = (torch.cat(plane, 1) for plane in zip(*planes))
        levels_NC42 = torch.stack(levels, 1).half()
        if not torch.isfinite(levels_NC42).all():
            raise ValueError(f"BiLLM: a level of {name} is not a finite float16 number")
        return BinaryWeight(sign, residual, torch.cat(masks), sparse, levels_NC42, self.block_size, self.count, notes)

    def _search_salient(self, metric):
        """The mask of a block's salient columns."""
        rank = torch.argsort(metric.sum(0), descending=True, stable=True)
        ranked = metric[:, rank]
        counts = range(1, self.max_salient + 1)
        errors = [_twice_binarized_error(ranked[:, :n]) + _twice_binarized_error(ranked[:, n:]) for n in counts]
        salient = torch.zeros(metric.shape[1], dtype=torch.bool, device=metric.device)
        salient[rank[: 1 + int(torch.stack(errors).argmin())]] = True
        return salient

    def work(self, shape, n, length):
        """The error of a block changes all columns after it; both searches read and write the weight per candidate."""
        total = Work()
        for K, linears, _ in shape.stages:
            total += Work(float32=factor_flops(K), launches=20)
            starts = range(0, K, self.block_size)
            later = sum(2 * min(self.block_size, K - i) * max(0, K - i - self.block_size) for i in starts)
            launches = len(starts) * (SALIENT_LAUNCHES * self.max_salient + SPLIT_LAUNCHES * SPLITS)
            for N in linears.values():
                passes = SALIENT_PASSES * self.max_salient + SPLIT_PASSES * SPLITS
                total += Work(float32=N * later, bytes=4 * N * K * passes, launches=launches) + rounding(N, K)
        return total

    def outline(self, N, K):
        plane_NK, salient_K = (torch.empty(shape, dtype=torch.bool, device="meta") for shape in ((N, K), (K,)))
        levels_NC42 = torch.empty(N, -(-K // self.block_size), 4, 2, dtype=torch.float16, device="meta")
        return BinaryWeight(plane_NK, plane_NK, salient_K, plane_NK, levels_NC42, self.block_size, self.count)


def _twice_binarized_error(x):
    """The squared error after the rows of x, and then the rows of the residual, are binarized."""
    for _ in range(2):
        x = x - x.mean(1, keepdim=True)
        x -= torch.copysign(x.abs().mean(1, keepdim=True), x)
    return x.square().sum()


class _Binary:
    """mean + scale * sign of the masked weights, per row; rows with an empty mask get zeros."""

    def __init__(self, w: Tensor, mask: Tensor):
        n = mask.sum(1, keepdim=True).clamp(min=1)
        mean = (torch.where(mask, w, 0.0).sum(1, keepdim=True) / n).half().float()
        self.sign = w >= mean
        scale = (torch.where(mask, (w - mean).abs(), 0.0).sum(1, keepdim=True) / n).half().float()
        self.value = torch.where(self.sign, mean + scale, mean - scale)
        self.levels = torch.cat([mean, scale], 1)


def _search_split(x, among, sizes):
    """The mask of the sparse entries among those of ``among``: magnitudes of at least p, where p is the quantile of
    ``sizes`` with the least error.

    A part with n entries leaves the error sum (x - mean)^2 - n scale^2, so the search binarizes nothing.
    """
    size, square = x.abs(), x.square()
    ordered = sizes.sort().values
    at = torch.linspace(0.1, 0.9, SPLITS, device=x.device) * (len(ordered) - 1)
    thresholds = ordered[at.floor().long()].lerp(ordered[at.ceil().long()], at.frac())
    errors = []
    for p in thresholds:
        error = 0
        for mask in ((among & (size < p)).float(), (among & (size >= p)).float()):
            n = mask.sum(1, keepdim=True).clamp(min=1)
            mean = (x * mask).sum(1, keepdim=True) / n
            scale = ((x - mean).abs_().mul_(mask)).sum(1, keepdim=True) / n
            error = error + (square * mask).sum() - (n * (mean.square() + scale.square())).sum()
        errors.append(error)
    return among & (size >= thresholds[torch.stack(errors).argmin()])
