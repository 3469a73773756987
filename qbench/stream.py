"""Quantizes a model one block at a time: only that block and the hidden states are in memory.

The loop knows ``Method`` and no method by name. Whatever the method, each linear's error is measured on the
Gram of the inputs it saw.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from qbench.calibration import BlockCalibration, first_block_inputs
from qbench.grid import QuantWeight
from qbench.linear import QuantLinear
from qbench.methods.base import Method
from qbench.models.block import Block
from qbench.models.checkpoint import OpenCheckpoint
from qbench.record import LayerReport
from qbench.stats import Gram


@torch.no_grad()
def quantize(
    ckpt: OpenCheckpoint,
    method: Method,
    ids_BT: Tensor,
    save: Callable[[Block, dict[str, QuantWeight]], None],
    *,
    device="cpu",
    rest="cpu",
    batch: int = 8,
    progress: Callable = iter,
) -> list[LayerReport]:
    """Runs ``method`` over every block and hands each finished one to ``save(block, weights)``.

    ``ids_BT`` are the calibration tokens, run ``batch`` sequences at a time; hidden states wait on the device ``rest``.
    Raises: ArithmeticError or ValueError naming the linear when a number is not finite.
    """
    kinds = list(dict.fromkeys(kind for kind in (Gram, method.statistic) if kind is not None))
    model = ckpt.embedding(device)
    hidden = first_block_inputs(model, model.model.layers[0], ids_BT, batch, device, rest)
    del model
    reports = []
    for block in progress(ckpt.blocks(device)):
        calib = BlockCalibration(block, hidden, device)
        after = None
        if method.sees == "float":
            after = calib.observe(kinds, block.stages, outputs=True)
            method.transform(block, calib)
        weights: dict[str, QuantWeight] = {}
        for stages in [(s,) for s in block.stages] if method.sees == "stage" else [block.stages]:
            if method.sees != "float":
                calib.observe(kinds, stages)
            for stage in stages:
                for name in stage.linears:
                    weights[name], report = _quantize_linear(method, block, stage, name, calib)
                    reports.append(report)
                calib.stats.pop(stage)
        save(block, weights)
        hidden = calib.outputs() if after is None else after
    return reports


def _quantize_linear(method, block, stage, name, calib):
    linear, started = block[name], time.perf_counter()
    full = f"model.layers.{block.index}.{name}"
    w_NK = linear.weight
    if not torch.isfinite(w_NK).all():
        raise ValueError(f"NaN or inf in the weight {full}: the checkpoint is broken")
    stats = calib.stats[stage]
    try:
        weight = method.quantize(w_NK, stats.get(method.statistic), name)
    except (ArithmeticError, ValueError) as e:
        raise type(e)(f"{full}: {e}") from e
    new = QuantLinear(weight, linear.bias, method.acts, w_NK.dtype)
    error = stats[Gram].relative_error(new.weight.float(), w_NK.float())
    notes = weight.notes + method.stage_notes(stage)
    block.install(name, new)
    seconds = time.perf_counter() - started
    return weight, LayerReport(block.index, name, error, weight.nominal_bits, weight.stored_bits, seconds, notes)
