"""Quantizes a model one block at a time: only that block and the hidden states are in memory.

Each finished block is written at once, together with its outputs, so that an interrupted quantization resumes at the
block where it stopped, with the same numbers to the last bit. Statistics of methods that calibrate on "float" depend on
the model and the calibration data alone, so ``CachedStatistics`` keeps their ``Gram`` and ``AbsMax`` for all of them.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.types import Device

from qbench.calibration import BlockCalibration, Inputs, first_block_inputs
from qbench.linear import QuantLinear
from qbench.methods.base import Method
from qbench.models.checkpoint import OpenCheckpoint, is_finite
from qbench.models.quantized import QuantizedFolder
from qbench.record import LayerReport
from qbench.statistics_cache import CachedStatistics
from qbench.stats import AbsMax, Gram
from qbench.weights import QuantWeight


@torch.no_grad()
def quantize(
    ckpt: OpenCheckpoint,
    method: Method,
    ids_BT: Tensor,
    folder: QuantizedFolder,
    *,
    device: Device = "cpu",
    rest: Device = "cpu",
    statistics: CachedStatistics | None = None,
    progress: Callable = iter,
) -> list[LayerReport]:
    """Runs ``method`` over every block that ``folder`` lacks, saves it there, and returns the reports of all blocks.

    ``ids_BT`` are the calibration tokens; hidden states are kept on the device ``rest``.
    Raises: ArithmeticError or ValueError naming the linear when a number is not finite.
    """
    kinds = list(dict.fromkeys(kind for kind in (Gram, method.statistic) if kind is not None))
    if method.calibrates_on != "float" or not {Gram, AbsMax}.issuperset(kinds):
        statistics = None  # files name statistics, and another class may have the name of one of these two
    hidden = _Hidden(ckpt, method, ids_BT, folder, device, rest)
    reports: list[LayerReport] = []
    for index in progress(range(ckpt.config.num_hidden_layers)):
        if folder.has(index):
            reports += folder.reports(index)
            continue
        block = ckpt.block(index, device)
        calib, after = _calibrate(block, hidden, method, kinds, statistics, device)
        weights, done = _quantize_block(method, block, calib, kinds)
        folder.save(block, weights, done)
        reports += done
        if calib.inputs:
            hidden.put(index + 1, calib.outputs() if after is None else after)
    folder.drop_hidden()
    return reports


def _calibrate(block, hidden, method, kinds, statistics, device) -> tuple[BlockCalibration, list[Inputs] | None]:
    """The block's calibration, without inputs where all statistics are cached; and the outputs of the unquantized
    block where they were computed."""
    calib = BlockCalibration(block, [], device)
    if statistics is not None and not method.reads_inputs and statistics.read(block.index, calib, kinds):
        return calib, None
    calib = BlockCalibration(block, hidden.before(block.index), device)
    if method.calibrates_on != "float":
        return calib, None
    after = calib.observe(kinds if statistics is None else [Gram, AbsMax])
    if statistics is not None:
        statistics.write(block.index, calib)
    return calib, after


def _quantize_block(method, block, calib, kinds):
    if method.calibrates_on == "float":
        method.transform(block, calib)
    elif method.calibrates_on == "block":
        calib.observe(kinds)
    weights: dict[str, QuantWeight] = {}
    reports = []
    for stage in block.stages:
        if method.calibrates_on == "stage":
            calib.advance(kinds)
        new, done = _quantize_stage(method, block, stage, calib.stats.pop(stage))
        weights |= new
        reports += done
    return weights, reports


def _quantize_stage(method, block, stage, stats):
    started = time.perf_counter()
    old = {name: block[name].weight for name in stage.linears}
    where = f"model.layers.{block.index}."
    try:
        weights = method.quantize_stage(old, stats.get(method.statistic))
    except (ArithmeticError, ValueError) as e:
        raise type(e)(f"{where}{', '.join(stage.linears)}: {e}") from e
    errors = {}
    for name, weight in weights.items():
        linear = QuantLinear(weight, block[name].bias, method.acts, old[name].dtype)
        if not is_finite(linear.weight):
            raise ValueError(f"{where}{name}: NaN or inf in the weight that the method {method.name} returned")
        errors[name] = stats[Gram].relative_error(linear.weight.float(), old[name].float())
        block.module.set_submodule(name, linear)
    seconds = (time.perf_counter() - started) / len(weights)
    notes = method.stage_notes(stage)
    return weights, [
        LayerReport(block.index, name, errors[name], w.nominal_bits, w.stored_bits, seconds, w.notes + notes)
        for name, w in weights.items()
    ]


class _Hidden:
    """The inputs of the next block, from the model's embedding or from where an earlier run stopped."""

    def __init__(self, ckpt, method, ids_BT, folder, device, rest):
        self.ckpt, self.method, self.ids_BT, self.folder = ckpt, method, ids_BT, folder
        self.device, self.rest = device, rest
        self.at, self.inputs = 0, None

    def before(self, index: int) -> list[Inputs]:
        """The inputs of block ``index``. The blocks after the last known inputs run as they are on disk."""
        if self.inputs is None:
            self._start(index)
        while self.at < index:
            if self.method.calibrates_on == "float":
                block = self.ckpt.block(self.at, self.device)
            else:
                block = self.folder.block(self.ckpt, self.at, self.method.acts, self.device)
            self.inputs = BlockCalibration(block, self.inputs, self.device).outputs()
            self.at += 1
        return self.inputs

    def put(self, index: int, inputs: list[Inputs]) -> None:
        self.at, self.inputs = index, inputs
        if index < self.ckpt.config.num_hidden_layers:
            self.folder.save_hidden(index, torch.cat([item.x_BTD.cpu() for item in inputs]))

    def _start(self, index: int):
        model = self.ckpt.embedding(self.device)
        layer0 = model.model.layers[0]
        self.inputs = first_block_inputs(model, layer0, self.ids_BT, self.device, self.rest)
        kept = self.folder.hidden()
        if kept is not None and kept[0] <= index:  # it is later where an earlier block was damaged
            self.at, x_BTD = kept
            parts = x_BTD.split(len(self.inputs[0].x_BTD))
            self.inputs = [Inputs(x.to(self.rest), item.kwargs) for x, item in zip(parts, self.inputs)]
