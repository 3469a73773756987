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
        return sorted({row.kernel for row in self.record.kernels}, key=_kernel_order)

    @cached_property
    def products(self) -> dict[tuple, KernelRow]:
        """The rows by product: models by size, then layers, tokens and kernels in order."""

        def order(row: KernelRow) -> tuple:
            layer = FUSED.index(row.layer) if row.layer in FUSED else len(FUSED)
            return (_size_order(row.model), layer, row.layer, row.M, _kernel_order(row.kernel))

        return {row.key: row for row in sorted(self.record.kernels, key=order)}

    @cached_property
    def models(self) -> list[ModelRow]:
        """The rows of decoders: models by size, then bfloat16 and our kernels from many bits to few."""

        def order(r: ModelRow) -> tuple:
            return (_size_order(r.model), r.what, _kernel_order(r.kernel), r.batch, r.context)

        return sorted(self.record.models, key=order)

    @cached_property
    def sizes(self) -> list[str]:
        """The models that have products, by size."""
        return list(dict.fromkeys(model for model, *_ in self.products))

    @cached_property
    def tokens(self) -> list[int]:
        return sorted({row.M for row in self.record.kernels})

    def us(self, *product) -> float:
        row = self.products.get(product)
        return row.us if row and row.us else math.nan

    def gbps(self, *product) -> float:
        """Counted bytes over time."""
        row = self.products.get(product)
        return row.bytes / row.us / 1e3 if row and row.us else math.nan

    def share(self, *product) -> float:
        """Of the measured copy bandwidth."""
        return self.gbps(*product) / self.ceiling("copy_gbps")

    def gain(self, model: str, layer: str, M: int, k: Kernel) -> float:
        """bfloat16's time over this kernel's."""
        return self.us(model, layer, M, BF16) / self.us(model, layer, M, k)

    def best_peer(self, model: str, layer: str, M: int, k: Kernel) -> Kernel | None:
        """The fastest kernel of another library with at least as many bits per weight as ours; bfloat16 does not
        count. None where none was measured, and for kernels that are not ours."""
        peers = [p for p in self.kernels if k.name in OWN and p != BF16 and p.name not in OWN and p.bits >= k.bits]
        times = {p: us for p in peers if not math.isnan(us := self.us(model, layer, M, p))}
        return min(times, key=times.__getitem__, default=None)

    def over_peer(self, model: str, layer: str, M: int, k: Kernel) -> float:
        """The best peer's time over this kernel's."""
        return self.us(model, layer, M, self.best_peer(model, layer, M, k)) / self.us(model, layer, M, k)

    def ceiling(self, name: str) -> float:
        found = self.record.ceilings.get(name)
        return found.value if found else math.nan


def _kernel_order(k: Kernel) -> tuple:
    rank = 0 if k == BF16 else 2 + OWN.index(k.name) if k.name in OWN else 1
    return (rank, -k.bits, k.name, k.group or 0)


def _size_order(model: str) -> tuple:
    """Sorts Qwen3 by size; other models come last, by name."""
    sizes = [f"qwen3-{size}" for size in QWEN3]
    return (sizes.index(model) if model in sizes else len(sizes), model)


_NAMES = {
    **{"cublas_bf16": "bf16", "torch_int_mm": "torch int8", "torch_scaled_mm_fp8": "torch fp8"},
    **{"torch_int4": "torch W4", "wna16": "W{}A16", "wna8": "W{}A8", "binary": "BiLLM"},
    **{"dequantize_cublas": "W{} to bf16"},
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
