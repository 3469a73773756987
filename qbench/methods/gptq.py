"""GPTQ, arXiv 2210.17323, algorithm 1: columns are rounded one after another, and what rounding a column broke is
mended in the columns still to come.

With H = X X^T (up to a factor) and U upper triangular, H^-1 = U^T U, rounding column i of W leaves the error e
= (w_i - q_i) / U_ii, and the best answer of the others is W_j -= e U_ij for j > i. Updates beyond the current
block of columns wait until the block is done (section 3.3, step 2).

Deviations from the authors' code (IST-DASLab/gptq):
* U comes from one factorisation of the reversed matrix instead of Cholesky, inversion, Cholesky: same U, a
  third of the work.
* A channel that calibration never saw is rounded to nearest, not set to zero: its inputs may fire in use.
* A group is always fitted on up-to-date columns; theirs are stale where the group is smaller than the block.
* act_order sorts stably, so equal diagonals give the same order everywhere.
* If the factorisation fails: more damping, then float64, then an error; each step is in the record's notes.

Dimension key: N output channels, K input channels, G groups of K.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from qbench.grid import Grid, UniformWeight
from qbench.methods.base import Method
from qbench.stats import Gram


@dataclass(frozen=True)
class GPTQ(Method):
    """``act_order``: columns by falling diag(H). ``static_groups``: group scales from the weight as it was, so that
    groups stay runs of neighbouring columns under act_order. ``damp``: share of mean diag(H) added to it."""

    name: ClassVar[str] = "gptq"
    statistic = Gram
    sees = "stage"
    grid: Grid = Grid()
    act_order: bool = False
    static_groups: bool = False
    damp: float = 0.01
    block_size: int = 128

    def __post_init__(self):
        if not 0 < self.damp < 1:
            raise ValueError(f"method.damp must be between 0 and 1, got {self.damp!r}")
        g, b = self.grid.group_size, self.block_size
        if b < 1 or (g > 0 and g % b and b % g):
            raise ValueError(f"method.block_size {b} and grid.group_size {g}: one must divide the other")

    def quantize(self, w_NK, stat, name):
        grid, g = self.grid, self.grid.columns(w_NK.shape[1], name)
        K = w_NK.shape[1]
        perm = torch.arange(K, device=w_NK.device)
        if self.act_order:
            perm = torch.argsort(stat.gram_KK.diagonal(), descending=True, stable=True)
        U, notes = stat.inverse_cholesky(self.damp, perm if self.act_order else None)
        W = w_NK.float().T[perm].contiguous()  # K x N: a column of the weight is one run of memory
        Q = torch.empty_like(W)
        group = (perm if self.static_groups else torch.arange(K, device=W.device)) // g
        scale, zero = grid.fit(w_NK.float().view(len(w_NK), -1, g))  # N x G
        scale, zero = scale.T.contiguous(), zero.T.contiguous()
        fixed = self.static_groups or g == K

        for i1 in range(0, K, self.block_size):
            i2 = min(i1 + self.block_size, K)
            E = torch.empty_like(W[i1:i2])
            for i in range(i1, i2):
                if not fixed and i % g == 0:
                    scale[i // g], zero[i // g] = grid.fit(W[i : i + g].T)
                s, z = scale[group[i]], zero[group[i]]
                Q[i] = grid.encode(W[i], s, z)
                E[i - i1] = (W[i] - grid.decode(Q[i], s, z)) / U[i, i]
                W[i + 1 : i2] -= U[i, i + 1 : i2, None] * E[i - i1]
            W[i2:] -= U[i1:i2, i2:].T @ E

        back = torch.argsort(perm)
        moved = self.act_order and not fixed
        return UniformWeight.of(grid, Q[back].T, scale.T, zero.T, group[back] if moved else None, notes)
