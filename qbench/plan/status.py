"""Which cells of a plan are measured, without network, weights or data.

A record's identity also holds what only the data can tell: revisions, hashes, counts of windows, versions of tasks. A
plan does not open data, so it compares everything else: every field that the configuration fixes. A field that an older
record lacks counts as the default that its class declares.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.record import Measurement
from qbench.settings import target
from qbench.store import Store

UNSEEN = ("path", "_target_", "grid")  # of a configuration, but not of the part of the record it makes


class Records:
    """What a results folder holds."""

    def __init__(self, results_dir: str | Path):
        store = Store(Path(results_dir).expanduser())
        self.measured = store.measurements()
        self._done = _by_name([(m.science, m) for m in self.measured])
        self._failed = _by_name([(f["science"], f) for f in store.failures()])

    def status(self, cell: dict) -> dict[str, str]:
        """ "done", "failed" or "missing" for each evaluation of a cell, by its name ("" where there is one only)."""
        return {part: self._status(cell, settings) for part, settings in evaluations(cell).items()}

    def find(self, cell: dict, part: dict) -> Measurement | None:
        """The record of one evaluation of a cell."""
        return _first(self._done, expected(cell, part))

    def _status(self, cell, part):
        wanted = expected(cell, part)
        return "done" if _first(self._done, wanted) else "failed" if _first(self._failed, wanted) else "missing"


def evaluations(cell: dict) -> dict[str, dict]:
    """The parts of ``eval``, by name."""
    return {"": cell["eval"]} if "_target_" in cell["eval"] else cell["eval"]


def expected(cell: dict, part: dict) -> dict[str, "Wanted | None"]:
    """What the configuration says of a record's science, section by section; None: the section is null."""
    model, method = cell["model"], cell["method"]
    where = model.get("repo") or (f"qbench/{model['nano']}" if model.get("nano") else "local")
    fixed = {"name": model["name"], "repo": where, "dtype": model["dtype"]}
    if model.get("repo") and model.get("revision") is not None:
        fixed["revision"] = model["revision"]
    cls = target(method, "method")
    grid = method.get("grid")
    return {
        "model": Wanted(fixed, {}),
        "method": Wanted({"name": cls.name, "version": cls.version} | _fields(method), _defaults(cls)),
        "grid": Wanted(_fields(grid), _defaults(target(grid, "grid"))) if grid else None,
        "calib": None if cls.name == "none" else _text(cell["calib"], {"n": (128, 64), "length": (2048, 256)}),
        "eval": _evaluation(part),
    }


@dataclass(frozen=True)
class Wanted:
    """Fields of one section, and what its class declares as defaults."""

    fields: dict
    defaults: dict


def _evaluation(part):
    cls = target(part, "eval")
    name = {"name": cls.name, "version": cls.version}
    wanted = Wanted(_fields(part), _defaults(cls))
    if "source" in part:
        wanted = _text(part, {"window": (2048, 256)})
        draw = wanted.fields.pop("c4", None)  # which part of C4 it is says only a record of C4, as `draw`
        if wanted.fields["source"] == "c4" and draw is not None:
            wanted = Wanted(wanted.fields | {"draw": draw}, wanted.defaults | {"draw": cls.c4})
    return Wanted(name | wanted.fields, wanted.defaults)


def _text(part, sizes):
    """Calibration or a text to evaluate: a path is read instead of the source; sizes are the paper's or nano's."""
    fields = _fields(part)
    fields["source"] = "text" if part.get("path") else (part["source"] or "nano")
    for name, (paper, nano) in sizes.items():
        if fields.get(name) is None:
            fields[name] = nano if fields["source"] == "nano" else paper
    return Wanted(fields, _defaults(target(part, "calib")))


def _defaults(cls) -> dict:
    return {f.name: f.default for f in dataclasses.fields(cls)}


def _fields(part):
    plain = {k: _fields(v) if isinstance(v, dict) else v for k, v in part.items() if k not in UNSEEN}
    return json.loads(json.dumps(plain))


def _fits(wanted: Wanted | None, found: dict | None) -> bool:
    if wanted is None or found is None:
        return wanted is None and found is None
    return all(
        _same(value, found[key] if key in found else _plain(wanted.defaults.get(key)))
        for key, value in wanted.fields.items()
    )


def _plain(x):
    return json.loads(json.dumps(x))


def _same(wanted, found) -> bool:
    """Equal; names of tasks stand in a record with their versions."""
    if isinstance(wanted, list) and isinstance(found, dict):
        found = list(found)
    return wanted == found


def _name(science) -> tuple:
    def get(key):
        section = science[key]
        return (section.fields if isinstance(section, Wanted) else section)["name"]

    return get("model"), get("method"), get("eval")


def _by_name(found: list[tuple[dict, Any]]) -> dict[tuple, list]:
    index: dict[tuple, list] = {}
    for science, record in found:
        index.setdefault(_name(science), []).append((science, record))
    return index


def _first(index: dict[tuple, list], wanted: dict):
    """The first record of ``index`` whose science has all that is ``wanted``."""
    known = index.get(_name(wanted), ())
    return next((record for science, record in known if all(_fits(wanted[k], science[k]) for k in wanted)), None)
