"""Moves records from one file each into a sorted .jsonl, and removes records."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qbench.files import locked, write_atomic
from qbench.record import measurement
from qbench.store import Store, lines


def fold(store: Store, name: str, wanted: Callable[[Any], bool] = lambda record: True) -> tuple[Path, int]:
    """Moves the files whose JSON is ``wanted`` into ``<name>.jsonl``: its path, and how many were moved.

    A file is removed once its line is written, so nothing is lost if this is interrupted, and a reader sees every
    record at any time.

    Raises: ValueError where a file or a line is damaged, or where two records of one id differ.
    """
    target, moved = store.root / f"{name}.jsonl", []
    with locked(store.root / ".locks" / "lines"):
        found = {d["id"]: d for _, d in lines(target, strict=True)} if target.is_file() else {}
        elsewhere = {d["id"]: d for _, d in store.folded() if d["id"] not in found}
        for where, d in [*store.files("measurements"), *store.files("failures")]:
            if not wanted(d):
                continue
            if "error" not in d:
                measurement(d, where)  # refuses what is damaged
            there = found.get(d["id"]) or elsewhere.get(d["id"])
            if there is None or "error" in there:
                found[d["id"]] = d
            elif "error" not in d and there != d:
                raise ValueError(f"{where} differs from the record {store.folded(d['id'])[0][0]}; delete one of them")
            moved.append(Path(where))
        if moved:
            write_lines(target, found.values())
        for path in moved:
            path.unlink(missing_ok=True)
    return target, len(moved)


def delete(store: Store, id: str) -> None:
    """Removes the measurement or failure, wherever it lies, so that the same configuration is measured again."""
    with locked(store.root / ".locks" / "lines"):
        for path in store.root.glob("*.jsonl"):
            there = [d for _, d in lines(path, strict=True)]
            if len(kept := [d for d in there if d["id"] != id]) < len(there):
                write_lines(path, kept)
        for path in (store.path(id), store.failure_path(id)):
            path.unlink(missing_ok=True)


def write_lines(path: Path, records: Iterable[dict]) -> None:
    """Writes the records in ``order``; equal records give equal bytes."""
    text = [json.dumps(d, separators=(",", ":"), allow_nan=False) + "\n" for d in sorted(records, key=order)]
    write_atomic(path, "".join(text))


def order(d: dict) -> tuple:
    """Sorts the JSON of records by model, method, bits, group size and evaluation."""
    science = d["science"]
    grid = science.get("grid") or {}
    model, method, eval = (str((science.get(part) or {}).get("name")) for part in ("model", "method", "eval"))
    return model, method, f"{grid.get('bits', 16):>3}", f"{grid.get('group_size', 0):>5}", eval, d["id"]
