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


def read_json(path: Path) -> Any:
    """What ``write_json`` wrote, as dicts and lists."""
    return json.loads(path.read_text())


_NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


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


def back(d: dict) -> dict:
    """Undoes ``plain`` for the numeric fields of one metric or layer."""

    def number(v):
        if isinstance(v, list):
            return [number(i) for i in v]
        return _NON_FINITE.get(v, v) if isinstance(v, str) else v

    return {k: (v if k in ("unit", "name", "notes") else number(v)) for k, v in d.items()}
