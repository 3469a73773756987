"""Records: one immutable JSON file a measurement, written atomically, named by what was measured.

A record's ``id`` is the digest of its ``science``: all that says what is measured (model and revision,
method and its fields, grid, calibration data, evaluation and its data). The machine is no part of it.
Folders change no number. A device, a CPU's kernels and an odd number of threads change the last bit of
sums; ``provenance`` names them, and experiments/numerical_spread.py measures what comes of it. Whoever
asks for the same science finds the same file.
"""

import dataclasses
import fcntl
import hashlib
import json
import math
import os
import tempfile
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

SCHEMA = 1


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
        return cls(**_float(d) | {"notes": tuple(d["notes"])})


@dataclass(frozen=True)
class Measurement:
    """One evaluation of one quantized model.

    ``nominal_bits`` and ``stored_bits`` are means over the quantized weights; ``model_bytes`` is the whole
    checkpoint as it would be stored: quantized linears at their stored bits, everything else at 16 bits.
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
        probe = self.root / "measurements" / f".probe-{os.getpid()}"
        try:
            write_atomic(probe, "x")
            probe.unlink()
        except OSError as e:
            raise OSError(
                f"cannot write records under {self.root} ({e.strerror or e}); "
                "free some space or set machine.results_dir to a folder you can write to"
            ) from e

    def get(self, id: str) -> Measurement | None:
        """The measurement, or None where there is none or only a damaged file."""
        try:
            return read(self.path(id))
        except (FileNotFoundError, ValueError):
            return None

    def put(self, m: Measurement) -> Path:
        """Writes ``m``; whatever failure stood for the same id is removed."""
        path = self.path(m.id)
        write_json(path, m)
        self.failure_path(m.id).unlink(missing_ok=True)
        return path

    def get_failure(self, id: str) -> dict | None:
        try:
            return json.loads(self.failure_path(id).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def put_failure(self, id: str, science: dict, error: BaseException, traceback: str) -> None:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        what = dict(id=id, science=science, error=said, traceback=traceback)
        write_json(self.failure_path(id), what | {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})

    def revisions(self, model: str) -> set[str]:
        """The revisions of ``model`` that there are records of."""
        models = (_model_of(path) for path in (self.root / "measurements").glob("*.json"))
        return {m["revision"] for m in models if m.get("name") == model}

    @contextmanager
    def claim(self, key: str):
        """True while this process alone holds ``key``, else False; the system frees it if the process dies."""
        path = self.root / ".locks" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)

    def measurements(self) -> list[Measurement]:
        """All readable measurements, sorted by id; a damaged file is left out with a warning."""
        found = []
        for path in sorted((self.root / "measurements").glob("*.json")):
            try:
                found.append(read(path))
            except ValueError as e:
                warnings.warn(f"left out: {e}", stacklevel=2)
        return found


@cache
def _model_of(path: Path) -> dict:
    """The model of a record, or {} where the file is damaged; records never change, so each is read once."""
    try:
        return json.loads(path.read_text())["science"]["model"]
    except (KeyError, TypeError, ValueError):
        return {}


def read(path: Path) -> Measurement:
    """A record file as a Measurement; ValueError where it is damaged or its id is not its science's digest."""
    try:
        d = json.loads(path.read_text())
        d["metrics"] = {k: Metric(**_float(v)) for k, v in d["metrics"].items()}
        d["layers"] = [LayerReport.of(r) for r in d["layers"]]
        m = Measurement(**d)
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path} is not a whole record ({e}); delete it to measure again") from e
    if m.schema != SCHEMA or m.id != digest(m.science):
        raise ValueError(f"{path}: id or schema does not fit its content; delete it to measure again")
    return m


def write_json(path: Path, x) -> None:
    """Dataclasses, dicts and lists as JSON, atomically; non-finite floats become "inf", "-inf", "nan"."""
    write_atomic(path, json.dumps(plain(x), indent=1, allow_nan=False) + "\n")


def read_json(path: Path):
    """What ``write_json`` wrote, as dicts and lists."""
    return json.loads(path.read_text())


def write_atomic(path: Path, text: str) -> None:
    """Writes ``text`` so that ``path`` holds either the whole of it or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(fd, "w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(tmp, 0o644)
        os.replace(tmp, path)
    except BaseException:
        Path(tmp).unlink(missing_ok=True)
        raise


_NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def plain(x):
    """Dataclasses to dicts; non-finite floats to the strings "inf", "-inf", "nan" (JSON has no such numbers)."""
    if dataclasses.is_dataclass(x):
        return {f.name: plain(getattr(x, f.name)) for f in dataclasses.fields(x)}
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    if isinstance(x, float) and not math.isfinite(x):
        return str(x)
    return x


def _float(d: dict) -> dict:
    """Undoes ``plain`` for the numeric fields of one metric or layer."""

    def back(v):
        if isinstance(v, list):
            return [back(i) for i in v]
        return _NON_FINITE.get(v, v) if isinstance(v, str) else v

    return {k: (v if k in ("unit", "name", "notes") else back(v)) for k, v in d.items()}
