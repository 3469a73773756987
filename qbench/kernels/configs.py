"""Launch parameters (tiles) of the kernels: measured per GPU and stored beside this file, or else estimated.

``configs/<gpu>.json`` holds what ``experiments/latency.py --tune`` measured on that GPU:

    {"gpu": ..., "triton": "3.6.0", "kernels": {"wna16": {"4": {"12288x4096": {"1": {...}, "16": {...}}}}}}

by kernel, bits, shape N x K, and number of tokens, rounded up to one of ``TOKENS``. A shape that is not in the file, or
a GPU without a file, gets ``estimate``. A file from another version of Triton is used with a warning: tiles change the
speed of a kernel and never its result, and measured ones are a better guess than estimated ones.
"""

import json
import warnings
from functools import cache
from pathlib import Path

import torch
import triton

from qbench.files import slug, write_json
from qbench.kernels import pack
from qbench.kernels.launch import interpreted

FOLDER = Path(__file__).parent / "configs"
TOKENS = (1, 16, 32, 64, 128, 256, 512, 2048)  # a measured configuration is used for up to so many tokens
KERNELS = ("wna16", "wna8", "binary")
DEQUANTIZE = {"path": "dequantize"}  # a temporary 16-bit weight, and the vendor's product
DENSE_FROM = {"wna16": 129, "binary": 65}  # tokens, as ``estimate`` explains


def choose(kernel: str, bits: int, N: int, K: int, M: int, device: torch.device | str) -> dict:
    """The configuration for ``M`` tokens: ``path`` is "fused", with block_n, block_m, split, warps, stages, or
    "dequantize"."""
    name, processors = _gpu(device)
    return _choose(kernel, bits, N, K, next((t for t in TOKENS if t >= M), TOKENS[-1]), name, processors)


@cache
def _choose(kernel, bits, N, K, tokens, name, processors) -> dict:
    by_tokens = measured(name).get(kernel, {}).get(str(bits), {}).get(f"{N}x{K}", {})
    return by_tokens.get(str(tokens)) or estimate(kernel, N, K, tokens, processors)


@cache
def _gpu(device: torch.device | str) -> tuple[str, int]:
    if interpreted():
        return "interpreter", 1
    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.multi_processor_count


@cache
def measured(gpu: str) -> dict:
    """The kernels of the GPU's file, {} where it has none or a damaged one. Warns of damage and of another Triton."""
    path = FOLDER / f"{slug(gpu)}.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        version, kernels = found["triton"], found["kernels"]
    except (ValueError, KeyError, TypeError) as e:
        warnings.warn(f"ignored: {path} is damaged ({e}); estimated tiles are used", stacklevel=2)
        return {}
    if version != triton.__version__:
        warnings.warn(
            f"{path} was measured with Triton {version}, this is {triton.__version__}; "
            "python experiments/latency.py --tune measures the tiles again",
            stacklevel=2,
        )
    return kernels


def save(gpu: str, kernels: dict) -> Path:
    """Writes the GPU's file from {kernel: {bits: {"NxK": {tokens: configuration}}}}."""
    path = FOLDER / f"{slug(gpu)}.json"
    write_json(path, {"gpu": gpu, "triton": triton.__version__, "kernels": kernels})
    measured.cache_clear()
    _choose.cache_clear()
    return path


def estimate(kernel: str, N: int, K: int, M: int, processors: int) -> dict:
    """Tiles for a GPU without measured ones: so many programs share a row that there are two for each processor.

    A program takes all tokens, up to 128, since each program unpacks the weight once. Above that the weight is
    dequantized first: at 4 bits that moves 2.5 bytes per weight, about 0.6 ps on an H200, as long as a second fused
    program takes to unpack it again. In the interpreter (one processor) every program costs the same whatever its
    size, so there are few.
    """
    if DENSE_FROM.get(kernel, 1 << 30) <= M:
        return DEQUANTIZE
    if processors == 1:
        return fused(512, block_m(M), 1, 4, 2)
    block_n, split = 64 if kernel == "binary" else 128, 1
    if block_m(M) >= M:
        split = max(1, min(round(2 * processors / -(-N // block_n)), pack.chunks(K) // 2, 16))
    return fused(block_n, block_m(M), split, 8 if block_n == 128 and M > 16 else 4, 3 if M > 32 else 4)


def block_m(M: int) -> int:
    """Tokens of a program."""
    return max(16, min(128, triton.next_power_of_2(M)))


def fused(block_n: int, block_m: int, split: int, warps: int, stages: int) -> dict:
    """A configuration of the fused kernel."""
    return dict(path="fused", block_n=block_n, block_m=block_m, split=split, warps=warps, stages=stages)
