"""Times of whole decoders on random weights of Qwen3's shapes: one decoding step, one prompt.

A decoding step is one CUDA graph: embedding, all layers, head, the choice of the next token. Every sequence has
``context`` tokens in the cache, the new one among them. The graph also moves the positions on, but by 0, so each replay
does the same work at the same place. The weights are larger than the L2 cache and come from memory each time. A prompt
is a graph too.

``floor_ms`` is what the bytes that must move would take at the measured copy bandwidth: weights and cache of a step,
weights and written cache of a prompt (for which arithmetic, not memory, is the limit).

How long, for 0.6B, 8B and 32B with the nine weights below: a model is made in about 1 s (a layer is drawn, the others
are copies of it, at most 65 GB); a step's row takes about 0.4 s (a warm-up and a capture of up to 600 launches from
Python, 0.1 s, and 0.25 s of replays), a prompt's up to 3 s. 3 x 9 x (7 + 1) rows are about 2 minutes on an H200 where
the products' kernels are compiled, as they are after the single products' rows; this level's own are 16 of about 1 s.

Dimension key: N output channels, K input channels.
"""

import gc
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from qbench.decoder.layer import dense
from qbench.decoder.model import Decoder
from qbench.kernels.packed import PackedBinary, PackedInteger, PackedUniform
from qbench.latency.clock import Clock, Timing, percentile
from qbench.latency.kernels import check_device, first_line, give_back
from qbench.latency.record import LEFT_OUT, MODEL
from qbench.shape import QWEN3, Shape

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 1024  # tokens of each sequence in a decoding step
PROMPT = 2048  # tokens of the one prompt
BUDGET_US = 200_000  # device time of a row
LEAST_RUNS, MOST_RUNS = 5, 50
SLACK = 3.0  # seconds that a model or a row may take beyond the deadline's check
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Weights:
    """A kind of weight: ``linear(N, K, device)`` makes a product with a random one."""

    name: str
    bits: int
    group: int | None
    linear: Callable[[int, int, str], nn.Module]


def random_dense(N: int, K: int, device: str, seed: int = 0) -> nn.Linear:
    """Normal, with standard deviation K^-1/2."""
    draw = torch.Generator(device).manual_seed(seed)
    return dense(torch.empty(N, K, dtype=DTYPE, device=device).normal_(0, K**-0.5, generator=draw))


def weight_only(bits: int, group: int = 128) -> Weights:
    """b-bit weights, 16-bit activations."""
    return Weights("wna16", bits, group, lambda N, K, device: PackedUniform.random(N, K, bits, group, device=device))


def integer(bits: int) -> Weights:
    """b-bit weights with a scale a row, 8-bit activations."""
    return Weights("wna8", bits, -1, lambda N, K, device: PackedInteger.random(N, K, bits, device=device))


def binary() -> Weights:
    """BiLLM's planes and levels."""
    return Weights("binary", 1, 128, lambda N, K, device: PackedBinary.random(N, K, device=device))


BFLOAT16 = Weights("bfloat16", 16, None, random_dense)
CHOICES = (BFLOAT16, *map(weight_only, (4, 3, 2, 8, 1)), *map(integer, (8, 4)), binary())


