"""Which protocol a record follows: ``paper``, ``released`` or own settings, told by its science alone.

A protocol is a handful of fields in ``conf/protocol``. A record keeps the fields it was made with, so no label
has to be stored beside it and none can be wrong. The text of the paper gives ``paper``, which is also what the
configuration has by default; the authors' code gives ``released``. A field that a record does not have is one
that came later, and counts as the value it has in ``paper``.
"""

from functools import cache

import yaml

from qbench.report.quality.variants import canon, flatten, method_of
from qbench.shipped import conf_dir

PROTOCOLS = ("paper", "released")
OWN = "own settings"
ZERO_SHOT, MMLU = "zeroshot", "mmlu"
_OUTSIDE = ("_target_", "grid", "acts")  # the axes of the tables, not of the protocol
_EVALUATION = ("window", "limit", "logits", "num_fewshot", "max_length", "max_prompt", "draw")


def protocol_of(science: dict) -> str:
    """ "paper", "released" or "own settings"; of the embedded models only the method's fields count."""
    return next((p for p in PROTOCOLS if not deviations(science, p)), OWN)


def deviations(science: dict, protocol: str) -> list[str]:
    """The fields in which ``science`` is not ``protocol``, e.g. ``method.act_order=True``; ValueError if unknown."""
    check(protocol)
    found = _differ("method", method_of(science), _method(protocol, method_of(science)["name"]), _method)
    if science["model"]["name"].startswith("nano-"):
        return found
    name, calib, grid = method_of(science)["name"], science.get("calib"), science.get("grid")
    if calib:
        found += _differ("calib", calib, _calib(protocol, name), _calib)
    if grid and "symmetric" in grid and grid["symmetric"] != _symmetric(name):
        found.append(f"grid.symmetric={grid['symmetric']}")
    return found + _evaluation(science.get("eval") or {}, protocol)


def mmlu_key(protocol: str) -> str:
    """The metric that stands for MMLU in ``protocol``."""
    return f"{_protocol(protocol)['mmlu']}/acc"


def describe(protocol: str) -> list[str]:
    """Lines for the head of a table: what the evaluation is, and in what the methods differ from ``paper``."""
    p, calib = _protocol(protocol), _calib("paper", "none")
    lines = [f"Protocol: {protocol}. Calibration: {calib['source']}, {calib['n']} × {calib['length']} tokens, "
             f"seed {calib['seed']}; every method the same{' but as below' * (protocol != 'paper')}."]  # fmt: skip
    lines.append(
        f"Evaluator: perplexity over windows of {_eval('wikitext2')['window']} tokens, logits {p['logits']}, C4 "
        f"{p['c4']}; lm-eval's acc, zero-shot and {p['mmlu']} {_eval(MMLU)['num_fewshot']}-shot, max_prompt "
        f"{'none' if p['max_prompt'] is None else p['max_prompt']}."
    )
    changed: dict[str, list[str]] = {}
    for path in sorted((conf_dir() / "protocol" / "method").glob(f"{protocol}_*.yaml")):
        fields = ", ".join(f"{k}={'none' if v is None else v}" for k, v in flatten(_load(path)).items())
        changed.setdefault(fields, []).append(path.stem.removeprefix(protocol + "_"))
    lines += [f"{', '.join(names)}: {fields}." for fields, names in changed.items()]
    return lines


def check(protocol: str) -> None:
    """ValueError for a protocol that does not exist."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")


def _evaluation(ev: dict, protocol: str) -> list[str]:
    p, tasks = _protocol(protocol), set(ev.get("tasks") or ())
    source, found = ev.get("source"), []
    which = MMLU if tasks & {_protocol(q)["mmlu"] for q in PROTOCOLS} else ZERO_SHOT if tasks else source
    wanted = {}
    if which in ("wikitext2", "c4", ZERO_SHOT, MMLU):
        wanted = {k: _eval(which).get(k) for k in _EVALUATION if k in _eval(which)}
    own = {"max_prompt": p["max_prompt"]} if tasks else {"logits": p["logits"]}
    own |= {"draw": p["c4"]} if source == "c4" else {}
    paper = _protocol("paper")
    usual = wanted | ({"max_prompt": paper["max_prompt"]} if tasks else {"logits": paper["logits"]})
    usual |= {"draw": paper["c4"]} if source == "c4" else {}
    for key, value in (wanted | own).items():
        if canon(ev.get(key, usual[key])) != canon(value):
            found.append(f"eval.{key}={ev.get(key, usual[key])}")
    if which == MMLU and p["mmlu"] not in tasks:
        found.append(f"eval.tasks={','.join(sorted(tasks))}")
    return found


def _differ(scope: str, have: dict, wanted: dict, of) -> list[str]:
    """Fields of ``have`` that are not as ``wanted``; one that is missing is as in ``paper``."""
    usual = of("paper", have.get("name", "none")) if scope == "method" else of("paper", "none")
    found = []
    for key, value in wanted.items():
        mine = have.get(key, usual.get(key))
        off = value is None and mine is False  # a switch that the configuration of `paper` does not name
        if canon(mine) != canon(value) and not off:
            found.append(f"{scope}.{key}={mine}")
    return found


@cache
def _method(protocol: str, name: str) -> dict:
    """The fields of a method under a protocol, without those of the grid."""
    path = conf_dir() / "method" / f"{name}.yaml"
    usual = {k: v for k, v in (_load(path) if path.is_file() else {}).items() if k not in _OUTSIDE}
    changed = {k: None for q in PROTOCOLS for k in _changed(q, name).get("method", {}) if k not in usual}
    return usual | changed | _changed(protocol, name).get("method", {})


@cache
def _calib(protocol: str, name: str) -> dict:
    """The fields of the calibration of a method under a protocol."""
    usual = {k: v for k, v in _load(conf_dir() / "calib" / "c4.yaml").items() if k not in ("_target_", "path")}
    usual = {"n": 128, "length": 2048} | {k: v for k, v in usual.items() if v is not None}
    changed = {k: None for q in PROTOCOLS for k in _changed(q, name).get("calib", {}) if k not in usual}
    return usual | changed | _changed(protocol, name).get("calib", {})


def _changed(protocol: str, name: str) -> dict:
    path = conf_dir() / "protocol" / "method" / f"{protocol}_{name}.yaml"
    return _load(path) if path.is_file() else {}


@cache
def _protocol(name: str) -> dict:
    check(name)
    return _load(conf_dir() / "protocol" / f"{name}.yaml")


@cache
def _eval(name: str) -> dict:
    """An evaluation of the paper, without the fields that it takes from the protocol."""
    fields = _load(conf_dir() / "eval" / f"{name}.yaml")
    return {k: v for k, v in fields.items() if "${" not in str(v)}


def _symmetric(name: str) -> bool:
    path = conf_dir() / "method" / f"{name}.yaml"
    grid = _load(path).get("grid") if path.is_file() else None
    return bool((grid if isinstance(grid, dict) else _load(conf_dir() / "grid" / "g128.yaml"))["symmetric"])


def _load(path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
