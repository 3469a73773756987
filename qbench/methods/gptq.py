"""GPTQ, arXiv 2210.17323, algorithm 1: columns are rounded one after another, and the columns that are not rounded yet
make up for the error of those that are.

With H = X X^T (up to a factor) and U upper triangular, H^-1 = U^T U: rounding column i of W leaves the error
e = (w_i - q_i) / U_ii, and the least output error is reached by W_j -= e U_ij for all j > i. The updates of columns
outside the current block are delayed (section 3.3, step 2) and made as one matrix product.

Deviations from the authors' code (IST-DASLab/gptq):
* A delayed update goes from the left half of a span of columns to its right half, and so on inside each half; theirs
  goes from a block of 128 columns to all later ones. The numbers are the same up to rounding, in fewer small steps.
* U comes from one factorisation of the reversed matrix; theirs, Cholesky, inversion, Cholesky, is three times the work.
* Later linears of a block see the earlier ones quantized, which their code does only with --true-sequential.
* Linears that read the same input (q, k, v; gate, up) are rounded as one matrix, because rows are independent.
* A channel that calibration never saw is rounded to nearest, because it may be used later; theirs is set to zero. It
  does not count in the mean that damping is a share of, so no code depends on the unit of x.
* A group is always fitted on up-to-date columns; theirs are stale where the group is smaller than the block.
* act_order sorts stably, so that equal diagonals give the same order on every machine.
* If the factorisation fails: more damping, then float64, then an error. The record's notes list each step.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from qbench.costs import Work, factor_flops, rounding
from qbench.grid import Grid
from qbench.methods.base import Method
from qbench.settings import Share
from qbench.stats import Gram
from qbench.weights import UniformWeight

BLOCK = 16  # columns that update each other one by one


@dataclass(frozen=True)
class GPTQ(Method):
    """``act_order``: columns by falling diag(H). ``static_groups``: group scales are fitted on the original weight, so
    that groups stay runs of neighbouring columns under act_order. ``damp``: this share of mean diag(H) is added."""

    name: ClassVar[str] = "gptq"
    version: ClassVar[int] = 3
    statistic = Gram
    calibrates_on = "stage"
    grid: Grid = Grid()
    act_order: bool = False
    static_groups: bool = False
    damp: Share = 0.01

    def quantize_stage(self, weights, stat):
        whole = self.quantize(torch.cat(list(weights.values())), stat, ", ".join(weights))
        return dict(zip(weights, whole.split([len(w) for w in weights.values()])))

    def quantize(self, w_NK, stat, name):
        N, K = w_NK.shape
        g = self.grid.columns(K, name)
        order_K = torch.arange(K, device=w_NK.device)
        if self.act_order:
            order_K = torch.argsort(stat.gram_KK.diagonal(), descending=True, stable=True)
        U_KK, notes = stat.inverse_cholesky(self.damp, order_K if self.act_order else None)
        scale_GN, zero_GN = (t.T.contiguous() for t in self.grid.fit(w_NK.view(N, -1, g)))
        static = self.static_groups or g == K  # otherwise a group is fitted when its first column is reached
        group_K = (order_K if static else torch.arange(K, device=w_NK.device)) // g
        W_KN = w_NK.float().T[order_K].contiguous()  # transposed: a column is one run of memory
        codes_KN = round_columns(W_KN, U_KK, self.grid, scale_GN, zero_GN, group_K.tolist(), None if static else g)
        back_K = torch.argsort(order_K)
        moved_K = group_K[back_K] if self.act_order and not static else None
        return UniformWeight.of(self.grid, codes_KN[back_K].T, scale_GN.T, zero_GN.T, moved_K, notes)

    def outline(self, N, K):
        weight = super().outline(N, K)
        moves = self.act_order and not self.static_groups and self.grid.columns(K) != K
        return replace(weight, group_K=torch.empty(K, dtype=torch.int16, device="meta")) if moves else weight

    def work(self, shape, n, length):
        """The error of column i changes the K - 1 - i columns after it in N rows, two operations each: N K (K - 1)."""
        total = Work()
        for K, linears, _ in shape.stages:
            N, groups = sum(linears.values()), K // self.grid.columns(K)
            launches = 20 + 8 * K + 12 * groups
            total += Work(float32=factor_flops(K) + N * K * (K - 1), bytes=8 * N * K * 64, launches=launches)
            total += sum((rounding(N, K) for N in linears.values()), Work())
        return total


def round_columns(
    W_KN: Tensor, U_KK: Tensor, grid: Grid, scale_GN: Tensor, zero_GN: Tensor, group: list[int], fit: int | None
) -> Tensor:
    """The codes of all columns, uint8 [K, N]. Changes ``W_KN``; ``group[i]`` is the group of column i.

    ``fit``: columns per group, where ``scale_GN`` and ``zero_GN`` are fitted at its first column; None: they are given.
    """
    K, pivots = len(W_KN), U_KK.diagonal().tolist()
    E_KN, codes_KN = torch.empty_like(W_KN), torch.empty_like(W_KN, dtype=torch.uint8)
    halved = halves(0, K, fit or K)
    for start, end in pairwise([0, *halved, K]):
        if start > 0:
            first, last = halved[start]
            W_KN[start:last].addmm_(U_KK[first:start, start:last].T, E_KN[first:start], alpha=-1)
        if fit and start % fit == 0:
            scale_GN[group[start]], zero_GN[group[start]] = grid.fit(W_KN[start : start + fit].T)
        for i in range(start, end):
            s, z = scale_GN[group[i]], zero_GN[group[i]]
            q = grid.encode(W_KN[i], s, z)
            e = torch.sub(W_KN[i], grid.decode(q, s, z), out=E_KN[i]).div_(pivots[i])
            W_KN[i + 1 : end].addr_(U_KK[i, i + 1 : end], e, alpha=-1)
            codes_KN[i] = q
    return codes_KN


def halves(start: int, end: int, group: int) -> dict[int, tuple[int, int]]:
    """{middle: (start, end)}: where the columns start..end are halved, and each half again, down to blocks of columns.

    Spans of more than one group are cut between groups, so that a group is fitted on up-to-date columns.
    """
    unit = group if end - start > group else BLOCK
    if end - start <= unit:
        return {}
    middle = start + -(-(end - start) // (2 * unit)) * unit
    return halves(start, middle, group) | {middle: (start, end)} | halves(middle, end, group)
