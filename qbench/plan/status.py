"""Which cells of a plan are measured, without network, weights or data.

A record's identity also holds what only the data can tell: revisions, hashes, counts of windows, versions of tasks. A
plan does not open data, so it compares everything else: every field that the configuration fixes. A field that an older
record lacks counts as the default that its class declares.
"""

import dataclasses
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

from qbench.settings import target

UNSEEN = ("path", "_target_", "grid")  # of a configuration, but not of the part of the record it makes


@dataclass(frozen=True)
class Head:
    """A record without its numbers: enough to know it by, and where it was made."""

    science: dict
    provenance: dict


def heads(folder: Path) -> list[Head]:
    """The heads of all json files in ``folder``; a damaged one is left out with a warning. Numbers are not parsed."""
    found, decode = [], json.JSONDecoder().raw_decode
    for path in sorted(folder.glob("*.json")):
        try:
            if not path.is_file():
                raise ValueError("not a regular file")
            text = path.read_text()
            parts = {}
            for key in ("science", "provenance"):
                at = text.find(f'\n "{key}": ')
                parts[key] = decode(text, at + len(f'\n "{key}": '))[0] if at >= 0 else None
            if parts["science"] is None:
                raise ValueError("no science in it")
            found.append(Head(parts["science"], parts["provenance"] or {}))
        except (OSError, ValueError, KeyError, TypeError) as e:
            warnings.warn(f"left out: {path} is not a whole record ({e})", stacklevel=2)
    return found


class Records:
    """What a results folder holds."""

    def __init__(self, results_dir: str | Path):
        root = Path(results_dir).expanduser()
        self.measured, self.failed = heads(root / "measurements"), heads(root / "failures")
        self._index = {kind: _by_name(found) for kind, found in (("done", self.measured), ("failed", self.failed))}

    def status(self, cell: dict) -> dict[str, str]:
        """ "done", "failed" or "missing" for each evaluation of a cell, by its name ("" where there is one only)."""
        return {part: self._status(cell, settings) for part, settings in evaluations(cell).items()}

    def find(self, cell: dict, part: dict, kind: str = "done") -> Head | None:
        """The record of one evaluation of a cell."""
        wanted = expected(cell, part)
        known = self._index[kind].get(_name(wanted), ())
        return next((head for head in known if all(_fits(wanted[k], head.science[k]) for k in wanted)), None)

    def _status(self, cell, part):
        return next((kind for kind in self._index if self.find(cell, part, kind)), "missing")


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


def _by_name(found: list[Head]) -> dict[tuple, list[Head]]:
    index: dict[tuple, list[Head]] = {}
    for head in found:
        index.setdefault(_name(head.science), []).append(head)
    return index
