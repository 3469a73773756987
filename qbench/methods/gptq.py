"""GPTQ, arXiv 2210.17323, algorithm 1: columns are rounded one after another, and what rounding a column broke is
mended in the columns still to come.

With H = X X^T (up to a factor) and U upper triangular, H^-1 = U^T U, rounding column i of W leaves the error e
= (w_i - q_i) / U_ii, and the best answer of the others is W_j -= e U_ij for j > i. The updates are delayed (section
3.3, step 2), here by halves: when the left half of a span of columns is done, the right half takes all its
updates as one matrix product, and so on inside each half.

Deviations from the authors' code (IST-DASLab/gptq):
* Delayed updates by halves instead of blocks of 128 columns: the same numbers up to rounding, fewer small steps.
* U comes from one factorisation of the reversed matrix instead of Cholesky, inversion, Cholesky: same U, a
  third of the work.
* Later linears of a block see the earlier ones quantized. The code does so only with --true-sequential; by
  default it gathers all Hessians of a block from unquantized linears.
* Linears that read the same input (q, k, v; gate, up) are one matrix: rows do not depend on each other.
* A channel that calibration never saw is rounded to nearest, not set to zero: its inputs may fire in use. It does not
  count in the mean that damping is a share of, so no code depends on the unit of x.
* A group is always fitted on up-to-date columns; theirs are stale where the group is smaller than the block.
* act_order sorts stably, so equal diagonals give the same order everywhere.
* If the factorisation fails: more damping, then float64, then an error; each step is in the record's notes.

Dimension key: N output channels, K input channels, G groups of K.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from qbench.grid import Grid
from qbench.methods.base import Method
from qbench.stats import Gram
from qbench.weights import UniformWeight

LEAF = 16  # columns whose updates are made one by one


@dataclass(frozen=True)
class GPTQ(Method):
    """``act_order``: columns by falling diag(H). ``static_groups``: group scales from the weight as it was, so that
    groups stay runs of neighbouring columns under act_order. ``damp``: share of mean diag(H) added to it."""

    name: ClassVar[str] = "gptq"
    version: ClassVar[int] = 3
    statistic = Gram
    calibrates_on = "stage"
    grid: Grid = Grid()
    act_order: bool = False
    static_groups: bool = False
    damp: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.damp < 1:
            raise ValueError(f"method.damp must be between 0 and 1, got {self.damp!r}")

    def quantize_stage(self, weights, stat):
        whole = self.quantize(torch.cat(list(weights.values())), stat, ", ".join(weights))
        return dict(zip(weights, whole.split([len(w) for w in weights.values()])))

    def quantize(self, w_NK, stat, name):
        K = w_NK.shape[1]
        g = self.grid.columns(K, name)
        perm = torch.arange(K, device=w_NK.device)
        if self.act_order:
            perm = torch.argsort(stat.gram_KK.diagonal(), descending=True, stable=True)
        U, notes = stat.inverse_cholesky(self.damp, perm if self.act_order else None)
        scale, zero = (t.T.contiguous() for t in self.grid.fit(w_NK.view(len(w_NK), -1, g)))  # G x N
        fixed = self.static_groups or g == K
        group = (perm if self.static_groups else torch.arange(K, device=w_NK.device)) // g
        W = w_NK.float().T[perm].contiguous()  # K x N: a column of the weight is one run of memory
        columns = _Columns(W, U, self.grid, scale, zero, group.tolist(), None if fixed else g)
        columns.solve(0, K)
        back = torch.argsort(perm)
        moved = self.act_order and not fixed
        codes_NK = W.to(torch.uint8)[back].T  # the solver leaves codes where weights were
        return UniformWeight.of(self.grid, codes_NK, scale.T, zero.T, group[back] if moved else None, notes)


class _Columns:
    """The columns W (K x N) on their way to codes; E keeps each column's error for the updates to come.

    ``refit``: columns of a group whose scale is fitted when its first column is reached; None: scales are given.
    """

    def __init__(self, W, U, grid, scale, zero, group, refit):
        self.W, self.U, self.grid, self.scale, self.zero, self.group, self.refit = W, U, grid, scale, zero, group, refit
        self.E = torch.empty_like(W)
        self.pivots = U.diagonal().tolist()

    def solve(self, start: int, end: int) -> None:
        """Columns start..end, which have taken the updates of all columns before ``start``.

        Spans are cut at multiples of the group size, so that a group is fitted on up-to-date columns.
        """
        n = end - start
        unit = self.refit if self.refit and n > self.refit else LEAF
        if n == self.refit:
            i = start // n
            self.scale[i], self.zero[i] = self.grid.fit(self.W[start:end].T)
        if n <= unit:
            self._one_by_one(start, end)
            return
        middle = start + -(-n // (2 * unit)) * unit
        self.solve(start, middle)
        self.W[middle:end].addmm_(self.U[start:middle, middle:end].T, self.E[start:middle], alpha=-1)
        self.solve(middle, end)

    def _one_by_one(self, start, end):
        for i in range(start, end):
            s, z = self.scale[self.group[i]], self.zero[self.group[i]]
            q = self.grid.encode(self.W[i], s, z)
            e = torch.sub(self.W[i], self.grid.decode(q, s, z), out=self.E[i]).div_(self.pivots[i])
            self.W[i] = q
            if i + 1 < end:
                self.W[i + 1 : end].addr_(self.U[i, i + 1 : end], e, alpha=-1)
