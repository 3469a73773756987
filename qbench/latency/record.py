"""The record of one GPU, ``results/latency/<gpu>.json``: one row per timed product and one per timed decoder.

The measurement writes the file and the report reads it, both with the classes below, so this module imports no torch.
Each row is measured once. A row that failed stays in the record, without a time and with the reason in its notes. Rows
that there was no time for are counted in the record's notes, and the next call measures them.

Dimension key: M tokens, N output channels, K input channels.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from qbench.files import write_json

SCHEMA = 2
LEFT_OUT = "left out for time"
SAME = ("driver", "torch", "triton", "cuda", "commit", "power_limit_w")  # what two calls should have in common


@dataclass(frozen=True)
class Kernel:
    """The kernel of a product: its name, bits per weight, and columns per scale (-1: one scale per row, None: none)."""

    name: str
    bits: int
    group: int | None


BF16 = Kernel("cublas_bf16", 16, None)


@dataclass
class KernelRow:
    """One product of a layer with M tokens. ``us`` and its percentiles are None where it failed."""

    model: str
    layer: str
    N: int
    K: int
    M: int
    kernel: Kernel
    us: float | None = None  # median microseconds of a launch
    us_p20: float | None = None
    us_p80: float | None = None
    runs: int = 0
    bytes: int | None = None  # of weight, activations and outputs
    flops: int | None = None
    error: float | None = None  # ||y - y'|| / ||y'||, y' in float64
    config: dict | None = None  # launch parameters
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple:
        return (self.model, self.layer, self.M, self.kernel)


@dataclass
class ModelRow:
    """One decoding step of a whole model ("decode"), or one prompt ("prefill"). ``ms`` is None where it failed."""

    model: str
    what: str
    kernel: Kernel  # of the layers' products
    batch: int
    context: int  # tokens in the cache of each sequence, or tokens of the prompt
    ms: float | None = None  # median
    ms_p20: float | None = None
    ms_p80: float | None = None
    runs: int = 0
    tokens_per_s: float | None = None
    weight_bytes: int | None = None
    cache_bytes: int | None = None
    peak_bytes: int | None = None
    floor_ms: float | None = None  # weights and cache moved once at the measured copy bandwidth
    config: dict | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple:
        return (self.model, self.what, self.kernel, self.batch, self.context)


@dataclass(frozen=True)
class Ceiling:
    """A rate or a time that the GPU reaches at best: the median, and the 20th and 80th percentile."""

    value: float
    p20: float
    p80: float


@dataclass
class LatencyRecord:
    """Everything that was measured on one GPU."""

    provenance: dict
    notes: list[str] = field(default_factory=list)
    ceilings: dict[str, Ceiling] = field(default_factory=dict)
    kernels: list[KernelRow] = field(default_factory=list)
    models: list[ModelRow] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "LatencyRecord":
        """ValueError for a damaged file, another schema, or two rows of the same product or decoder."""
        try:
            d = json.loads(path.read_text())
            if (schema := d.pop("schema")) != SCHEMA:
                raise ValueError(f"it has schema {schema}, and this version reads schema {SCHEMA}")
            d["ceilings"] = {name: Ceiling(**values) for name, values in d["ceilings"].items()}
            for name, row_class in (("kernels", KernelRow), ("models", ModelRow)):
                d[name] = [row_class(**row | {"kernel": Kernel(**row["kernel"])}) for row in d[name]]
                if len({row.key for row in d[name]}) < len(d[name]):
                    raise ValueError(f"two rows of its {name} are of the same measurement")
            d["provenance"]["gpu"]
            return cls(**d)
        except (KeyError, TypeError, AttributeError, ValueError) as e:
            raise ValueError(f"{path} is not a whole latency record ({type(e).__name__}: {e}); measure again") from e

    def write(self, path: Path) -> None:
        write_json(path, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def start(cls, provenance: dict, earlier: Path | None = None) -> "LatencyRecord":
        """An empty record, or ``earlier`` to be continued, without its notes on what was left out.

        Raises: ValueError as ``read`` does, and for a record of another GPU.
        """
        if earlier is None:
            return cls(provenance | {"seconds": 0.0})
        record = cls.read(earlier)
        old = record.provenance
        if old["gpu"] != provenance["gpu"]:
            raise ValueError(
                f"{earlier} is of {old['gpu']}, this GPU is {provenance['gpu']}; a record is of one GPU, "
                "so leave --resume out"
            )
        record.notes = [note for note in record.notes if not note.startswith(LEFT_OUT)]
        if changed := [f"{k} {old.get(k)} -> {provenance[k]}" for k in SAME if old.get(k) != provenance[k]]:
            record.note(f"continued {provenance['time']} under other conditions: {', '.join(changed)}")
        return record

    def note(self, *texts: str) -> None:
        """Adds the notes that the record does not have yet."""
        self.notes += [text for text in dict.fromkeys(texts) if text not in self.notes]
