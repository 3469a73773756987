"""Programs that share an output tile, each with a stretch of K ("split-K"): their layout, and how they end."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qbench.kernels.launch import rounded


@triton.jit
def tile(K, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPLIT: tl.constexpr):
    """A program's output channels n and tokens m, the chunks of a row of K columns, and its own, first .. last - 1."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    chunks = tl.cdiv(K, 128)
    share = tl.cdiv(chunks, SPLIT)
    first = tl.program_id(1) * share
    return n, m, chunks, first, tl.minimum(first + share, chunks)


@triton.jit
def finish(y, y_ptr, sums_ptr, counter_ptr, n, m, N, M, SPLIT: tl.constexpr):
    """Writes y [n, m] (float32) to ``y_ptr`` [M, N], summed over the SPLIT programs that share the tile.

    Each program stores its sums in ``sums_ptr`` [SPLIT, M, N] and increments the counter. The last one adds all sums in
    the order of the programs, so the same input gives the same bits, and resets the counter for the next launch.
    """
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    where = m.to(tl.int64)[None, :] * N + n[:, None]
    inside = (n[:, None] < N) & (m[None, :] < M)
    if SPLIT == 1:
        tl.store(y_ptr + where, rounded(y, dtype), mask=inside)
    else:
        tl.store(sums_ptr + tl.program_id(1) * M * N + where, y, mask=inside)
        tl.debug_barrier()  # every thread has stored before one increments the counter
        if tl.atomic_add(counter_ptr + tl.program_id(0), 1, sem="acq_rel") == SPLIT - 1:
            total = tl.zeros(y.shape, tl.float32)
            if y.shape[1] <= 32:  # all loads at once
                for i in tl.static_range(SPLIT):
                    total += tl.load(sums_ptr + i * M * N + where, mask=inside, other=0.0, cache_modifier=".cg")
            else:  # all of them would not fit the registers
                for i in tl.range(SPLIT):
                    total += tl.load(sums_ptr + i * M * N + where, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(y_ptr + where, rounded(total, dtype), mask=inside)
            tl.store(counter_ptr + tl.program_id(0), 0)


def plan(M: int, words: Tensor, config: dict, dtype: torch.dtype) -> tuple[tuple, dict, Tensor, Tensor]:
    """The grid (row tiles, programs along K, token tiles), the launch parameters of a configuration, room for y [M, N]
    in ``dtype``, and, where programs share tiles, room for their sums [split, M, N].

    Programs share tiles only where all tokens are in one tile, since there is one counter per row tile.
    """
    N, tiles = words.shape[2], triton.cdiv(M, config["block_m"])
    split = config["split"] if tiles == 1 else 1
    parameters = dict(BLOCK_N=config["block_n"], BLOCK_M=config["block_m"], SPLIT=split, STAGES=config["stages"])
    y = torch.empty(M, N, dtype=dtype, device=words.device)
    sums = torch.empty(split, M, N, dtype=torch.float32, device=words.device) if split > 1 else y
    return (triton.cdiv(N, config["block_n"]), split, tiles), parameters | {"num_warps": config["warps"]}, y, sums
