"""What is recorded of one measurement.

A record's ``id`` is the digest of its ``science``: everything that says what is measured (model and revision, method
and its fields, grid, calibration data, evaluation and its data). Neither the machine nor a folder is part of it. The
device, the CPU's kernels and an odd number of threads change the last bit of sums: ``provenance`` names them, and
experiments/numerical_spread.py measures what this changes. ``qbench.store`` writes records and finds them by id.
"""

import hashlib
import json
import time
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from qbench.settings import build

SCHEMA = 1


class NewerRecord(ValueError):
    """A record with a schema that this version does not know."""


@dataclass(frozen=True)
class Metric:
    """One number with its unit.

    ``samples``: one outcome per item, in the order of the data (a window's mean negative log-likelihood, a question's 0
    or 1), for paired differences. ``stderr``: the standard error of ``value`` over the ``n`` items, if there is one.
    ``higher_is_better`` (of a table's values, None where neither is), ``chance`` (the value of guessing) and ``header``
    (where the metric's name does not do) tell tables how to show it.
    """

    value: float
    unit: str
    n: int
    stderr: float | None = None
    samples: list[float] | None = None
    higher_is_better: bool | None = None
    chance: float | None = None
    header: str = ""


@dataclass(frozen=True)
class LayerReport:
    """What quantization did to one linear: ``error`` is ||(Q - W) X||_F / ||W X||_F on calibration inputs."""

    block: int
    name: str
    error: float
    nominal_bits: float
    stored_bits: float
    seconds: float
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, d: dict) -> "LayerReport":
        """From what ``plain`` made of one."""
        return build(back(d), d["name"], cls)


@dataclass(frozen=True)
class Measurement:
    """One evaluation of one quantized model.

    ``nominal_bits`` and ``stored_bits`` are means over the quantized weights; ``model_bytes`` is the whole checkpoint
    as it would be stored: quantized linears at their stored bits, everything else at 16 bits per weight.
    ``protocol`` is what ``qbench.protocol.judge`` said of the settings when they were measured.
    """

    id: str
    science: dict
    metrics: dict[str, Metric]
    nominal_bits: float
    stored_bits: float
    model_bytes: int
    layers: list[LayerReport] = field(default_factory=list)
    provenance: dict = field(default_factory=dict)
    schema: int = SCHEMA
    protocol: dict = field(default_factory=dict)


class Failure(TypedDict):
    """A measurement that failed: ``id`` and ``science`` as it would have had, ``time`` in UTC, the command's words."""

    id: str
    science: dict
    protocol: dict
    error: str
    traceback: str
    time: str
    overrides: NotRequired[list[str] | None]


def now() -> str:
    """The time in UTC, as records hold it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def digest(science: dict) -> str:
    """16 hex digits of the SHA-256 of the sorted JSON of ``science``."""
    text = json.dumps(science, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse(text: str) -> dict:
    """The JSON of a measurement or a failure as a dict; ValueError where ``text`` is neither."""
    try:
        d = json.loads(text)
    except RecursionError as e:
        raise ValueError("nested too deeply") from e
    if not isinstance(d, dict) or not isinstance(d.get("id"), str) or not isinstance(d.get("science"), dict):
        raise ValueError("no id or no science in it")
    if not isinstance(d.get("error", ""), str):
        raise ValueError("its error is no text")
    return d


def back(x: Any) -> Any:
    """Undoes ``files.plain`` for the numbers of a metric or a layer."""
    if isinstance(x, dict):
        return {k: v if k in ("unit", "name", "notes", "header") else back(v) for k, v in x.items()}
    if isinstance(x, list):
        return [back(v) for v in x]
    return float(x) if x in ("inf", "-inf", "nan") else x


def measurement(d: dict, where: str) -> Measurement:
    """The Measurement that ``d``, the JSON found at ``where``, describes.

    Raises: ValueError where it is damaged or its id is not its science's digest; NewerRecord.
    """
    try:
        if (schema := d["schema"]) != SCHEMA and isinstance(schema, int) and schema > SCHEMA:
            raise NewerRecord(
                f"{where} was made by a newer qbench (schema {schema}; this one knows {SCHEMA}); upgrade qbench, or "
                "set machine.results_dir to another folder"
            )
        metrics = {key: build(back(x), key, Metric) for key, x in d["metrics"].items()}
        m = build(d | {"metrics": metrics, "layers": [LayerReport.of(x) for x in d["layers"]]}, "", Measurement)
    except NewerRecord:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{where} is not a whole record ({e}); delete it to measure again") from e
    if m.schema != SCHEMA or m.id != digest(m.science):
        raise ValueError(f"{where}: id or schema does not fit its content; delete it to measure again")
    return m
