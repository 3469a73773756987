"""Records: one immutable JSON file per measurement, written atomically, named by what was measured.

A record's ``id`` is the digest of its ``science``: all that says what is measured (model and revision,
method and its fields, grid, calibration data, evaluation and its data). The machine is no part of it.
Folders change no number. A device, a CPU's kernels and an odd number of threads change the last bit of
sums; ``provenance`` names them, and experiments/numerical_spread.py measures what comes of it. Whoever
asks for the same science finds the same file.
"""

import hashlib
import json
import os
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from qbench.files import Lock, remove_stale, write_atomic
from qbench.json_values import back, write_json
from qbench.protocol import judge

SCHEMA = 1


class NewerRecord(ValueError):
    """A record with a schema that this version does not know."""


@dataclass(frozen=True)
class Metric:
    """One number with its unit.

    ``samples`` are the outcomes behind it, one an item, in the order of the data: a window's mean
    negative log-likelihood, a question's 0 or 1. They are what a paired difference needs.
    ``stderr`` is the standard error of ``value`` over the ``n`` items, None where it has none.
    """

    value: float
    unit: str
    n: int
    stderr: float | None = None
    samples: list[float] | None = None


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
        return cls(**back(d) | {"notes": tuple(d["notes"])})


@dataclass(frozen=True)
class Measurement:
    """One evaluation of one quantized model.

    ``nominal_bits`` and ``stored_bits`` are means over the quantized weights; ``model_bytes`` is the whole
    checkpoint as it would be stored: quantized linears at their stored bits, everything else at 16 bits.
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


def digest(science: dict) -> str:
    """16 hex digits of the SHA-256 of the sorted JSON of ``science``."""
    text = json.dumps(science, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """The results folder: ``measurements/<id>.json``, ``failures/<id>.json``, and claims of running processes."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def path(self, id: str) -> Path:
        return self.root / "measurements" / f"{id}.json"

    def failure_path(self, id: str) -> Path:
        return self.root / "failures" / f"{id}.json"

    def check_writable(self) -> None:
        """OSError now rather than after hours of work, if the folder cannot take a record."""
        probe = self.root / "measurements" / f".probe-{uuid.uuid4().hex}.tmp"
        try:
            write_atomic(probe, "x")
            probe.unlink()
            remove_stale(self.root / "measurements", self.root / "failures")
        except OSError as e:
            raise OSError(
                f"cannot write records under {self.root} ({e.strerror or e}); "
                "free some space or set machine.results_dir to a folder you can write to"
            ) from e

    def get(self, id: str) -> Measurement | None:
        """The measurement, or None where there is none, or only a damaged file that a new one may replace.

        Raises: NewerRecord; ValueError where a folder is in the way; OSError where the file must not be read.
        """
        path = self.path(id)
        try:
            return read(path)
        except FileNotFoundError:
            return None
        except ValueError as e:
            if isinstance(e, NewerRecord) or path.is_dir():
                raise
            warnings.warn(f"counts as not measured: {e}", stacklevel=2)
            return None

    def put(self, m: Measurement) -> Path:
        """Writes ``m``; whatever failure stood for the same id is removed."""
        path = self.path(m.id)
        write_json(path, m)
        self.failure_path(m.id).unlink(missing_ok=True)
        return path

    def get_failure(self, id: str) -> dict | None:
        return _failure(self.failure_path(id))

    def failures(self) -> list[dict]:
        """All readable failures, sorted by id: ``id``, ``science``, ``error``, ``traceback``, ``time``."""
        paths = sorted((self.root / "failures").glob("*.json"))
        return [failure for path in paths if (failure := _failure(path))]

    def put_failure(
        self, id: str, science: dict, error: BaseException, traceback: str, protocol: dict | None = None
    ) -> None:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        what = dict(id=id, science=science, protocol=protocol or {}, error=said, traceback=traceback)
        write_json(self.failure_path(id), what | {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})

    def revisions(self, model: str) -> set[str]:
        """The revisions of ``model`` that there are records of."""
        paths = (self.root / "measurements").glob("*.json")
        return {revision for path in paths for name, revision in [_model_of(path)] if name == model}

    @contextmanager
    def claim(self, *ids: str) -> Iterator[set[str]]:
        """Those of ``ids`` that this process alone holds now; the system frees them if the process dies."""
        locks = {id: Lock(self.root / ".locks" / id) for id in ids}
        mine: set[str] = set()
        try:
            mine |= {id for id, lock in locks.items() if lock.acquire()}
            yield mine
        finally:
            for lock in locks.values():
                lock.release(remove=True)

    def measurements(self) -> list[Measurement]:
        """All readable measurements, sorted by id; a damaged file is left out with a warning."""
        found = []
        for path in sorted((self.root / "measurements").glob("*.json")):
            try:
                found.append(read(path))
            except (OSError, ValueError) as e:
                warnings.warn(f"left out: {e}", stacklevel=2)
        return found


