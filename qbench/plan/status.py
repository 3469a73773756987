"""Which cells of a plan are measured, without network, weights or data.

Revisions, hashes and versions of tasks need data. The rest of a record's identity is compared, and asked of the same
objects as a run asks: ``Config.settings`` and ``Measure.settings``.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from qbench.config import Config
from qbench.record import Failure, Measurement
from qbench.store import Store


class Records:
    """The records and failures of a results folder."""

    def __init__(self, results_dir: str | Path):
        store = Store(results_dir)
        self._found: dict[str, list[tuple[dict, Measurement | Failure]]] = defaultdict(list)
        for m in store.measurements():
            self._found[_key(m.science)].append((m.science, m))
        for f in store.failures():
            self._found[_key(f["science"])].append((f["science"], f))

    def find(self, config: Config, part: str) -> Measurement | Failure | None:
        """The record of one evaluation of a cell, or else its failure."""
        wanted = json.loads(json.dumps(config.settings() | {"eval": config.eval[part].settings()}))
        return next((record for science, record in self._found[_key(wanted)] if _says(science, wanted)), None)

    def status(self, config: Config) -> dict[str, str]:
        """ "done", "failed" or "missing" for each evaluation by its name, "" where there is only one."""
        words = {Measurement: "done", dict: "failed", type(None): "missing"}
        return {part: words[type(self.find(config, part))] for part in config.eval}


def _key(science: dict) -> str:
    return json.dumps([science["method"], science["grid"]], sort_keys=True)


def _says(found: Any, wanted: Any) -> bool:
    """Whether ``found``, of a record, holds all that ``wanted`` does; a record has tasks together with versions."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(key in found and _says(found[key], value) for key, value in wanted.items())
    return wanted == (list(found) if isinstance(wanted, list) and isinstance(found, dict) else found)
