"""The record of one GPU: ``results/latency/<gpu>.json``, complete after every call and continued by the next one.

A row is measured once. One that failed stays with its reason (``us`` or ``ms`` null). What there was no time for is
counted in the notes, and the next call with the file continues where this one stopped.
"""

from pathlib import Path

from qbench import json_values
from qbench.kernels.configs import slug

SCHEMA = 1
KERNEL = (
    *("model", "layer", "N", "K", "M", "kernel", "bits", "group"),
    *("us", "us_p20", "us_p80", "runs", "bytes", "flops", "error", "config", "notes"),
)
MODEL = (
    *("model", "what", "weights", "bits", "group", "batch", "context", "ms", "ms_p20", "ms_p80", "runs"),
    *("tokens_per_s", "weight_bytes", "cache_bytes", "peak_bytes", "floor_ms", "config", "notes"),
)
KERNEL_KEY = ("model", "layer", "M", "kernel", "bits", "group")
MODEL_KEY = ("model", "what", "weights", "bits", "group", "batch", "context")
LEFT_OUT = "left out for time"
SAME = ("driver", "torch", "triton", "cuda", "commit", "power_limit_w")  # what two calls should have in common


def file_name(gpu: str) -> str:
    """NVIDIA H200 -> nvidia-h200.json"""
    return f"{slug(gpu)}.json"


class Latency:
    """The record being made. ``data`` is what the file holds."""

    def __init__(self, path: Path, provenance: dict, before: Path | None = None):
        """``before``: a record of the same GPU to continue. ValueError if it is another GPU's or another schema's."""
        self.path = path
        empty = {"schema": SCHEMA, "provenance": {}, "notes": [], "ceilings": {}, "kernels": [], "models": []}
        self.data = json_values.read_json(before) if before else empty
        if self.data.get("schema") != SCHEMA:
            raise ValueError(f"{before} has schema {self.data.get('schema')}, this is {SCHEMA}; measure anew")
        old = self.data["provenance"]
        if old and old["gpu"] != provenance["gpu"]:
            raise ValueError(
                f"{before} is of {old['gpu']}, this GPU is {provenance['gpu']}; a record is of one GPU, "
                "so leave --resume out"
            )
        changed = [f"{k} {old[k]} -> {provenance[k]}" for k in SAME if old and old.get(k) != provenance[k]]
        if changed:
            self.note(f"continued {provenance['time']} under other conditions: {', '.join(changed)}")
        self.data["provenance"] = old or {**provenance, "seconds": 0.0}
        self.data["notes"] = [n for n in self.data["notes"] if not n.startswith(LEFT_OUT)]
        self.data["models"] = [r for r in self.data["models"] if LEFT_OUT not in r["notes"]]
        self.earlier = self.data["provenance"]["seconds"]
        self.done = {_key(KERNEL_KEY, row) for row in self.data["kernels"]}
        self.done_models = {_key(MODEL_KEY, row) for row in self.data["models"]}

    def note(self, text: str) -> None:
        """Said once, however often it happens."""
        if text not in self.data["notes"]:
            self.data["notes"].append(text)

    def add_kernel(self, row: dict) -> None:
        _check(KERNEL, row)
        self.done.add(_key(KERNEL_KEY, row))
        self.data["kernels"].append(row)

    def add_model(self, row: dict) -> None:
        _check(MODEL, row)
        self.done_models.add(_key(MODEL_KEY, row))
        self.data["models"].append(row)

    def save(self, seconds: float) -> None:
        """``seconds`` since this call began."""
        self.data["provenance"]["seconds"] = round(self.earlier + seconds, 1)
        json_values.write_json(self.path, self.data)


def _key(names, row):
    return tuple(row[name] for name in names)


def _check(names, row):
    if set(row) != set(names):
        raise ValueError(f"a row has exactly the fields {', '.join(names)}; got {', '.join(row)}")
