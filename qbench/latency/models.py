"""Times whole decoders on random weights of Qwen3's shapes: one decoding step, one prompt.

A decoding step is one CUDA graph: embedding, all layers, head, the choice of the next token. Every sequence has
``context`` tokens in the cache, the new one among them. The graph moves the positions on by 0, so each replay does the
same work at the same place. The weights are larger than the L2 cache, so they come from memory each time. A prompt is
a graph too.

``floor_ms`` is the time that the bytes would take at the measured copy bandwidth: weights and cache of a step, weights
and written cache of a prompt (which is limited by arithmetic, not by memory).

Estimated on an H200: 2 minutes, once the products' kernels are compiled, and at most 65 GB.

Dimension key: N output channels, K input channels.
"""

import gc
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import groupby

import torch
from torch import nn

from qbench.decoder.layer import dense
from qbench.decoder.model import Decoder
from qbench.latency.bench import Bench, first_line
from qbench.latency.clock import Clock, measure
from qbench.latency.own_kernels import RANDOM
from qbench.latency.products import normal
from qbench.latency.record import BF16, Kernel, ModelRow

MODELS = ("qwen3-8b", "qwen3-32b", "qwen3-0.6b")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 1024  # tokens of each sequence in a decoding step
PROMPT = 2048  # tokens of the one prompt
BUDGET_US = 200_000  # device time of a row
RUNS = (5, 50)  # at least, at most


def random_dense(N: int, K: int, device: str) -> nn.Linear:
    """Normal, with standard deviation K^-1/2."""
    return dense(normal((N, K), device, 0, K**-0.5))


# the kinds of weights: ``linear(N, K, device=...)`` makes a layer with a random one
CHOICES: dict[Kernel, Callable[..., nn.Module]] = {BF16: random_dense}
CHOICES |= {kernel: make for kernel, make in RANDOM.items() if kernel.bits not in (5, 6, 7)}


def steps() -> list[ModelRow]:
    """What is timed: each model with each kind of weight, without times."""
    each = [*(("decode", batch, CONTEXT) for batch in BATCHES), ("prefill", 1, PROMPT)]
    return [ModelRow(model, what, kernel, *size) for model in MODELS for kernel in CHOICES for what, *size in each]


def time_decoders(bench: Bench, rows: Iterable[ModelRow], bandwidth: float, keep: Callable[[ModelRow], None]) -> None:
    """Times ``rows`` and hands each to ``keep``; ``bandwidth`` in bytes per second.

    A row that failed, for example for want of memory, has no time and says so. Raises: DeviceLostError, after the row
    that caused it.
    """
    for (model, kernel), same in groupby(rows, key=lambda row: (row.model, row.kernel)):
        decoder = None
        for row in same:
            try:
                if decoder is None:
                    linear = partial(CHOICES[kernel], device=bench.device)
                    shape, dtype = bench.models[model], torch.bfloat16
                    decoder = Decoder.random(shape, linear, row.batch, row.context, dtype, bench.device)
                row = timed(row, decoder, bench.clock, bandwidth)
            except Exception as e:
                row = replace(row, notes=[f"failed: {type(e).__name__}: {first_line(e)}"])
            keep(row)
            if row.ms is None:
                bench.check(f"{model} with {kernel.bits}-bit {kernel.name}, batch {row.batch},")
            bench.free()
        decoder = None
        gc.collect()
        bench.free()


def timed(row: ModelRow, decoder: Decoder, clock: Clock, bandwidth: float) -> ModelRow:
    """``row`` with the times of what it names; ``bandwidth`` in bytes per second.

    decode: one step in which each sequence gets its ``context``-th token. prefill: prompts of random tokens are read
    into an empty cache and the first token after them is chosen.
    """
    decoder.allot(row.batch, row.context)
    device = decoder.embed_VD.device
    draw = torch.Generator(device).manual_seed(0)
    if row.what == "decode":
        for cache in (decoder.k_cache_LBTJd, decoder.v_cache_LBTJd):
            cache.normal_(generator=draw)
        decoder.position_B.fill_(row.context - 1)
        step, tokens = partial(decoder.step, advance=0), row.batch
    else:
        ids_BS = torch.randint(0, decoder.shape.vocab, (row.batch, row.context), device=device, generator=draw)
        step, tokens = partial(decoder.prefill, ids_BS), row.batch * row.context
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    timing = measure([step], clock, BUDGET_US, replay_us=0, runs=RUNS)
    weight_bytes, cache_bytes = decoder.weight_bytes, decoder.shape.cache_bytes * row.batch * row.context
    return replace(
        row,
        ms=timing.us / 1e3,
        ms_p20=timing.p20 / 1e3,
        ms_p80=timing.p80 / 1e3,
        runs=timing.runs,
        tokens_per_s=1e6 * tokens / timing.us,
        weight_bytes=weight_bytes,
        cache_bytes=cache_bytes,
        peak_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        floor_ms=1e3 * (weight_bytes + cache_bytes) / bandwidth,
        config={"attention_splits": decoder.splits},
        notes=list(timing.notes),
    )
