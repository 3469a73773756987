"""Write your own method: one file here, one yaml in conf/method.

A method is a frozen dataclass. Its fields are its hyperparameters; they stand in the yaml beside ``_target_``,
are checked against their annotations (check ranges in your ``__post_init__``, after the base's) and become part
of every record's identity. Raise ``version`` when the numbers change.

    @dataclass(frozen=True)
    class Ternary(Method):
        name: ClassVar[str] = "ternary"
        threshold: float = 0.7

        def quantize(self, w_NK, stat, name):
            ...
            return UniformWeight.of(...)

Declare what you need instead of fetching it:

* ``statistic``: what calibration shall gather of each linear's inputs (``Gram``, ``AbsMax`` or your own ``Statistic``);
  it comes to ``quantize`` as ``stat``. None: the method looks at weights only, ``stat`` is None.
* ``calibrates_on``: which activations calibration shows. "float": those of the unquantized model throughout. "block":
  earlier blocks are quantized. "stage": so are the earlier linears of the same block.
* ``reads_inputs``: whether ``transform`` needs the activations themselves (``calib.calls``), not only statistics.
* ``grid``: a field of type Grid, if the method has bits. ``acts``: a field of type ActQuant, if activations are
  quantized.

Override ``quantize`` and, if scales should move between layers first, ``transform``. The contract tests
find every yaml by themselves.

Dimension key: N output channels, K input channels.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from qbench import settings
from qbench.grid import ActQuant, Grid
from qbench.models.block import Block, Stage
from qbench.stats import Statistic
from qbench.weights import FloatWeight, QuantWeight

if TYPE_CHECKING:
    from qbench.calibration import BlockCalibration


@dataclass(frozen=True)
class Method:
    """The contract; by itself it leaves the model as it is."""

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
        """ValueError, before weights load, for a linear (name -> N, K) that this method cannot take."""
        if self.grid is not None:
            for name, (_, K) in shapes.items():
                self.grid.columns(K, name)

    def transform(self, block: Block, calib: "BlockCalibration") -> None:
        """Moves scales inside ``block`` without changing its function, before anything is quantized.

        ``calib.stats[stage]`` holds the statistics; go through ``calib.rescale`` so that they follow.
        Only for methods that see "float".
        """

    def quantize(self, w_NK: Tensor, stat: Statistic | None, name: str) -> QuantWeight:
        """The quantized weight of the linear ``name``. Pure: ``w_NK`` (in the model's dtype) stays as it is."""
        return FloatWeight(w_NK.clone())

    def quantize_stage(self, weights: dict[str, Tensor], stat: Statistic | None) -> dict[str, QuantWeight]:
        """The quantized weights of linears that read the same input; override where doing them together is faster."""
        return {name: self.quantize(w_NK, stat, name) for name, w_NK in weights.items()}

    def stage_notes(self, stage: Stage) -> tuple[str, ...]:
        """What every linear of ``stage`` must say in the record about how it was treated."""
        return ()

    def science(self) -> dict:
        """Name, version and every field but the grid: this method's part of a record's identity."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "grid"}
        plain = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in fields.items()}
        return {"name": self.name, "version": self.version} | plain
