"""The quantized weights as plain numbers in the model's dtype: a checkpoint for every engine, of the unquantized size.

It holds exactly the numbers that qbench measures, of every method. Activations are left as they are.
"""

from dataclasses import dataclass
from typing import ClassVar

from qbench.formats.base import Format
from qbench.weights import FloatWeight


@dataclass(frozen=True)
class HF(Format):
    """Dequantized weights; ``model.dtype`` chooses their type, and that of the measurement with it."""

    name: ClassVar[str] = "hf"

    def refuse(self, weight, acts):
        """Holds everything."""

    def tensors(self, weight, acts, dtype):
        return {"weight": weight.dequantize().to(dtype)}

    def config(self, weights, acts):
        return {}

    def read(self, name, tensors, config):
        return FloatWeight(tensors["weight"])

    def notes(self, weights, acts):
        if acts:
            return [f"Engines leave activations as they are: the numbers measured with {acts.bits} bits do not hold."]
        return ["transformers and all engines that read safetensors compute with exactly the measured weights."]
