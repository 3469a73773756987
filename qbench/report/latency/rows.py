"""Measured times of kernels and decoders: ``results/latency/<gpu>.json`` to tables and figures, one set a GPU.

Where there is no such record nothing is written. A gain is the quotient of two rows of one record, a bandwidth is
counted bytes over measured time, a share is of what the same GPU copied in the same run.

Dimension key: M tokens, N output channels, K input channels.
"""

import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

from qbench.shape import QWEN3

BASE = "cublas_bf16"
OURS = ("wna16", "wna8", "binary", "dequantize_cublas")
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")  # what a decoder runs; others are parts of these
LARGE = ("qwen3-8b", "qwen3-14b", "qwen3-32b")  # the shapes that means are over

Kind = tuple[str, int, int | None]  # kernel, weight bits, columns that share a scale
W4: Kind = ("wna16", 4, 128)
BF16: Kind = (BASE, 16, None)


@dataclass(frozen=True)
class Latency:
    """One record. ``name`` is its file's, ``kernels`` its rows by (model, layer, M, kind), ``models`` as they are."""

    name: str
    provenance: dict
    notes: tuple[str, ...]
    ceilings: dict
    kernels: dict[tuple, dict]
    models: tuple[dict, ...]

    @classmethod
    def read(cls, path: Path) -> "Latency":
        """ValueError where the file is damaged, or has two rows of the same product or decoder."""
        try:
            d = json.loads(path.read_text())
            rows = {(r["model"], r["layer"], r["M"], kind(r)): r for r in d["kernels"]}
            models = {model_key(r): r for r in d["models"]}
            if len(rows) < len(d["kernels"]) or len(models) < len(d["models"]):
                raise ValueError("it has two rows of one product or decoder")
            d["provenance"]["gpu"]
            decoders = tuple(models[k] for k in sorted(models, key=str))
            return cls(path.stem, d["provenance"], tuple(d["notes"]), d["ceilings"], rows, decoders)
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(f"{path} is not a whole latency record ({type(e).__name__}: {e}); measure again") from e

    @property
    def kinds(self) -> list[Kind]:
        """bfloat16, then peers, then ours; each by falling bits."""
        found = {k for *_, k in self.kernels}
        rank = {BASE: 0} | {name: 2 + i for i, name in enumerate(OURS)}
        return sorted(found, key=lambda k: (rank.get(k[0], 1), -k[1], k[0], k[2] or 0))

    @property
    def names(self) -> list[str]:
        """Models with measured products, by size."""
        return sorted({m for m, *_ in self.kernels}, key=size_order)

    @property
    def tokens(self) -> list[int]:
        return sorted({M for _, _, M, _ in self.kernels})

    def layers(self, model: str) -> list[str]:
        found = {layer for m, layer, *_ in self.kernels if m == model}
        return [x for x in FUSED if x in found] + sorted(found - set(FUSED))

    def row(self, model: str, layer: str, M: int, k: Kind) -> dict | None:
        return self.kernels.get((model, layer, M, k))

    def us(self, model: str, layer: str, M: int, k: Kind) -> float:
        """NaN where it was not measured or failed."""
        row = self.row(model, layer, M, k)
        return math.nan if row is None or row["us"] is None else row["us"]

    def gbps(self, model: str, layer: str, M: int, k: Kind) -> float:
        """Counted bytes of the product over its time."""
        row = self.row(model, layer, M, k)
        return math.nan if row is None or row["us"] is None else row["bytes"] / row["us"] / 1e3

    def share(self, *product) -> float:
        """Of the measured copy bandwidth; arguments as ``gbps``."""
        return self.gbps(*product) / self.ceiling("copy_gbps")

    def gain(self, model: str, layer: str, M: int, k: Kind) -> float:
        """bfloat16's time over this kernel's."""
        return self.us(model, layer, M, BF16) / self.us(model, layer, M, k)

    def peer(self, model: str, layer: str, M: int, bits: int) -> tuple[float, Kind | None]:
        """Time and name of the fastest kernel of others that reads at least so many bits a weight, without bfloat16."""
        rivals = [k for k in self.kinds if k[0] not in (BASE, *OURS) and k[1] >= bits]
        times = [(self.us(model, layer, M, k), k) for k in rivals]
        return min(((t, k) for t, k in times if not math.isnan(t)), default=(math.nan, None), key=lambda x: x[0])

    def over_peer(self, model: str, layer: str, M: int, k: Kind) -> float:
        """The fastest peer's time over that of this kernel of ours; NaN for others."""
        if k[0] not in OURS:
            return math.nan
        return self.peer(model, layer, M, k[1])[0] / self.us(model, layer, M, k)

    def ceiling(self, name: str) -> float:
        return self.ceilings.get(name, {}).get("value", math.nan)

    def decoder(self, model: str, weights: tuple, what: str = "decode", batch: int = 1) -> dict | None:
        """The row with the shortest context; ``weights`` as ``kind_of_model``."""
        found = [r for r in self.models if (r["model"], r["what"], r["batch"]) == (model, what, batch)]
        found = [r for r in found if kind_of_model(r) == weights and r["ms"] is not None]
        return min(found, key=lambda r: r["context"], default=None)


def kind(row: dict) -> Kind:
    return (row["kernel"], row["bits"], row["group"])


def kind_of_model(row: dict) -> Kind:
    return (row["weights"], row["bits"], row["group"])


def model_key(row: dict) -> tuple:
    return (*(row[f] for f in ("model", "what", "batch", "context")), kind_of_model(row))


def size_order(model: str) -> tuple:
    sizes = list(QWEN3)
    known = model.removeprefix("qwen3-")
    return (sizes.index(known) if known in QWEN3 and model.startswith("qwen3-") else len(sizes), model)


_NAMES = {BASE: "bf16", "bfloat16": "bf16", "torch_int_mm": "torch int8", "torch_scaled_mm_fp8": "torch fp8"}
_NAMES |= {"torch_int4": "torch W4", "gemlite": "GemLite W{}", "binary": "BiLLM", "dequantize_cublas": "W{} to bf16"}
_NAMES |= {"wna16": "W{}A16", "wna8": "W{}A8"}
_BY_ROWS = ("wna8", "torch_int_mm", "torch_scaled_mm_fp8")  # usually one scale a row; the others one a group of 128


def label(k: Kind) -> str:
    """W4A16, W8A8, BiLLM, bf16 ...; the group only where it is not the usual one."""
    name, bits, group = k
    text = _NAMES.get(name, name.replace("_", " ") + " {}").format(bits)
    group = -1 if group is None else group
    usual = name in (BASE, "bfloat16") or group == (-1 if name in _BY_ROWS else 128)
    return text if usual else f"{text} row" if group == -1 else f"{text} g{group}"


def geomean(values: list[float]) -> float:
    """Of those that were measured; NaN where none was."""
    found = [v for v in values if not math.isnan(v)]
    return math.exp(sum(map(math.log, found)) / len(found)) if found else math.nan


def load(results_dir: str | Path) -> list[Latency]:
    """All records of ``results_dir``/latency, by name; a damaged file is left out with a warning."""
    found = []
    for path in sorted((Path(results_dir) / "latency").glob("*.json")):
        try:
            found.append(Latency.read(path))
        except ValueError as e:
            warnings.warn(f"left out: {e}", stacklevel=2)
    return found
