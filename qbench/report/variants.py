"""What tells two records of one table cell apart, so that nothing is merged in silence.

A table shows model, method, bits and group size in columns of their own. Every other field that takes more
than one value among the records of a table becomes part of the row's label, e.g. ``act_order=True``.
"""

import re
from collections import defaultdict

import pandas as pd

from qbench.report.frame import canon, method_of, quantization

_SHOWN = {"name", "grid.bits", "grid.group_size", "acts.bits"}
_HASH = re.compile(r"[0-9a-f]{8,}")


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
    """For each row of a long frame: how its evaluation differs from others of the same metric, or "".

    A digest that is one for each model (the token ids under its own tokenizer) is no difference.
    """
    labels = pd.Series("", index=df.index)
    for _, rows in df.groupby("metric"):
        evals = [s.get("eval") or {} for s in rows["science"]]
        per_model = defaultdict(lambda: defaultdict(set))
        for model, e in zip(rows["model"], evals):
            for key, value in flatten(e).items():
                per_model[key][model].add(canon(value))
        ignore = {
            key
            for key, models in per_model.items()
            if all(len(v) == 1 for v in models.values()) and any(is_hash(flatten(e).get(key)) for e in evals)
        }
        for i, e, label in zip(rows.index, evals, distinguish(evals, ignore)):
            labels[i] = f"{e.get('name', 'eval')} {label}" if label else ""
    return labels


def _short(v) -> str:
    if v is None:
        return "none"
    return v[:8] if is_hash(v) else str(v)
