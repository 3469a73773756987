"""Values as JSON and back: dataclasses become dicts, and numbers that are not finite become strings."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from qbench.files import write_atomic


def write_json(path: Path, x) -> None:
    """Writes dataclasses, dicts and lists as JSON, atomically."""
    write_atomic(path, json.dumps(plain(x), indent=1, allow_nan=False) + "\n")


def plain(x: Any) -> Any:
    """Dataclasses as dicts; floats that are not finite as "inf", "-inf", "nan", since JSON has no such numbers."""
    if dataclasses.is_dataclass(x):
        return {f.name: plain(getattr(x, f.name)) for f in dataclasses.fields(x)}
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    if isinstance(x, float) and not math.isfinite(x):
        return str(x)
    return x


def back(x: Any) -> Any:
    """Undoes ``plain`` for the numbers of a metric or a layer."""
    if isinstance(x, dict):
        return {k: v if k in ("unit", "name", "notes", "header") else back(v) for k, v in x.items()}
    if isinstance(x, list):
        return [back(v) for v in x]
    return float(x) if x in ("inf", "-inf", "nan") else x
