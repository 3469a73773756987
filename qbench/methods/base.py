"""The contract of a method. To write your own, add one file here and one yaml in conf/method.

A method is a frozen dataclass. Its fields are its hyperparameters: the yaml lists them next to ``_target_``, they are
checked against their annotations and the limits in them, ``Annotated[int, Range(1, 8)]``, and they are part of every
record's identity. Raise ``version`` when the numbers change.

    @dataclass(frozen=True)
    class Ternary(Method):
        name: ClassVar[str] = "ternary"
        threshold: float = 0.7

        def quantize(self, w_NK, stat, name):
            ...
            return UniformWeight.of(...)

A method declares what it needs:

* ``statistic``: what calibration gathers about each linear's inputs (``Gram``, ``AbsMax`` or your own ``Statistic``);
  ``quantize`` gets it as ``stat``. None: the method reads weights only, and ``stat`` is None.
* ``calibrates_on``: the activations it is calibrated on. "float": those of the unquantized model. "block": those of a
  model whose earlier blocks are quantized. "stage": the earlier linears of the same block are quantized too.
* ``reads_inputs``: whether ``transform`` needs the activations themselves (``calib.calls``), not only statistics.
* ``grid``: a field of type Grid, if the method has bits. ``acts``: a field of type ActQuant, if it quantizes
  activations.

Override ``quantize`` and, if scales should move between layers first, ``transform``. The contract tests find every
yaml by themselves.

Dimension key: N output channels, K input channels.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from qbench import settings
from qbench.costs import Work
from qbench.grid import ActQuant, Grid
from qbench.models.block import Block, Stage
from qbench.shape import Shape, codes_bytes
from qbench.stats import Statistic
from qbench.weights import FloatWeight, QuantWeight

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
        if self.grid is not None:
            for name, (_, K) in shapes.items():
                self.grid.columns(K, name)

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
        tokens. Only ``qbench plan`` asks; without an answer it says that this is not counted."""
        return Work(unknown=(f"the arithmetic of the method {self.name}",))

    def stored_bytes(self, N: int, K: int) -> int:
        """Bytes on disk of a quantized weight [N, K]."""
        return 2 * N * K if self.grid is None else codes_bytes(N, K, self.grid.group_size, self.grid.symmetric)

    def stage_notes(self, stage: Stage) -> tuple[str, ...]:
        """Notes for the record of every linear of ``stage``."""
        return ()

    def science(self) -> dict:
        """This method's part of a record's identity: name, version and every field but the grid."""
        fields: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "grid"}
        plain = {k: dataclasses.asdict(v) if hasattr(v, "__dataclass_fields__") else v for k, v in fields.items()}
        return {"name": self.name, "version": self.version} | plain
