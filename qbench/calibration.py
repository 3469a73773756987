"""What flows through a block: the only place with forward hooks.

The inputs of block 0 come from the model's own forward pass, stopped there, with every keyword argument that the model
passes (rotary embeddings, mask, positions): nothing about attention is rebuilt by hand. After that each block's outputs
are the next one's inputs.

Dimension key: B sequences, T tokens, D model width, K input channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qbench.models.block import Block, Stage
from qbench.stats import Statistic


class Stop(Exception):
    """Raised by a hook that has seen enough."""


@dataclass(frozen=True)
class Inputs:
    """A batch of sequences on its way through the model; ``x_BTD`` may rest on another device than the block's."""

    x_BTD: Tensor
    kwargs: dict


@torch.no_grad()
def first_block_inputs(model: nn.Module, block0: nn.Module, ids_BT: Tensor, batch: int, device, rest) -> list[Inputs]:
    """What ``block0`` receives when ``model`` reads ``ids_BT``, ``batch`` sequences at a time.

    Only what runs before the first block needs weights. Hidden states are kept on the device ``rest``.
    """
    caught: list[Inputs] = []

    def catch(module, args, kwargs):
        kwargs = dict(kwargs)
        x = args[0] if args else kwargs.pop("hidden_states")
        if len(args) > 1:
            raise TypeError(f"{type(module).__name__} is called with {len(args)} positional arguments; expected one")
        caught.append(Inputs(x.to(rest), kwargs))
        raise Stop

    handle = block0.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for ids in ids_BT.split(batch):
            try:
                model(input_ids=ids.to(device), use_cache=False)
            except Stop:
                continue
            raise RuntimeError(f"{type(model).__name__} never called its first block")
    finally:
        handle.remove()
    return caught


class BlockCalibration:
    """Runs one block on its calibration inputs.

    ``stats[stage][kind]`` is what ``observe`` saw last.
    """

    def __init__(self, block: Block, inputs: list[Inputs], device):
        self.block, self.inputs, self.device = block, inputs, device
        self.stats: dict[Stage, dict[type[Statistic], Statistic]] = {}

    @torch.no_grad()
    def observe(self, kinds, stages: tuple[Stage, ...], outputs: bool = False) -> list[Inputs] | None:
        """One pass: collects statistics of the inputs of ``stages`` and, if asked, the block's outputs.

        Raises: ArithmeticError, naming the linear, when an input is not finite.
        """
        handles = []
        for stage in stages:
            reader = self.block[stage.linears[0]]
            self.stats[stage] = {kind: kind(reader.weight.shape[1], self.device) for kind in kinds}
            last = stage is stages[-1] and not outputs
            handles.append(reader.register_forward_pre_hook(_watch(self.stats[stage].values(), last)))
        try:
            results = [y for y in self._run() if outputs]
        finally:
            for handle in handles:
                handle.remove()
        for stage in stages:
            if not all(stat.is_finite() for stat in self.stats[stage].values()):
                raise ArithmeticError(
                    f"NaN or inf in the input of model.layers.{self.block.index}.{stage.linears[0]}: "
                    "the checkpoint or an earlier block is broken, or its dtype overflows; try model.dtype=float32"
                )
        return results if outputs else None

    @torch.no_grad()
    def outputs(self) -> list[Inputs]:
        """The block's outputs as it now is, as inputs of the next block."""
        return list(self._run())

    @torch.no_grad()
    def calls(self, name: str) -> list[tuple[tuple, dict]]:
        """The arguments with which the block calls its submodule ``name``, a batch an entry."""
        seen: list[tuple[tuple, dict]] = []

        def keep(module, args, kwargs):
            seen.append((args, dict(kwargs)))
            raise Stop

        handle = self.block[name].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            list(self._run())
        finally:
            handle.remove()
        return seen

    def rescale(self, stage: Stage, s_K: Tensor) -> None:
        """``Block.rescale``, and the statistics follow."""
        s_K = self.block.rescale(stage, s_K)
        for stat in self.stats.get(stage, {}).values():
            stat.rescale(s_K)

    def _run(self) -> Iterator[Inputs]:
        for item in self.inputs:
            try:
                y = self.block.module(item.x_BTD.to(self.device), **item.kwargs)
            except Stop:
                continue
            yield replace(item, x_BTD=(y[0] if isinstance(y, tuple) else y).to(item.x_BTD.device))


def _watch(stats, last: bool):
    def hook(module, args):
        x_TK = args[0].flatten(0, -2)
        for stat in stats:
            stat.update(x_TK)
        if last:
            raise Stop

    return hook
