"""Token sequences with common beginnings, planned so that what they share is forwarded once; needs no model.

All 5-shot prompts of an MMLU subject begin with the same few hundred tokens, all endings of a HellaSwag item with the
same context. The sorted sequences form a tree of tokens: neighbours share their longest common prefix. ``plan`` walks
the tree depth first and emits a ``Step`` per forward pass, of two kinds:

    keep    forward the stretch [start, stop) that the rows first..last share, and leave its keys and values
            in the cache, behind the ``start`` tokens that are there already
    else    forward whatever of the rows lies beyond ``start``, packed: one row of tokens in which each branch of
            the tree appears once, and each token sees the cache and its own ancestors only

A packed row has no padding; its cost is the attention scores between tokens that must not see each other, so packs are
small (``budget`` tokens). A stretch is kept only if that saves enough tokens to pay for a forward pass of its own;
otherwise each pack forwards it again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

FORWARD = 32  # an extra forward pass costs about as much as this many more tokens in another one


@dataclass(frozen=True)
class Step:
    """One forward pass: rows first..last (exclusive) from token ``start`` on, up to ``stop`` where it is kept.

    Cropped to ``start`` tokens, the cache holds the beginning of these rows.
    """

    first: int
    last: int
    start: int
    stop: int | None = None


@dataclass(frozen=True)
class Pack:
    """The tokens of a step: ids_Q, their positions depth_Q, and sees_QQ, True where a token sees another.

    sees_QQ is None where the tokens are one sequence: plain causal attention. ``paths``: per row, the places in Q of
    its tokens from ``start`` on.
    """

    ids_Q: np.ndarray
    depth_Q: np.ndarray
    sees_QQ: np.ndarray | None
    paths: list[np.ndarray]


class Tree:
    """Unique token sequences in sorted order (``rows``); ``row[i]`` is the row of the i-th given sequence."""

    def __init__(self, sequences: list[list[int]]):
        keys = [np.asarray(s, dtype=">u4").tobytes() for s in sequences]  # big endian sorts as numbers do
        unique = sorted(set(keys))
        place = {key: i for i, key in enumerate(unique)}
        self.row = [place[key] for key in keys]
        self.rows = [np.frombuffer(key, dtype=">u4") for key in unique]
        self.length = np.array([len(r) for r in self.rows])
        self.shared = np.array([0, *map(_common, self.rows[:-1], self.rows[1:])])[: len(self.rows)]
        self._fresh = np.concatenate([[0], np.cumsum(self.length - self.shared)])

    def tokens(self, first: int, last: int, start: int) -> int:
        """The number of tokens beyond ``start`` in the rows, shared ones counted once."""
        return int(self._fresh[last] - self._fresh[first + 1] + self.length[first] - start)

    def plan(self, budget: int) -> Iterator[Step]:
        """The steps that forward every row, at most ``budget`` tokens per pack unless a single row has more."""
        todo = [(0, len(self.rows), 0)] if self.rows else []
        while todo:
            first, last, start = todo.pop()
            total = self.tokens(first, last, start)
            if total <= budget or last == first + 1:
                yield Step(first, last, start)
                continue
            fork = int(self.shared[first + 1 : last].min())
            if (fork - start) * (-(-total // budget) - 1) >= FORWARD:
                yield Step(first, last, start, fork)
                start = fork
            todo += reversed([(a, b, start) for a, b in self._parts(first, last, start, fork, budget)])

    def _parts(self, first: int, last: int, start: int, fork: int, budget: int) -> list[tuple[int, int]]:
        """The branches at ``fork``; neighbours are joined while they fit the budget."""
        starts = first + 1 + np.flatnonzero(self.shared[first + 1 : last] == fork)
        bounds = [first, *starts.tolist(), last]
        parts = [(bounds[0], bounds[1])]
        for a, b in pairwise(bounds[1:]):
            if self.tokens(parts[-1][0], b, start) <= budget:
                parts[-1] = (parts[-1][0], b)
            else:
                parts.append((a, b))
        return parts

    def pack(self, step: Step) -> Pack:
        """The tokens of a step, and which of them see which."""
        start, count = step.start, step.last - step.first
        if step.stop is not None or count == 1:
            ids = self.rows[step.first][start : step.stop].astype(np.int64)
            return Pack(ids, start + np.arange(len(ids)), None, [np.arange(len(ids))] * count)
        Q = self.tokens(step.first, step.last, start)
        ids_Q, depth_Q = np.empty(Q, dtype=np.int64), np.empty(Q, dtype=np.int64)
        sees_QQ, paths, path, at = np.zeros((Q, Q), dtype=bool), [], np.empty(0, dtype=np.int64), 0
        for r in range(step.first, step.last):
            row = self.rows[r]
            known = int(self.shared[r]) - start if r > step.first else 0
            new = np.arange(at, at + len(row) - start - known)
            ids_Q[new], depth_Q[new] = row[start + known :], start + known + np.arange(len(new))
            sees_QQ[np.ix_(new, path[:known])] = True
            sees_QQ[np.ix_(new, new)] = np.tri(len(new), dtype=bool)
            path = np.concatenate([path[:known], new])
            paths.append(path)
            at += len(new)
        return Pack(ids_Q, depth_Q, sees_QQ, paths)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """The length of the longest common prefix."""
    n = min(len(a), len(b))
    return int(np.argmax(np.append(a[:n] != b[:n], True)))
