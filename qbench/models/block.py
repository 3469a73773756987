"""A decoder layer as quantization sees it: stages of linears, steps between them, and operations that take scales.

Dimension key: K input channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]
Step = Callable[[nn.Module, State, dict], State]


@dataclass(frozen=True)
class Stage:
    """Linears that read the same tensor. ``fold`` is the operation that writes this tensor channel by channel, so that
    a scale can move between it and the readers; None where there is none, and ``why_no_fold`` gives the reason."""

    linears: tuple[str, ...]
    fold: str | None
    why_no_fold: str = ""


@dataclass(frozen=True)
class Anatomy:
    """The forward pass of a decoder layer, divided where its stages read.

    ``steps`` has one entry more than ``stages``. A step maps the layer, a state (a tuple of tensors) and the layer's
    keyword arguments to the next state: ``steps[i]`` returns the state whose first tensor the linears of ``stages[i]``
    read, and the last step the layer's output. All steps in sequence equal the layer's own forward pass, bit for bit.
    """

    stages: tuple[Stage, ...]
    steps: tuple[Step, ...]


class Block:
    """One decoder layer on a device; ``block["mlp.up_proj"]`` is that submodule."""

    def __init__(self, module: nn.Module, anatomy: Anatomy, index: int):
        self.module, self.stages, self.steps, self.index = module, anatomy.stages, anatomy.steps, index

    def __getitem__(self, name: str) -> nn.Module:
        return self.module.get_submodule(name)

    @torch.no_grad()
    def rescale(self, stage: Stage, s_K: Tensor) -> Tensor:
        """Divides the input of ``stage`` by ``s_K`` and multiplies the weights' columns by it: the function stays.

        A norm's gain is divided first, in its own dtype. The columns are then multiplied by the ratio of the rounded
        gains, so that no channel ends up with a wrong gain. Returns the scales applied.
        """
        if stage.fold is None:
            raise ValueError(f"block {self.index}: a scale of {stage.linears} cannot be folded: {stage.why_no_fold}")
        writer = self[stage.fold]
        old = writer.weight.float().clone()
        if old.ndim == 1:
            writer.weight.copy_(old / s_K)
            new = writer.weight.float()
            s_K = torch.where((new != 0) & (old != 0), old / new, s_K)
        else:
            writer.weight.copy_(old / s_K[:, None])
            if writer.bias is not None:
                writer.bias.copy_(writer.bias.float() / s_K)
        for name in stage.linears:
            w = self[name].weight
            w.copy_(w.float() * s_K)
        return s_K
