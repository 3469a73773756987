"""What tells two records of one table cell apart, so that nothing is merged in silence.

A table shows model, method, bits and group size in columns of their own. Every other field that takes more
than one value among the records of a table becomes part of the row's label, e.g. ``act_order=True``.
"""

import json
import re
from collections import defaultdict

import pandas as pd

UNQUANTIZED = "none"
_SHOWN = {"name", "grid.bits", "grid.group_size", "acts.bits"}
_HASH = re.compile(r"[0-9a-f]{8,}")


def canon(x) -> str:
    """The sorted JSON of ``x``: equal text, equal science."""
    return json.dumps(x, sort_keys=True, separators=(",", ":"))


def quantization(science: dict) -> dict:
    """What made the quantized model: the science without the evaluation."""
    return {k: v for k, v in science.items() if k != "eval"}


def method_of(science: dict) -> dict:
    return science.get("method") or {"name": UNQUANTIZED}


def flaw(science: dict) -> str:
    """What keeps a record or failure with ``science`` out of every table, or ""."""
    method, grid = method_of(science), science.get("grid") or {}
    for part, d in (("model", science.get("model")), ("method", method)):
        if not isinstance(d, dict) or not isinstance(d.get("name"), str):
            return f"its {part} has no name in letters: {d!r}"
    if not isinstance(science.get("eval"), dict):
        return f"it names no evaluation: {science.get('eval')!r}"
    acts = method.get("acts") or {"bits": 16}
    for part, d, fields in (("grid", grid, [k for k in ("bits", "group_size") if k in grid]), ("acts", acts, ["bits"])):
        if not isinstance(d, dict) or not all(isinstance(d.get(k), int | float) for k in fields):
            return f"its {part} is not in numbers: {d!r}"
    return ""


def flatten(d: dict, prefix: str = "") -> dict[str, object]:
    """Nested dicts with dotted keys; lists as their JSON."""
    flat = {}
    for k, v in d.items():
        if isinstance(v, dict):
            flat |= flatten(v, f"{prefix}{k}.")
        else:
            flat[prefix + k] = canon(v) if isinstance(v, list | tuple) else v
    return flat


def is_hash(value) -> bool:
    return isinstance(value, str) and bool(_HASH.fullmatch(value))


def distinguish(dicts: list[dict], ignore: set[str] | frozenset[str] = frozenset()) -> list[str]:
    """For each dict, the values of the fewest fields that tell the distinct ones apart; "" where all agree.

    Fields are taken in the order of their names, digests last, and only where they split a set further.
    """
    flat = [{k: v for k, v in flatten(d).items() if k not in ignore} for d in dicts]
    values = defaultdict(list)
    for key in {k for f in flat for k in f}:
        values[key] = [f.get(key) for f in flat]
    varying = [k for k, vs in values.items() if len({canon(v) for v in vs}) > 1]
    varying.sort(key=lambda k: (any(is_hash(v) for v in values[k]), k))
    labels, parts = [[] for _ in flat], [()] * len(flat)
    for key in varying:
        finer = [(*p, canon(v)) for p, v in zip(parts, values[key])]
        if len(set(finer)) > len(set(parts)):
            parts = finer
            for label, v in zip(labels, values[key]):
                label.append(f"{key}={_short(v)}")
    return [", ".join(label) for label in labels]


def quant_labels(sciences: list[dict]) -> dict[str, str]:
    """For each quantization (as ``canon``): the fields outside the table's columns in which it differs.

    Model fields are compared among records of one model, method and grid among those of one method,
    calibration among all that use one.
    """
    unique = {canon(quantization(s)): quantization(s) for s in sciences}
    labels = {q: [] for q in unique}
    scopes = (
        ("model", lambda s: s["model"]["name"], lambda s: s["model"]),
        ("method", lambda s: method_of(s)["name"], lambda s: method_of(s) | {"grid": s.get("grid") or {}}),
        ("calib", lambda s: "calib" if s.get("calib") else None, lambda s: s["calib"]),
    )
    for scope, who, part in scopes:
        groups = defaultdict(list)
        for q, s in unique.items():
            if who(s) is not None:
                groups[who(s)].append(q)
        for qs in groups.values():
            ignore = set() if scope == "calib" else _SHOWN
            for q, label in zip(qs, distinguish([part(unique[q]) for q in qs], ignore)):
                if label:
                    labels[q].append(f"calib {label}" if scope == "calib" else label)
    return {q: ", ".join(label) for q, label in labels.items()}


def eval_labels(df: pd.DataFrame) -> pd.Series:
    """For each row of a long frame: how its evaluation differs from others with a metric in common, or "".

    All metrics of one evaluation have the same label, so that a row of a table can be of one evaluation. What follows
    from the tokenizer, one value for each model (the digest of the tokens, the windows they fill), is no difference.
    """
    labels, evals = pd.Series("", index=df.index), df["science"].map(lambda s: canon(s.get("eval") or {}))
    kin: list[set[str]] = []
    for metrics in df.groupby(evals)["metric"].agg(set):
        touching = [k for k in kin if k & metrics]
        kin = [k for k in kin if not k & metrics] + [metrics.union(*touching)]
    for metrics in kin:
        rows = df[df["metric"].isin(metrics)]
        unique = {key: json.loads(key) for key in evals[rows.index]}
        per_model = defaultdict(lambda: defaultdict(set))
        for model, key in {*zip(rows["model"], evals[rows.index])}:
            for field, value in flatten(unique[key]).items():
                if is_hash(value) or field == "windows":
                    per_model[field][model].add(canon(value))
        ignore = {field for field, models in per_model.items() if all(len(v) == 1 for v in models.values())}
        for (key, ev), label in zip(unique.items(), distinguish(list(unique.values()), ignore)):
            if label:
                name = ev.get("name", "eval")
                rest = [part for part in label.split(", ") if part != f"name={name}"]
                labels[rows.index[evals[rows.index] == key]] = " ".join([str(name), ", ".join(rest)]).strip()
    return labels


def _short(v) -> str:
    if v is None:
        return "none"
    return v[:8] if is_hash(v) else str(v)
