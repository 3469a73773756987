"""The packed layer of a quantized weight, and one layer of several that read the same activations."""

import torch
from torch import Tensor, nn

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


class Unfused(nn.Module):
    """Runs layers that read the same activations one after the other and joins their outputs."""

    def __init__(self, parts: list[Packed]):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.weight_bytes = sum(part.weight_bytes for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], -1)


def fuse(parts: list[Packed]) -> nn.Module:
    """One layer for several that read the same activations, as q, k and v do; its output is theirs side by side.

    It is one product if they have the same class, bits and group size and share what belongs to columns (the order of
    moved groups, salient columns). Otherwise it is an ``Unfused``, with one product per layer.
    """
    first, states = parts[0], [part.stored() for part in parts]
    alike = all(
        type(part) is type(first)
        and (part.bits, part.settings) == (first.bits, first.settings)
        and all((state[name] is None) == (value is None) for name, value in states[0].items())
        and all(n in first.rows or v is None or torch.equal(v, state[n]) for n, v in states[0].items())
        for part, state in zip(parts, states)
    )
    if len(parts) == 1 or not alike:
        return first if len(parts) == 1 else Unfused(parts)
    whole = []
    for name, value in states[0].items():
        together = value is not None and name in first.rows
        whole.append(torch.cat([state[name] for state in states], first.rows[name]) if together else value)
    return type(first)(*whole, **first.settings)
