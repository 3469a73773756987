"""The packed layer of a quantized weight."""

from qbench.grid import ActQuant
from qbench.kernels.base import Packed
from qbench.kernels.binary import PackedBinary
from qbench.kernels.wna8 import PackedInteger
from qbench.kernels.wna16 import PackedUniform
from qbench.weights import QuantWeight


def pack_weight(weight: QuantWeight, acts: ActQuant | None) -> Packed:
    """The layer that multiplies with ``weight`` and quantizes activations as ``acts`` says.

    Raises: ValueError for what no kernel takes.
    """
    if weight.kernel == "binary" and acts is None:
        return PackedBinary.of(weight)
    if weight.kernel == "uniform":
        return PackedUniform.of(weight) if acts is None else PackedInteger.of(weight, acts)
    what = type(weight).__name__ + ("" if acts is None else f" with {acts.bits}-bit activations")
    raise ValueError(f"no kernel multiplies a packed {what}; there are kernels for UniformWeight and BinaryWeight")
