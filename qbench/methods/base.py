"""The contract of a method. To write your own, add one file here and one yaml in conf/method.

A method is a frozen dataclass whose fields are its hyperparameters. The yaml lists them next to ``_target_``; they are
checked against their annotations, and they are part of every record's identity. Raise ``version`` when the numbers
change. Override ``quantize`` and, if scales should move between layers first, ``transform``; CONTRIBUTING.md shows an
example. A method declares what it needs:

* ``statistic``: what calibration gathers about each linear's inputs (``Gram``, ``AbsMax`` or your own ``Statistic``);
  ``quantize`` gets it as ``stat``. None: the method reads weights only, and ``stat`` is None.
* ``calibrates_on``: the activations it is calibrated on. "float": those of the unquantized model. "block": those of a
  model whose earlier blocks are quantized. "stage": the earlier linears of the same block are quantized too.
* ``reads_inputs``: whether ``transform`` needs the activations themselves (``calib.calls``), not only statistics.
* ``grid``, ``acts``: fields of type Grid and ActQuant, if the method has bits or quantizes activations.

Dimension key of all methods: N output channels, K input channels, G groups of K.
"""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from qbench import settings
from qbench.costs import Work
from qbench.grid import ActQuant, Grid
from qbench.models.block import Block, Stage
from qbench.shape import Shape
from qbench.stats import Statistic
from qbench.weights import FloatWeight, QuantWeight, UniformWeight

if TYPE_CHECKING:
    from qbench.calibration import BlockCalibration


@dataclass(frozen=True)
class Method:
    """The base class; used as a method, it leaves the model unquantized."""

    name: ClassVar[str] = "none"
    version: ClassVar[int] = 1
    statistic: ClassVar[type[Statistic] | None] = None
    calibrates_on: ClassVar[Literal["float", "block", "stage"]] = "float"
    grid: ClassVar[Grid | None] = None
    acts: ClassVar[ActQuant | None] = None
    reads_inputs: ClassVar[bool] = False

    def __post_init__(self):
        settings.check(self, "method")

    def check(self, shapes: dict[str, tuple[int, int]]) -> None:
        """Raises ValueError, before weights load, for a linear (name -> N, K) that this method cannot quantize."""
        size = self.grid.group_size if self.grid else -1
        for name, (_, K) in shapes.items():
            if size != -1 and K % size:
                common = math.gcd(*(K for _, K in shapes.values()))
                sizes = [str(n) for n in range(1, common + 1) if common % n == 0][-6:]
                raise ValueError(
                    f"group_size {size} does not divide K={K} ({name}); use grid.group_size={', '.join(sizes)}, or -1 "
                    "for one group per row"
                )

    def transform(self, block: Block, calib: "BlockCalibration") -> None:
        """Moves scales inside ``block`` without changing its function, before anything is quantized.

        ``calib.stats[stage]`` holds the statistics; ``calib.rescale`` changes weights and statistics together.
        Called only for methods that calibrate on "float".
        """

    def quantize(self, w_NK: Tensor, stat: Statistic | None, name: str) -> QuantWeight:
        """The quantized weight of the linear ``name``. Must not change ``w_NK`` (in the model's dtype)."""
        return FloatWeight(w_NK.clone())

    def quantize_stage(self, weights: dict[str, Tensor], stat: Statistic | None) -> dict[str, QuantWeight]:
        """The quantized weights of linears that read the same input; override it where one call for all is faster."""
        return {name: self.quantize(w_NK, stat, name) for name, w_NK in weights.items()}

    def work(self, shape: Shape, n: int, length: int) -> Work:
        """What ``transform`` and ``quantize_stage`` do in one layer after calibration on ``n`` sequences of ``length``
        tokens. ``qbench plan`` asks."""
        return Work(unknown=(f"the arithmetic of the method {self.name}",))

    def outline(self, N: int, K: int) -> QuantWeight:
        """What ``quantize`` returns for a weight [N, K], on the meta device: known before anything is quantized, and
        enough to count bytes and to refuse a format that cannot hold it."""
        if self.grid is None:
            return FloatWeight(torch.empty(N, K, dtype=torch.bfloat16, device="meta"))
        return UniformWeight.outlined(self.grid, N, K)

    def stored_bytes(self, N: int, K: int) -> int:
        """Bytes on disk of a quantized weight [N, K]."""
        return sum(t.nbytes for t in self.outline(N, K).state().values())

    def stage_notes(self, stage: Stage) -> tuple[str, ...]:
        """Notes for the record of every linear of ``stage``."""
        return ()

    def science(self) -> dict:
        """This method's part of a record's identity: name, version and every field but the grid."""
        return {"name": self.name, "version": self.version} | {k: v for k, v in asdict(self).items() if k != "grid"}
