"""The cells of a sweep, composed as Hydra composes them, but without asking it for each one.

Hydra takes a fifth of a second for one configuration, and a matrix has 1,200. So Hydra composes once per combination of
choices that can touch each other (method, protocol, evaluation), and the rest is varied on the plain result: a model or
a grid is one file that owns its part of the tree, so that part is exchanged (where something else writes there, Hydra
composes every cell), and a value such as ``grid.bits=3`` is set where it stands, before interpolations are resolved.
"""

import copy
import itertools
import json
import re
from collections.abc import Callable
from functools import cache, reduce

import hydra
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf

from qbench.config import Config, name_of
from qbench.files import packaged
from qbench.overrides import groups, parsed, prepared, swept_by

REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def configs(overrides: list[str], check: Callable[[Config], None] | None = None) -> tuple[list[Config], list[str]]:
    """The settings of every run of a sweep, equal runs once, and why ``qbench run`` would refuse the others.

    ``overrides`` are those of ``qbench run``; ``check`` raises ValueError or OSError for a cell that is refused. With
    ``table: K`` only what that table of the paper prints.
    """
    found, refused = {}, []
    for cell in cells(overrides):
        try:
            config = Config.of(cell)
            key = (config.model, config.method, config.calib if config.quantizes else None, *config.eval.items())
            if config.is_wanted and key not in found:
                if check:
                    check(config)
                found[key] = config
        except (ValueError, OSError) as e:
            refused.append(f"{name_of(cell)}: {e}")
    return list(found.values()), list(dict.fromkeys(refused))


def cells(overrides: list[str]) -> list[dict]:
    """One resolved configuration per combination, in the sweep's order; ValueError for what Hydra refuses."""
    try:
        with hydra.initialize_config_dir(str(packaged("conf")), version_base="1.3", job_name="plan"):
            fixed, swept = _axes(overrides)
            compose = _Composer(fixed)
            raws = [compose(list(combination)) for combination in itertools.product(*swept)]
    except HydraException as e:
        raise ValueError(str(e)) from e
    return [_resolved(raw, raw) for raw in raws]


def _axes(overrides: list[str]) -> tuple[list[Override], list[list[Override]]]:
    """Overrides that all cells share, and the choices of each axis; the experiment's own axes come first."""
    mine = [parsed(word) for word in prepared(overrides)]
    keys = {o.key_or_group for o in mine}
    theirs = {key: value for word in overrides for key, value in swept_by(word).items() if key not in keys}
    fixed, swept = [], []
    for o in [*(parsed(f"{key}={value}") for key, value in theirs.items()), *mine]:
        if o.is_sweep_override():
            swept.append([parsed(f"{o.get_key_element()}={value}") for value in o.sweep_string_iterator()])
        else:
            fixed.append(o)
    return fixed, swept


class _Composer:
    """Raw configurations: plain, with their interpolations unresolved."""

    def __init__(self, fixed: list[Override]):
        self.fixed, self.groups, self.bases = fixed, groups(), {}

    def __call__(self, varied: list[Override]) -> dict:
        exchanged = [o for o in varied if o.key_or_group in ("model", "grid")]
        joined = [o for o in (*self.fixed, *varied) if o.key_or_group in self.groups and o not in exchanged]
        values = [o for o in (*self.fixed, *varied) if o.key_or_group not in self.groups]
        key = tuple(o.input_line for o in joined)
        if key not in self.bases:
            if not self.bases:
                _compose([*self.fixed, *varied])  # Hydra refuses what is misspelt
            self.bases[key] = _compose([*joined, *exchanged]), [_part(o) for o in exchanged]
        base, old = self.bases[key]
        new = [_part(o) for o in exchanged]
        is_separate = all(p and p.items() <= base.items() for p in old) and [*map(set, old)] == [*map(set, new)]
        raw = copy.deepcopy(reduce(dict.__or__, new, base))
        return raw if is_separate and all(_set(raw, o) for o in values) else _compose([*self.fixed, *varied])


def _compose(overrides: list[Override]) -> dict:
    """Unresolved, but for sections that ask a resolver (environment variables), which no sweep changes."""
    cfg = hydra.compose("config", overrides=[o.input_line for o in overrides])
    raw = OmegaConf.to_container(cfg, resolve=False)
    asking = [key for key in raw if "${oc." in json.dumps(raw[key])]
    return raw | {key: OmegaConf.to_container(cfg[key], resolve=True) for key in asking}


@cache
def _file(group: str, name: str) -> dict:
    """What the one file of a choice writes, by top-level key; empty where it is built of others or is not there."""
    path = packaged("conf") / group / f"{name}.yaml"
    text = path.read_text() if path.is_file() else "defaults: []"
    content = OmegaConf.to_container(OmegaConf.create(text))
    is_global = re.search(r"@package\s+_global_\b", text)
    return {} if "defaults" in content else content if is_global else {group: content}


def _part(choice: Override) -> dict:
    return _file(choice.key_or_group, str(choice.value()))


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


def _set(raw: dict, override: Override) -> bool:
    """Sets a plain value where it stands; False for what only Hydra can do (delete, merge, follow)."""
    *path, last = override.key_or_group.split(".")
    value = override.value()
    for key in path:
        raw = raw.setdefault(key, {}) if isinstance(raw, dict) else None
    is_plain = override.type in (OverrideType.CHANGE, OverrideType.ADD, OverrideType.FORCE_ADD)
    if not is_plain or not isinstance(raw, dict) or isinstance(value, dict):
        return False
    raw[last] = value
    return True
