"""A results folder: where records lie, and how they are found by id.

    measurements/<id>.json   one file per measurement, written atomically and never changed
    failures/<id>.json       one file per failure, removed when the same id is measured
    <name>.jsonl             folded records: one line per measurement or failure (``qbench.records.folding``)
    .locks/                  claims of running processes

A sweep writes files; a repository holds a few .jsonl instead. Both are read alike.
"""

import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from qbench.files import Lock, remove_stale, write_atomic, write_json
from qbench.record import Failure, Measurement, NewerRecord, measurement, now, parse


class Store:
    """The records under ``root``."""

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
        """The measurement, or None where there is none, or only a damaged one, which a new one may replace.

        Raises: NewerRecord; ValueError where a folder is in the way; OSError where the file must not be read.
        """
        path, found = self.path(id), []
        try:
            found.append((str(path), _read(path)))
        except FileNotFoundError:
            pass
        except ValueError as e:
            if path.is_dir():
                raise
            warnings.warn(f"counts as not measured: {e}", stacklevel=2)
        for where, d in [*found, *self.folded(id)]:
            try:
                return measurement(d, where)
            except NewerRecord:
                raise
            except ValueError as e:
                warnings.warn(f"counts as not measured: {e}", stacklevel=2)
        return None

    def get_failure(self, id: str) -> Failure | None:
        return next((f for f in self.failures() if f["id"] == id), None)

    def put(self, m: Measurement) -> Path:
        """Writes ``m``; a failure of the same id is removed."""
        path = self.path(m.id)
        write_json(path, m)
        self.failure_path(m.id).unlink(missing_ok=True)
        return path

    def put_failure(
        self,
        id: str,
        science: dict,
        error: BaseException,
        traceback: str,
        protocol: dict | None = None,
        overrides: list[str] | None = None,
    ) -> None:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        failure = Failure(id=id, science=science, protocol=protocol or {}, error=said, traceback=traceback, time=now())
        write_json(self.failure_path(id), failure | {"overrides": overrides})

    def measurements(self) -> list[Measurement]:
        """All readable measurements, sorted by id; a damaged one is left out with a warning."""
        found: dict[str, tuple[dict, Measurement]] = {}
        for where, d in [*self.files("measurements"), *self.folded()]:
            try:
                if "error" not in d and found.setdefault(d["id"], (d, measurement(d, where)))[0] != d:
                    raise ValueError(f"{where} differs from the other record {d['id']}; delete one of them")
            except ValueError as e:
                warnings.warn(f"left out: {e}", stacklevel=2)
        return [found[id][1] for id in sorted(found)]

    def failures(self) -> list[Failure]:
        """All readable failures of what is not measured, sorted by id; a damaged one is left out with a warning."""
        folded = self.folded()
        found: dict[str, Any] = {d["id"]: d for _, d in [*folded, *self.files("failures")] if "error" in d}
        measured = {d["id"] for _, d in folded if "error" not in d}
        return [found[id] for id in sorted(found) if id not in measured and not self.path(id).is_file()]

    def revisions(self, model: str) -> set[str]:
        """The revisions of ``model`` that there are records of."""
        models = [_model_of(path) for path in (self.root / "measurements").glob("*.json")]
        models += [d["science"].get("model") for _, d in self.folded() if "error" not in d]
        return {str(m.get("revision")) for m in models if isinstance(m, dict) and m.get("name") == model}

    @contextmanager
    def claim(self, *ids: str) -> Iterator[set[str]]:
        """Those of ``ids`` that this process alone holds now; the system frees them if the process dies."""
        locks = {id: Lock(self.root / ".locks" / id) for id in ids}
        try:
            yield {id for id, lock in locks.items() if lock.acquire()}
        finally:
            for lock in locks.values():
                lock.release(remove=True)

    def where(self, id: str) -> str:
        """The file, or the file and line, that holds the record; "" where there is none."""
        files = [str(path) for path in (self.path(id), self.failure_path(id)) if path.is_file()]
        return next(iter([*files, *(where for where, d in self.folded() if d["id"] == id)]), "")

    def files(self, room: str) -> Iterator[tuple[str, dict]]:
        """(path, JSON) of all readable files in the folder ``room``; a damaged one is left out with a warning."""
        for path in sorted((self.root / room).glob("*.json")):
            try:
                d = _read(path)
                if ("error" in d) != (room == "failures"):
                    raise ValueError(f"{path} lies in the wrong folder, or its error is missing")
                yield str(path), d
            except FileNotFoundError:  # folded or deleted just now
                continue
            except (OSError, ValueError) as e:
                warnings.warn(f"left out: {e}", stacklevel=3)

    def folded(self, id: str | None = None) -> list[tuple[str, dict]]:
        """(path:line, JSON) of all readable lines of all .jsonl files, or of the measurement ``id``."""
        found = [place for path in sorted(self.root.glob("*.jsonl")) for place in lines(path)]
        return found if id is None else [(where, d) for where, d in found if d["id"] == id and "error" not in d]


def _read(path: Path) -> dict:
    """The JSON of a record's file; ValueError where it is a folder, a pipe, a link to nothing, or no record."""
    try:
        if not path.is_file() and os.path.lexists(path):
            raise ValueError("not a regular file")
        return parse(path.read_text())
    except ValueError as e:
        raise ValueError(f"{path} is not a whole record ({e}); delete it to measure again") from e


@cache
def _model_of(path: Path) -> Any:
    """The model of a record's file; each is read once, for records never change."""
    try:
        return _read(path)["science"].get("model")
    except (OSError, ValueError) as e:
        warnings.warn(f"left out: {e}", stacklevel=3)
        return None


def lines(path: Path, strict: bool = False) -> list[tuple[str, dict]]:
    """(path:line, JSON) of each line; a damaged one is left out with a warning, or raises ValueError if ``strict``."""
    about = path.stat()
    return _lines(path, about.st_mtime_ns, about.st_size, strict)


@lru_cache(maxsize=16)
def _lines(path: Path, mtime: int, size: int, strict: bool) -> list[tuple[str, dict]]:
    """As ``lines``; a file that has not changed is read once."""
    found = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            found.append((f"{path}:{number}", parse(text)))
        except ValueError as e:
            message = f"{path}:{number} is not a whole record ({e}); delete the line to measure again"
            if strict:
                raise ValueError(message) from e
            warnings.warn(f"left out: {message}", stacklevel=4)
    return found