def rows(
    name: str,
    clock: Clock,
    ceilings: dict,
    deadline: float,
    *,
    choices: Collection[Weights] = CHOICES,
    batches: Collection[int] = BATCHES,
    context: int = CONTEXT,
    prompt: int = PROMPT,
    device: str = "cuda",
    shape: Shape | None = None,
    done: Collection[tuple] = (),
) -> Iterator[dict]:
    """The rows of ``qwen3-<size>`` as ``qbench.latency.record.MODEL`` names them, each as soon as it is measured.

    ``deadline``: seconds of the clock; what there was no time for is a row without a time that says so, as is what does
    not fit the memory. ``done``: ``MODEL_KEY``s to leave out. ``shape``: instead of the name's. Raises: ValueError for
    a name that is no dense Qwen3.
    """
    if shape is None and name.removeprefix("qwen3-") not in QWEN3:
        raise ValueError(f"no dense Qwen3 is called {name!r}; known: {', '.join(f'qwen3-{s}' for s in QWEN3)}")
    shape = shape or QWEN3[name.removeprefix("qwen3-")]
    bandwidth = ceilings["copy_gbps"]["value"] * 1e9
    measures = {"decode": measure_decode, "prefill": measure_prefill}
    for weights in choices:
        cases = [("decode", batch, context) for batch in batches] + [("prefill", 1, prompt)]
        decoder = failure = None
        for what, batch, length in cases:
            if (name, what, weights.name, weights.bits, weights.group, batch, length) in done:
                continue
            row = _row(name, weights, what, batch, length)
            if clock.now() + SLACK > deadline:
                yield row | {"notes": [LEFT_OUT]}
                continue
            found, note = None, failure
            if decoder is None and failure is None:
                linear = partial(weights.linear, device=device)
                decoder, failure = _attempt(partial(Decoder.random, shape, linear, batch, length, DTYPE, device))
                note = failure
            if decoder is not None:
                found, note = _attempt(partial(measures[what], decoder, clock, batch, length, bandwidth))
            yield row | (found or {"notes": [note]})
            if found is None:
                check_device(clock, f"{name} with {weights.bits}-bit {weights.name}, batch {batch}")
            give_back(device)
        decoder = None
        gc.collect()
        give_back(device)


def measure_decode(decoder: Decoder, clock: Clock, batch: int, context: int, bandwidth: float) -> dict:
    """A step in which each of ``batch`` sequences gets its ``context``-th token; ``bandwidth`` in bytes a second.

    Returns the measured fields of a row.
    """
    decoder.allot(batch, context)
    draw = torch.Generator(decoder.embed_VD.device).manual_seed(0)
    for cache in (decoder.k_cache_LBTJd, decoder.v_cache_LBTJd):
        cache.normal_(generator=draw)
    decoder.position_B.fill_(context - 1)
    return _measured(decoder, clock, partial(decoder.step, advance=0), batch, context, bandwidth)


def measure_prefill(decoder: Decoder, clock: Clock, batch: int, prompt: int, bandwidth: float) -> dict:
    """``batch`` prompts of random tokens read into an empty cache, and the first token after them chosen."""
    decoder.allot(batch, prompt)
    device = decoder.embed_VD.device
    draw = torch.Generator(device).manual_seed(0)
    ids_BS = torch.randint(0, decoder.shape.vocab, (batch, prompt), device=device, generator=draw)
    return _measured(decoder, clock, partial(decoder.prefill, ids_BS), batch * prompt, prompt, bandwidth)


def _measured(decoder, clock, step, tokens, length, bandwidth) -> dict:
    on_gpu = decoder.embed_VD.is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    replay = clock.graph(step)
    once = percentile(clock.time(replay, 3), 0.5)
    runs = max(LEAST_RUNS, min(MOST_RUNS, int(BUDGET_US / once)))
    timing = Timing.of(clock.time(replay, runs))
    weight_bytes, cache_bytes = decoder.weight_bytes, decoder.cache_bytes(length)
    return {
        "ms": timing.us / 1e3,
        "ms_p20": timing.p20 / 1e3,
        "ms_p80": timing.p80 / 1e3,
        "runs": timing.runs,
        "tokens_per_s": 1e6 * tokens / timing.us,
        "weight_bytes": weight_bytes,
        "cache_bytes": cache_bytes,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "floor_ms": 1e3 * (weight_bytes + cache_bytes) / bandwidth,
        "config": {"attention_splits": decoder.splits},
        "notes": list(timing.notes),
    }


def _row(name: str, weights: Weights, what: str, batch: int, length: int) -> dict:
    """A row with nothing measured."""
    known = dict(model=name, what=what, weights=weights.name, bits=weights.bits, group=weights.group)
    return dict.fromkeys(MODEL) | known | dict(batch=batch, context=length, runs=0, notes=[])


def _attempt(work: Callable):
    """(result, None), or (None, why there is none)."""
    try:
        return work(), None
    except Exception as e:
        return None, f"failed: {type(e).__name__}: {first_line(e)}"
