"""RTN, round to nearest: the baseline that looks at nothing but the weight.

Deviation from the study's code (which ignores the group size): groups are honoured, group_size -1 is its setting.

Dimension key: N output channels, K input channels.
"""

from dataclasses import dataclass
from typing import ClassVar

from qbench.grid import Grid, round_to_nearest
from qbench.methods.base import Method


@dataclass(frozen=True)
class RTN(Method):
    """Every weight to the nearest level of its group's min-max grid."""

    name: ClassVar[str] = "rtn"
    grid: Grid = Grid()

    def quantize(self, w_NK, stat, name):
        return round_to_nearest(w_NK, self.grid)
