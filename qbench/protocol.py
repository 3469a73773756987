"""Which protocol a measurement follows: judged from its settings when it is measured, and stored with its record.

A protocol is a set of fields in ``conf/protocol``: ``paper``, the default, holds what the text of the paper states, and
``released`` what the authors' code does. A measurement follows a protocol if it has all of these values. Reports read
the stored judgement and never today's configuration.
"""

import json
from functools import cache

from qbench.files import packaged

PROTOCOLS = ("paper", "released")
OWN, NOT_STORED = "own settings", "not stored"
MMLU_TASKS = {"mmlu", "mmlu_hendrycks"}  # what lm-eval calls the MMLU of each protocol


def judge(science: dict) -> dict:
    """``{"name": ..., "deviations": {protocol: [field=value, ...]}}`` of a measurement with this ``science``.

    ``name`` is the first protocol without a deviation, or "own settings".
    """
    found = {protocol: deviations(science, protocol) for protocol in PROTOCOLS}
    return {"name": next((p for p in PROTOCOLS if not found[p]), OWN), "deviations": found}


def name_of(stored: dict) -> str:
    """The name in what ``judge`` gave; "not stored" for ``{}``, which records of earlier versions have."""
    return stored.get("name", NOT_STORED)


def deviations(science: dict, protocol: str) -> list[str]:
    """The fields of ``science`` that differ from ``protocol``, such as ``method.act_order=True``.

    Of the embedded models only the method's fields count, since they have texts and questions of their own.
    """
    science = json.loads(json.dumps(science))  # tuples as the lists of yaml
    method, ev = science.get("method") or {"name": "none"}, science.get("eval") or {}
    wanted = _composed(protocol, method["name"], _evaluation(ev))
    found = _differ("method", method, {k: v for k, v in wanted["method"].items() if k not in ("grid", "acts")})
    if science["model"]["name"].startswith("nano-"):
        return found
    if calib := science.get("calib"):
        found += _differ("calib", calib, {k: v for k, v in wanted["calib"].items() if k != "path"})
    if grid := science.get("grid"):
        symmetric = (wanted["method"].get("grid") or wanted["grid"])["symmetric"]
        found += _differ("grid", grid, {"symmetric": symmetric})
    return found + _eval_deviations(ev, wanted)


def _evaluation(ev: dict) -> str | None:
    """The evaluation of the paper that ``ev`` is a case of, as conf/eval names it."""
    if tasks := ev.get("tasks"):
        return "mmlu" if MMLU_TASKS & set(tasks) else "zeroshot"
    return ev["source"] if ev.get("source") in ("wikitext2", "c4") else None


def _eval_deviations(ev: dict, wanted: dict) -> list[str]:
    protocol, fields = wanted["protocol"], wanted["eval"]
    if tasks := ev.get("tasks"):
        found = _differ("eval", ev, {key: fields[key] for key in ("num_fewshot", "limit", "max_length", "max_prompt")})
        mmlu = sorted(MMLU_TASKS & set(tasks))
        return found + ([f"eval.tasks={','.join(mmlu)}"] if mmlu not in ([], [protocol["mmlu"]]) else [])
    asked = {key: fields[key] for key in ("window", "limit") if key in fields} | {"logits": protocol["logits"]}
    asked |= {"draw": protocol["c4"]} if ev.get("source") == "c4" else {}
    return _differ("eval", {"logits": "float32"} | ev, asked)  # divergences have float32 logits and no such field


def _differ(part: str, have: dict, wanted: dict) -> list[str]:
    return [f"{part}.{key}={have.get(key)}" for key, value in wanted.items() if have.get(key) != value]


@cache
def _composed(protocol: str, method: str, evaluation: str | None) -> dict[str, dict]:
    """conf/ composed for one method and evaluation under ``protocol``, as Hydra does it in far more time."""
    from omegaconf import OmegaConf  # reports read what is stored and do without it

    def load(group: str, choice: str | None):
        path = packaged("conf") / group / f"{choice}.yaml"
        return OmegaConf.load(path) if path.is_file() else {}

    groups = {"protocol": protocol, "grid": "g128", "method": method, "calib": "c4", "eval": evaluation}
    conf = OmegaConf.create({group: load(group, choice) for group, choice in groups.items()})
    conf.merge_with(load("protocol/method", f"{protocol}_{method}"))
    OmegaConf.resolve(conf)
    return {group: {str(k): v for k, v in conf[group].items() if k != "_target_"} for group in groups}
