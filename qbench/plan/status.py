"""Which cells of a plan are measured, without network, weights or data.

Revisions, hashes and versions of tasks need data. The rest of a record's identity is compared, and asked of the same
objects as a run asks: ``Config.settings`` and ``Measure.settings``.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from qbench.config import Config
from qbench.store import Store


class Records:
    """The records and failures of a results folder."""

    def __init__(self, results_dir: str | Path):
        store = Store(results_dir)
        self._found: dict[str, list[tuple[dict, str]]] = defaultdict(list)
        sciences = [(m.science, "done") for m in store.measurements()]
        for science, status in [*sciences, *((f["science"], "failed") for f in store.failures())]:
            self._found[_key(science)].append((science, status))

    def status(self, config: Config) -> dict[str, str]:
        """ "done", "failed" or "missing" for each evaluation by its name, "" where there is only one."""
        found = {}
        for part, measure in config.eval.items():
            wanted = json.loads(json.dumps(config.settings() | {"eval": measure.settings()}))
            known = (status for science, status in self._found[_key(wanted)] if _says(science, wanted))
            found[part] = next(known, "missing")
        return found


def _key(science: dict) -> str:
    return json.dumps([science["method"], science["grid"]], sort_keys=True)


def _says(found: Any, wanted: Any) -> bool:
    """Whether ``found``, of a record, holds all that ``wanted`` does; a record has tasks together with versions."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(key in found and _says(found[key], value) for key, value in wanted.items())
    return wanted == (list(found) if isinstance(wanted, list) and isinstance(found, dict) else found)
