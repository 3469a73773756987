"""JSON records beside the measurements as single values: results/full_size, results/speed, results/quirks.

These records differ in shape and more will come, so nothing is known of them but that they are nested. Each value has
the key <folder>/<file>/<path>; what a key of LaTeX cannot hold, such as a space, becomes "-".
"""

import json
import re
from pathlib import Path

from qbench.render.escape import tex

FOLDERS = ("full_size", "speed", "quirks")


def of_folders(results: Path) -> dict[str, str]:
    """Every leaf of the JSON files of ``FOLDERS``; ``<folder>/any`` and ``records/any`` where there is one."""
    out = {}
    for folder in FOLDERS:
        for path in sorted((results / folder).glob("*.json")):
            out |= {f"{folder}/any": "yes", "records/any": "yes"}
            out |= {f"{folder}/{path.stem}/{key}": tex(plain(v)) for key, v in leaves(json.loads(path.read_text()))}
    return {re.sub(r"[^\w/=.-]", "-", key): text for key, text in out.items()}


def leaves(x, path: str = ""):
    """(path, value) of every number, text or truth value, nested; a list of such counts by first, last and length."""
    if isinstance(x, dict):
        for key, value in x.items():
            yield from leaves(value, f"{path}/{key}" if path else str(key))
    elif isinstance(x, list):
        if any(isinstance(value, (dict, list)) for value in x):
            yield from leaves({str(i): value for i, value in enumerate(x)}, path)
        elif x:
            yield from [(f"{path}/first", x[0]), (f"{path}/last", x[-1]), (f"{path}/length", len(x))]
    elif x is not None:
        yield path, x


def plain(x) -> str:
    """Numbers with four digits and thousands apart, everything else as it is."""
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        return str(x)
    return f"{x:,}" if isinstance(x, int) else f"{x:,.0f}" if 1e3 <= abs(x) < 1e7 else f"{x:.4g}"
