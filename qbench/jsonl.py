"""Folded records: a .jsonl file with one measurement or failure per line, sorted so that a person finds them."""

import json
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from qbench.files import write_atomic
from qbench.record import parse


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


def write_lines(path: Path, records: Iterable[dict]) -> None:
    """Writes the records, sorted by model, method, bits, group size and evaluation; equal records give equal bytes."""
    text = [json.dumps(d, separators=(",", ":"), allow_nan=False) + "\n" for d in sorted(records, key=order)]
    write_atomic(path, "".join(text))


def order(d: dict) -> tuple:
    """Sorts the JSON of records by model, method, bits, group size and evaluation."""
    science = d["science"]
    grid = science.get("grid") or {}
    model, method, eval = (str((science.get(part) or {}).get("name")) for part in ("model", "method", "eval"))
    return model, method, f"{grid.get('bits', 16):>3}", f"{grid.get('group_size', 0):>5}", eval, d["id"]
