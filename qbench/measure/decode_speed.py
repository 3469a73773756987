"""Times a decoding step with the quantized weights whose quality is measured, packed, on the GPU at hand.

The packed model is first compared with the dequantized one (``measure.agreement``); if they disagree, the measurement
fails. Then one step of the lean decoder (``qbench.decoder.model``) with these weights is timed as a CUDA graph, and so
is a step with bfloat16 weights. The name of the GPU is part of the record's identity.

``python experiments/latency.py`` times random weights at every shape, batch and kernel, and needs no checkpoint.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from qbench.latency.clock import Clock
from qbench.measure.agreement import compare, kernels_of
from qbench.measure.base import Context, Measure
from qbench.models.checkpoint import DTYPES
from qbench.record import Metric
from qbench.settings import Positive

TOKENS = 64  # that the two models are compared on before the timing


@dataclass(frozen=True)
class DecodeSpeed(Measure):
    """``latency/decode_ms``: the time of a step for ``batch`` sequences with ``context`` tokens each in the cache.

    Also ``tokens_per_s``, ``bf16_ms`` (a step with bfloat16 weights), ``speedup`` over it, ``weight_bytes`` and
    ``cache_bytes`` that a step reads, and ``floor_share``: the time of these bytes at the measured copy bandwidth,
    divided by the time of the step. ``dtype``: of activations where the model itself is float32.
    """

    name = "latency"
    runs_packed = True

    batch: Positive = 1
    context: Positive = 1024
    dtype: Literal["float16", "bfloat16"] = "bfloat16"

    def check_model(self, config) -> None:
        from qbench.decoder.model import check_model  # needs Triton, which other evaluations do without

        check_model(config)

    def data(self, ctx: Context) -> dict:
        if ctx.packed is None:
            raise ValueError("eval=latency times a quantized model against bfloat16; choose a method, not none")
        clock_of(ctx.device)
        return {"gpu": kernels_of(ctx.device)}

    @torch.inference_mode()
    def run(self, model: nn.Module, ctx: Context) -> dict[str, Metric]:
        from qbench.decoder.model import Decoder
        from qbench.latency.ceilings import copy_bandwidth
        from qbench.latency.models import random_dense, timed
        from qbench.latency.record import BF16, ModelRow

        clock = clock_of(ctx.device)
        dtype = DTYPES[self.dtype] if model.dtype == torch.float32 else model.dtype
        model = model if model.dtype == dtype else copy.deepcopy(model).to(dtype)  # others measure it after us
        packed = ctx.packed().to(dtype)
        draw = torch.Generator().manual_seed(0)
        compare(model, packed, [torch.randint(0, model.config.vocab_size, (1, TOKENS), generator=draw).to(ctx.device)])
        del model
        bandwidth = copy_bandwidth(ctx.device, clock)
        step = ModelRow(type(packed).__name__, "decode", BF16, self.batch, self.context)
        decoder = Decoder.of(packed, self.batch, self.context)
        ours = timed(step, decoder, clock, bandwidth)
        linear = partial(random_dense, device=ctx.device)
        dense = Decoder.random(decoder.shape, linear, self.batch, self.context, torch.bfloat16, ctx.device)
        theirs = timed(step, dense, clock, bandwidth)
        values = {
            "decode_ms": (ours.ms, "ms"),
            "tokens_per_s": (ours.tokens_per_s, "tokens/s"),
            "bf16_ms": (theirs.ms, "ms"),
            "speedup": (theirs.ms / ours.ms, "ratio"),
            "weight_bytes": (ours.weight_bytes, "bytes"),
            "cache_bytes": (ours.cache_bytes, "bytes"),
            "floor_share": (ours.floor_ms / ours.ms, "fraction"),
        }
        return {f"latency/{name}": Metric(float(value), unit, ours.runs) for name, (value, unit) in values.items()}


def clock_of(device: str) -> Clock:
    """The clock of a GPU. Raises: ValueError for another device, whose times say nothing about the kernels."""
    if not device.startswith("cuda"):
        raise ValueError(
            f"eval=latency times kernels on a GPU, and machine.device is {device}; eval=agreement checks "
            "on any device whether they are right"
        )
    return Clock()
