"""The cells of a sweep, composed as Hydra composes them but a hundred times faster.

A sweep is a product of choices (``model=a,b``) and values (``grid.bits=4,3``). Hydra builds a configuration in a third
of a second; a matrix has 1,200. So Hydra composes once for every combination of choices that can touch each other, and
two things are varied on the plain result:

* a choice that is one file and owns its part of the tree (a model, a grid): the part is exchanged. That nothing else
  writes there is not assumed but checked; otherwise Hydra composes every cell.
* a value: set where it stands. Interpolations are resolved after that, so whatever reads it follows.
"""

import copy
import itertools
import json
import re
from functools import cache, reduce

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from qbench import settings
from qbench.overrides import groups, prepared
from qbench.shipped import conf_dir

REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def cells(overrides: list[str]) -> list[dict]:
    """One resolved configuration a run, in the sweep's order; runs that would be the same one appear once.

    ``overrides`` as for ``qbench run``; they replace what the experiment sweeps over. With ``table: K`` only what that
    table of the paper prints. ValueError, in Hydra's words, for what Hydra refuses.
    """
    try:
        return _cells(overrides)
    except HydraException as e:
        raise ValueError(str(e)) from e


def _cells(overrides):
    overrides = prepared(overrides)
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="plan"):
        fixed, swept = _axes(overrides)
        compose = _Composer(fixed, groups())
        found = {}
        for combination in itertools.product(*swept.values()):
            raw = compose(dict(zip(swept, combination)))
            cell = _resolved(raw, raw)
            if _is_wanted(cell):
                found.setdefault(_identity(cell), cell)
    return list(found.values())


def _axes(overrides):
    """Plain overrides, and what varies: {key: [override, ...]}, the experiment's own first."""
    fixed, swept = [], {}
    parse = OverridesParser.create().parse_overrides
    mine = parse(overrides)
    chosen = [o.input_line for o in mine if o.key_or_group == "experiment"]
    first = hydra.compose("config", overrides=chosen, return_hydra_config=True)
    theirs = parse([f"{key}={value}" for key, value in (first.hydra.sweeper.params or {}).items()])
    keys = {o.key_or_group for o in mine}
    for o in [*(o for o in theirs if o.key_or_group not in keys), *mine]:
        if o.is_sweep_override():
            swept[o.key_or_group] = [f"{o.get_key_element()}={v}" for v in o.sweep_string_iterator()]
        else:
            fixed.append(o.input_line)
    return fixed, swept


class _Composer:
    """A raw configuration (plain, interpolations unresolved) for a combination of overrides."""

    def __init__(self, fixed, groups):
        self.groups = groups
        parsed = OverridesParser.create().parse_overrides(fixed)
        self.choices = [o.input_line for o in parsed if o.key_or_group in groups]
        self.values = [o for o in parsed if o.key_or_group not in groups]
        self.bases, self.checked, self.fixed = {}, False, fixed

    def __call__(self, combination: dict[str, str]) -> dict:
        if not self.checked:
            self._compose([*self.fixed, *combination.values()])  # Hydra itself refuses what is misspelt
            self.checked = True
        varied = [_override(line) for key, line in combination.items() if key not in self.groups]
        raw = self._swapped(combination)
        if raw is None or not all(_set(raw, o) for o in [*self.values, *varied]):
            return self._compose([*self.fixed, *combination.values()])
        return raw

    def _swapped(self, combination):
        """The base of this combination with the parts of its models and grids; None where parts are not separate."""
        lines = {key: line for key, line in combination.items() if key in self.groups}
        own = {key: line for key, line in lines.items() if key in ("model", "grid")}
        rest = tuple(line for key, line in lines.items() if key not in own)
        if rest not in self.bases:
            base = self._compose([*self.choices, *rest, *own.values()])
            separate = all(_part(line).items() <= base.items() for line in own.values() if _part(line))
            self.bases[rest] = base, {key: set(_part(line)) for key, line in own.items()}, separate
        base, heads, separate = self.bases[rest]
        parts = {key: _part(line) for key, line in own.items()}
        if not separate or any(not part or set(part) != heads[key] for key, part in parts.items()):
            return None
        raw = copy.deepcopy(base)
        for part in parts.values():
            raw |= copy.deepcopy(part)
        return raw

    def _compose(self, overrides):
        return _plain(hydra.compose("config", overrides=list(overrides)))


@cache
def _override(line: str):
    return OverridesParser.create().parse_override(line)


@cache
def _part(line: str) -> dict:
    """What the one file of a choice ``group=name`` writes, by top-level key; empty where it is built of others."""
    group, _, name = line.partition("=")
    text = (conf_dir() / group / f"{name}.yaml").read_text()
    content = OmegaConf.to_container(OmegaConf.create(text))
    package = re.search(r"@package\s+(\S+)", text)
    whole = package is not None and package[1] == "_global_"
    return {} if "defaults" in content else content if whole else {group: content}


def _plain(cfg) -> dict:
    """Unresolved, but for sections that ask a resolver (environment variables), which no sweep changes."""
    raw = OmegaConf.to_container(cfg, resolve=False)
    asking = [key for key in raw if "${oc." in json.dumps(raw[key])]
    return raw | {key: OmegaConf.to_container(cfg[key], resolve=True) for key in asking}


def _resolved(node, root):
    if isinstance(node, dict):
        return {key: _resolved(value, root) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolved(value, root) for value in node]
    if not isinstance(node, str) or "${" not in node:
        return node
    if not (whole := REFERENCE.fullmatch(node)):
        return REFERENCE.sub(lambda m: str(_resolved(m[0], root)), node)
    return _resolved(reduce(lambda at, key: at[key], whole[1].split("."), root), root)


def _set(raw: dict, override) -> bool:
    """Sets a plain value where it stands; False for what only Hydra knows how to do (delete, merge, follow)."""
    *path, last = override.key_or_group.split(".")
    value = override.value()
    for key in path:
        raw = raw.setdefault(key, {}) if isinstance(raw, dict) else None
    known = override.type is None or override.type.name in ("CHANGE", "ADD", "FORCE_ADD")
    if not known or not isinstance(raw, dict) or isinstance(value, dict):
        return False
    raw[last] = value
    return True


def method_of(cell: dict) -> tuple[str, int | None, int]:
    """(method, weight bits or None, activation bits) of a cell."""
    method = cell["method"]
    name, grid, acts = settings.target(method, "method").name, method.get("grid"), method.get("acts")
    return name, grid and grid["bits"], acts["bits"] if acts else 16


def _is_wanted(cell) -> bool:
    if cell.get("table") is None:
        return True
    from qbench.printed.published import is_printed

    return is_printed(cell["table"], cell["model"]["name"], *method_of(cell))


def _identity(cell) -> str:
    calib = None if method_of(cell)[0] == "none" else cell["calib"]
    return json.dumps([cell["model"], cell["method"], calib, cell["eval"]], sort_keys=True)
