"""A transformer block as quantization sees it: stages of linears, the steps between them, and where scales fold.

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
    """Linears that read one tensor. ``fold`` is the operation that writes that tensor channel by channel, so that a
    scale can move between it and the readers; None where there is none, and then ``why_no_fold`` says so."""

    linears: tuple[str, ...]
    fold: str | None
    why_no_fold: str = ""


@dataclass(frozen=True)
class Anatomy:
    """How a decoder layer works, cut where its stages read.

    ``steps`` has one entry more than ``stages``. A step takes the layer, a state (a tuple of tensors) and the layer's
    keyword arguments to the next state: ``steps[i]`` ends with the state whose first tensor the linears of
    ``stages[i]`` read, the last one with the layer's output. All steps in a row are the layer's own forward pass, bit
    for bit.
    """

    stages: tuple[Stage, ...]
    steps: tuple[Step, ...]


class Block:
    """One decoder layer on a device: ``block["mlp.up_proj"]`` is that submodule."""

    def __init__(self, module: nn.Module, anatomy: Anatomy, index: int):
        self.module, self.stages, self.steps, self.index = module, anatomy.stages, anatomy.steps, index

    def __getitem__(self, name: str) -> nn.Module:
        return self.module.get_submodule(name)

    def install(self, name: str, linear: nn.Module) -> None:
        """Puts ``linear`` in the place of the submodule ``name``."""
        parent, _, leaf = name.rpartition(".")
        setattr(self.module.get_submodule(parent), leaf, linear)

    @torch.no_grad()
    def rescale(self, stage: Stage, s_K: Tensor) -> Tensor:
        """Divides what ``stage`` reads by ``s_K`` and multiplies its weights' columns: the function stays.

        A norm's gain is divided first, in its own dtype; the columns then take the ratio that the rounded
        gain really has, so that no channel is left with a wrong gain. Returns the scales applied.
        """
        if stage.fold is None:
            raise ValueError(
                f"block {self.index}: nothing to fold a scale of {stage.linears} into: {stage.why_no_fold}"
            )
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
