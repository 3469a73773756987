"""RTN, round to nearest: the baseline that reads nothing but the weight.

The study's code ignores the group size; here only ``whole_rows`` does.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from qbench.costs import Work, rounding
from qbench.grid import Grid
from qbench.methods.base import Method
from qbench.weights import round_to_nearest


@dataclass(frozen=True)
class RTN(Method):
    """Rounds every weight to the nearest level of its group's min-max grid. ``whole_rows``: one group per row, whatever
    the group size."""

    name: ClassVar[str] = "rtn"
    grid: Grid = Grid()
    whole_rows: bool = False

    def quantize(self, w_NK, stat, name):
        return round_to_nearest(w_NK, replace(self.grid, group_size=-1) if self.whole_rows else self.grid)

    def outline(self, N, K):
        if self.whole_rows and self.grid.group_size != -1:
            return replace(self, grid=replace(self.grid, group_size=-1)).outline(N, K)
        return super().outline(N, K)

    def work(self, shape, n, length):
        return sum((rounding(N, K) for N, K in shape.linears), Work())
