"""The rows of a latency record by what they measure, and the numbers that come from two of them.

A gain is the quotient of two times of one record, a bandwidth is counted bytes over measured time, and a share is
relative to what the same GPU copied in the same run. A number that was not measured, or failed, is NaN.

Dimension key: M tokens, N output channels, K input channels.
"""

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qbench.latency.record import BF16, Kernel, KernelRow, LatencyRecord, ModelRow
from qbench.shape import QWEN3

OWN = ("wna16", "wna8", "binary", "dequantize_cublas")
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")  # the products that a decoder runs
LARGE = ("qwen3-8b", "qwen3-14b", "qwen3-32b")  # means are over these models
W4 = Kernel("wna16", 4, 128)


@dataclass(frozen=True)
class Speeds:
    """One record; ``name`` is that of its file. A product is named by model, layer, tokens and kernel."""

    name: str
    record: LatencyRecord

    @property
    def gpu(self) -> str:
        return self.record.provenance["gpu"]

    @cached_property
    def kernels(self) -> list[Kernel]:
        """bfloat16, the peers, our own; each from many bits to few."""
        found = {row.kernel for row in self.record.kernels}
        return sorted(found, key=lambda k: (_rank(k), -k.bits, k.name, k.group or 0))

    @cached_property
    def products(self) -> dict[tuple, KernelRow]:
        """The rows by product: models by size, then layers, tokens and kernels in order."""

        def order(row: KernelRow) -> tuple:
            layer = FUSED.index(row.layer) if row.layer in FUSED else len(FUSED)
            return (size_order(row.model), layer, row.layer, row.M, self.kernels.index(row.kernel))

        return {row.key: row for row in sorted(self.record.kernels, key=order)}

    @cached_property
    def models(self) -> list[ModelRow]:
        """The rows of decoders: models by size, then bfloat16 and our kernels from many bits to few."""

        def order(r: ModelRow) -> tuple:
            return (size_order(r.model), r.what, _rank(r.kernel), -r.kernel.bits, str(r.kernel), r.batch, r.context)

        return sorted(self.record.models, key=order)

    @cached_property
    def layers(self) -> dict[str, list[str]]:
        """The measured layers of each model; models by size."""
        models = dict.fromkeys(model for model, *_ in self.products)
        return {m: list(dict.fromkeys(layer for x, layer, *_ in self.products if x == m)) for m in models}

    @cached_property
    def tokens(self) -> list[int]:
        return sorted({M for _, _, M, _ in self.products})

    def row(self, model: str, layer: str, M: int, k: Kernel) -> KernelRow | None:
        return self.products.get((model, layer, M, k))

    def us(self, *product) -> float:
        row = self.row(*product)
        return row.us if row and row.us else math.nan

    def gbps(self, *product) -> float:
        """Counted bytes over time."""
        row = self.row(*product)
        return row.bytes / row.us / 1e3 if row and row.us else math.nan

    def share(self, *product) -> float:
        """Of the measured copy bandwidth."""
        return self.gbps(*product) / self.ceiling("copy_gbps")

    def gain(self, model: str, layer: str, M: int, k: Kernel) -> float:
        """bfloat16's time over this kernel's."""
        return self.us(model, layer, M, BF16) / self.us(model, layer, M, k)

    def best_peer(self, model: str, layer: str, M: int, bits: int) -> tuple[float, Kernel | None]:
        """Time and name of the fastest peer with at least so many bits per weight; bfloat16 does not count."""
        peers = [k for k in self.kernels if k != BF16 and k.name not in OWN and k.bits >= bits]
        times = [(self.us(model, layer, M, k), k) for k in peers]
        return min(((t, k) for t, k in times if not math.isnan(t)), default=(math.nan, None), key=lambda x: x[0])

    def over_peer(self, model: str, layer: str, M: int, k: Kernel) -> float:
        """The best peer's time over this kernel's; NaN for kernels that are not ours."""
        if k.name not in OWN:
            return math.nan
        return self.best_peer(model, layer, M, k.bits)[0] / self.us(model, layer, M, k)

    def ceiling(self, name: str) -> float:
        found = self.record.ceilings.get(name)
        return found.value if found else math.nan

    def decoding(self, model: str, k: Kernel) -> ModelRow | None:
        """The row of decoding with batch 1; the one with the shortest context."""
        found = [r for r in self.models if (r.model, r.what, r.batch, r.kernel) == (model, "decode", 1, k)]
        return min((r for r in found if r.ms is not None), key=lambda r: r.context, default=None)


def _rank(k: Kernel) -> int:
    return 0 if k == BF16 else 2 + OWN.index(k.name) if k.name in OWN else 1


def size_order(model: str) -> tuple:
    """Sorts Qwen3 by size; other models come last, by name."""
    sizes = list(QWEN3)
    known = model.removeprefix("qwen3-")
    return (sizes.index(known) if known in QWEN3 and model.startswith("qwen3-") else len(sizes), model)


_NAMES = {
    **{"cublas_bf16": "bf16", "torch_int_mm": "torch int8", "torch_scaled_mm_fp8": "torch fp8"},
    **{"torch_int4": "torch W4", "gemlite": "GemLite W{}", "binary": "BiLLM", "dequantize_cublas": "W{} to bf16"},
    **{"wna16": "W{}A16", "wna8": "W{}A8"},
}
_USUAL_GROUP = {"cublas_bf16": None, "wna8": -1, "torch_int_mm": -1, "torch_scaled_mm_fp8": -1}  # others: 128


def label(k: Kernel) -> str:
    """W4A16, W8A8, BiLLM, bf16 ...; with the group where it is not the kernel's usual one."""
    text = _NAMES.get(k.name, k.name.replace("_", " ") + " {}").format(k.bits)
    if k.group == _USUAL_GROUP.get(k.name, 128):
        return text
    return f"{text} row" if k.group in (None, -1) else f"{text} g{k.group}"


def geomean(values: list[float]) -> float:
    """Of those that were measured; NaN where none was."""
    found = [v for v in values if not math.isnan(v)]
    return math.exp(sum(map(math.log, found)) / len(found)) if found else math.nan


def load(results_dir: str | Path) -> list[Speeds]:
    """All records of ``results_dir``/latency, by name; a damaged file is left out with a warning."""
    found = []
    for path in sorted((Path(results_dir) / "latency").glob("*.json")):
        try:
            found.append(Speeds(path.stem, LatencyRecord.read(path)))
        except ValueError as e:
            warnings.warn(f"left out: {e}", stacklevel=2)
    return found