@cache
def _model_of(path: Path) -> tuple[str, str]:
    """Name and revision of a record's model, or two empty words where the file is damaged; records never change, so
    each is read once."""
    try:
        model = _parse(path)["science"]["model"]
        return str(model["name"]), str(model["revision"])
    except (OSError, KeyError, TypeError, ValueError) as e:
        warnings.warn(f"left out: {path} is not a whole record ({e})", stacklevel=3)
        return "", ""


def _failure(path: Path) -> dict | None:
    """A failure file, or None where there is none or only a damaged one."""
    try:
        d = _parse(path)
        if isinstance(d["error"], str) and isinstance(d["science"], dict) and d["id"]:
            return d
        raise ValueError("no error or no science in it")
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError) as e:
        warnings.warn(f"left out: {path} is not a whole failure ({e})", stacklevel=3)
        return None


def _parse(path: Path):
    """The JSON of ``path``; ValueError where it is a folder, a pipe, a link to nothing, or no JSON."""
    if not path.is_file() and os.path.lexists(path):
        raise ValueError("not a regular file")
    try:
        return json.loads(path.read_text())
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def read(path: Path) -> Measurement:
    """A record file as a Measurement.

    Raises: ValueError where it is damaged or its id is not its science's digest; NewerRecord; OSError.
    """
    try:
        d = _parse(path)
        if (schema := d["schema"]) != SCHEMA and isinstance(schema, int) and schema > SCHEMA:
            raise NewerRecord(
                f"{path} was made by a newer qbench (schema {schema}; this one knows {SCHEMA}); upgrade qbench, or set "
                "machine.results_dir to another folder"
            )
        d["metrics"] = {k: Metric(**back(v)) for k, v in d["metrics"].items()}
        d["layers"] = [LayerReport.of(r) for r in d["layers"]]
        if "protocol" not in d:  # delete these lines and _judged once results/ has been measured again
            d["protocol"] = _judged(d["science"])
        m = Measurement(**d)
        _check_numbers(m)
    except NewerRecord:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path} is not a whole record ({e}); delete it to measure again") from e
    if m.schema != SCHEMA or m.id != digest(m.science):
        raise ValueError(f"{path}: id or schema does not fit its content; delete it to measure again")
    return m


def _judged(science: dict) -> dict:
    try:
        return judge(science)
    except (AttributeError, KeyError, TypeError):
        return {}


def _check_numbers(m: Measurement) -> None:
    """TypeError where something else stands in the place of a number."""
    numbers = {"bits or bytes": [m.nominal_bits, m.stored_bits, m.model_bytes]}
    for key, metric in m.metrics.items():
        numbers[key] = [metric.value, metric.n, *(metric.samples or ()), metric.stderr or 0]
    for r in m.layers:
        numbers[r.name] = [r.block, r.error, r.nominal_bits, r.stored_bits, r.seconds]
    for where, values in numbers.items():
        for x in values:
            if not isinstance(x, int | float) or isinstance(x, bool):
                raise TypeError(f"{x!r} instead of a number in {where}")
