"""Runs blocks on calibration inputs and gathers statistics of what their linears read.

The inputs of block 0 come from the model's own forward pass, stopped there by a hook, with every keyword argument that
the model passes: nothing about attention is rebuilt by hand. Each block's outputs are the next block's inputs.

A block runs in the steps of its ``Anatomy``. In ``observe`` each batch goes through all of them at once. In ``advance``
all batches stop at the next stage, so that its linears can be quantized before they are used.

Dimension key: B sequences, T tokens, D model width, K input channels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.types import Device

from qbench.models.block import Block, Stage, State
from qbench.shape import sequences_per_pass
from qbench.stats import Statistic


class Stop(Exception):
    """Raised by a hook to end a forward pass."""


@dataclass(frozen=True)
class Inputs:
    """A batch of hidden states and the keyword arguments of a block, which may be on another device."""

    x_BTD: Tensor
    kwargs: dict


def call_of(module: nn.Module, forward: Callable[[], object]) -> tuple[tuple, dict]:
    """The arguments of the first call of ``module`` during ``forward()``, which ends there."""
    calls: list[tuple[tuple, dict]] = []

    def catch(module, args, kwargs):
        calls.append((args, dict(kwargs)))
        raise Stop

    handle = module.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        forward()
    except Stop:
        return calls[0]
    finally:
        handle.remove()
    raise RuntimeError(f"{type(module).__name__} was never called")


@torch.no_grad()
def first_block_inputs(
    model: nn.Module, block0: nn.Module, ids_BT: Tensor, device: Device, rest: Device
) -> list[Inputs]:
    """The inputs of ``block0`` when ``model`` reads ``ids_BT``, ``sequences_per_pass`` at a time.

    Only the modules before the first block need weights. Hidden states are kept on the device ``rest``.
    """
    inputs = []
    for ids in ids_BT.split(sequences_per_pass(ids_BT.shape[1])):
        args, kwargs = call_of(block0, partial(model, input_ids=ids.to(device), use_cache=False))
        (x,) = args or (kwargs.pop("hidden_states"),)
        inputs.append(Inputs(x.to(rest), kwargs))
    return inputs


class BlockCalibration:
    """Runs one block on its calibration inputs.

    ``stats[stage][kind]`` is a statistic of the inputs of ``stage``; the caller pops a stage that it has finished.
    """

    def __init__(self, block: Block, inputs: list[Inputs], device: Device):
        self.block, self.inputs, self.device = block, inputs, device
        self.stats: dict[Stage, dict[type[Statistic], Statistic]] = {}
        self._states: list[State] | None = None  # of each batch between two calls of ``advance``
        self._at = 0

    @torch.no_grad()
    def observe(self, kinds: Iterable[type[Statistic]]) -> list[Inputs]:
        """One forward pass: gathers the statistics of every stage's inputs and returns the block's outputs.

        Raises: ArithmeticError, naming the linear, when an input is not finite.
        """
        for stage in self.block.stages:
            self._prepare(stage, kinds)
        outputs = []
        for item in self.inputs:
            state: State = (item.x_BTD.to(self.device),)
            for at in range(len(self.block.steps)):
                state = self._step(at, state, item)
            outputs.append(replace(item, x_BTD=state[0].to(item.x_BTD.device)))
        for stage in self.block.stages:
            self._check(stage)
        return outputs

    @torch.no_grad()
    def advance(self, kinds: Iterable[type[Statistic]]) -> None:
        """Runs all batches up to the next stage and gathers its statistics; after the last stage, to the block's end.

        Everything before that stage runs with the block's current weights.
        """
        states = self._states or [(item.x_BTD,) for item in self.inputs]
        stages = self.block.stages[self._at : self._at + 1]  # one, or none
        for stage in stages:
            self._prepare(stage, kinds)
        for i, item in enumerate(self.inputs):
            state = self._step(self._at, tuple(t.to(self.device) for t in states[i]), item)
            states[i] = tuple(t.to(item.x_BTD.device) for t in state)
        self._states, self._at = states, self._at + 1
        for stage in stages:
            self._check(stage)

    @torch.no_grad()
    def outputs(self) -> list[Inputs]:
        """The inputs of the next block under the current weights; after ``advance`` only the remaining steps run."""
        if self._states is None:
            return [replace(item, x_BTD=self._forward(item).to(item.x_BTD.device)) for item in self.inputs]
        while self._at < len(self.block.steps):
            self.advance(())
        return [replace(item, x_BTD=x) for item, (x,) in zip(self.inputs, self._states)]

    @torch.no_grad()
    def calls(self, name: str) -> list[tuple[tuple, dict]]:
        """The arguments with which the block calls its submodule ``name``, one entry per batch."""
        return [call_of(self.block[name], partial(self._forward, item)) for item in self.inputs]

    def rescale(self, stage: Stage, s_K: Tensor) -> None:
        """``Block.rescale``, which also rescales the statistics."""
        s_K = self.block.rescale(stage, s_K)
        for stat in self.stats.get(stage, {}).values():
            stat.rescale(s_K)

    def _forward(self, item: Inputs) -> Tensor:
        y = self.block.module(item.x_BTD.to(self.device), **item.kwargs)
        return y[0] if isinstance(y, tuple) else y

    def _prepare(self, stage: Stage, kinds: Iterable[type[Statistic]]) -> None:
        K = self.block[stage.linears[0]].weight.shape[1]
        self.stats[stage] = {kind: kind(K, self.device) for kind in kinds}

    def _step(self, at: int, state: State, item: Inputs) -> State:
        """The state after a step; the statistics of the stage that reads it are updated."""
        state = self.block.steps[at](self.block.module, state, item.kwargs)
        for stage in self.block.stages[at : at + 1]:
            for stat in self.stats[stage].values():
                stat.update(state[0].flatten(0, -2))
        return state

    def _check(self, stage: Stage) -> None:
        if not all(stat.is_finite() for stat in self.stats[stage].values()):
            raise ArithmeticError(
                f"NaN or inf in the input of model.layers.{self.block.index}.{stage.linears[0]}: "
                "the checkpoint or an earlier block is broken, or its dtype overflows; try model.dtype=float32"
            )
