"""Which cells of a plan are measured, without network, weights or data.

Part of a record's identity only the data can tell: revisions, hashes, counts of windows, versions of tasks. A plan does
not open data. It compares the rest, which it asks of the same objects as a run does: ``Config.settings`` and
``Measure.settings``.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qbench.config import Config
from qbench.record import Measurement
from qbench.store import Store


class Records:
    """The records and failures of a results folder."""

    def __init__(self, results_dir: str | Path):
        store = Store(Path(results_dir).expanduser())
        self.measured = store.measurements()
        self._done = _by_method((m.science, m) for m in self.measured)
        self._failed = _by_method((failure["science"], failure) for failure in store.failures())

    def status(self, config: Config) -> dict[str, str]:
        """ "done", "failed" or "missing" for each evaluation by its name, "" where there is only one."""
        found = {}
        for part in config.eval:
            wanted = _wanted(config, part)
            failed = "failed" if _first(self._failed, wanted) else "missing"
            found[part] = "done" if _first(self._done, wanted) else failed
        return found

    def find(self, config: Config, part: str) -> Measurement | None:
        """The record of one evaluation of a cell."""
        return _first(self._done, _wanted(config, part))


def _wanted(config: Config, part: str) -> dict:
    return json.loads(json.dumps(config.settings() | {"eval": config.eval[part].settings()}))


def _by_method(found: Iterable[tuple[dict, Any]]) -> dict[str, list[tuple[dict, Any]]]:
    index = defaultdict(list)
    for science, record in found:
        index[_key(science)].append((science, record))
    return index


def _key(science: dict) -> str:
    return json.dumps([science["method"], science["grid"]], sort_keys=True)


def _first(index: dict[str, list[tuple[dict, Any]]], wanted: dict) -> Any:
    return next((record for science, record in index[_key(wanted)] if _says(science, wanted)), None)


def _says(found: Any, wanted: Any) -> bool:
    """Whether ``found``, of a record, holds all that ``wanted`` does; a record has tasks together with versions."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(key in found and _says(found[key], value) for key, value in wanted.items())
    return wanted == (list(found) if isinstance(wanted, list) and isinstance(found, dict) else found)
