"""What sets two records in one place of a table apart, so that records are never merged silently.

A table shows model, method, bits and group size in columns of their own. Every other field with more than one value
among the records of a table becomes part of the row's label, such as ``act_order=True``.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable

import pandas as pd

UNQUANTIZED = "none"
GRID = ("bits", "group_size", "symmetric")
_SHOWN = {"name", "grid.bits", "grid.group_size", "acts.bits"}
_HASH = re.compile(r"[0-9a-f]{8,}")


def canon(x: object) -> str:
    """The sorted JSON of ``x``: equal values have equal text."""
    return json.dumps(x, sort_keys=True, separators=(",", ":"))


def quantization(science: dict) -> dict:
    """What made the quantized model: the science without the evaluation."""
    return {k: v for k, v in science.items() if k != "eval"}


def method_of(science: dict) -> dict:
    """The method's part of a science. A model that came quantized has one of its own, named by who made the model."""
    if not (told := _as_stored(science)):
        return science.get("method") or {"name": UNQUANTIZED}
    owner = science["model"]["repo"].rpartition("/")[0] or "others"
    return {"name": f"{told['quant_method']} by {owner}", "acts": told.get("acts")}


def grid_of(science: dict) -> dict:
    """The grid of the weights; {} without one."""
    return science.get("grid") or {k: v for k, v in _as_stored(science).items() if k in GRID}


def _as_stored(science: dict) -> dict:
    """What the files say of a model that came quantized; {} of any other."""
    model = science.get("model")
    return (model.get("quantized") if isinstance(model, dict) else None) or {}


def flaw(science: dict) -> str:
    """Why no table can show a record or failure with this ``science``; "" if it can be shown."""
    method, grid = method_of(science), grid_of(science)
    for part, d in (("model", science.get("model")), ("method", method)):
        if not isinstance(d, dict) or not isinstance(d.get("name"), str):
            return f"its {part} has no name that is a text: {d!r}"
    if not isinstance(science.get("eval"), dict):
        return f"it names no evaluation: {science.get('eval')!r}"
    acts = method.get("acts") or {"bits": 16}
    for part, d, fields in (("grid", grid, [k for k in ("bits", "group_size") if k in grid]), ("acts", acts, ["bits"])):
        if not isinstance(d, dict) or not all(isinstance(d.get(k), int | float) for k in fields):
            return f"its {part} has fields that are not numbers: {d!r}"
    return ""


def flatten(d: dict, prefix: str = "") -> dict[str, object]:
    """Nested dicts with dotted keys; lists as their JSON."""
    flat: dict[str, object] = {}
    for k, v in d.items():
        if isinstance(v, dict):
            flat |= flatten(v, f"{prefix}{k}.")
        else:
            flat[prefix + k] = canon(v) if isinstance(v, list | tuple) else v
    return flat


def is_hash(value: object) -> bool:
    return isinstance(value, str) and bool(_HASH.fullmatch(value))


def distinguish(dicts: list[dict], ignore: set[str] | frozenset[str] = frozenset()) -> list[str]:
    """Per dict, the values of a few fields that together differ for any two distinct dicts; "" where all agree.

    Fields are tried by name, digests last; one is taken only if it sets more of the dicts apart.
    """
    flat = [{k: v for k, v in flatten(d).items() if k not in ignore} for d in dicts]

    def apart(*keys: str) -> int:
        return len({tuple(canon(f.get(k)) for k in keys) for f in flat})

    taken: list[str] = []
    for key in sorted({k for f in flat for k in f}, key=lambda k: (any(is_hash(f.get(k)) for f in flat), k)):
        if apart(*taken, key) > apart(*taken):
            taken.append(key)
    return [", ".join(f"{key}={short_value(f.get(key))}" for key in taken) for f in flat]


def quant_labels(sciences: Iterable[dict]) -> dict[str, str]:
    """Per quantization (as ``canon``): its values of fields that have no column but differ among ``sciences``.

    Fields of the model are compared among records of one model, those of method and grid among records of one method,
    those of the calibration among all records that have one.
    """
    unique = {canon(quantization(s)): quantization(s) for s in sciences}
    labels: dict[str, list[str]] = {q: [] for q in unique}
    scopes = (
        ("model", lambda s: s["model"]["name"], lambda s: s["model"]),
        ("method", lambda s: method_of(s)["name"], lambda s: method_of(s) | {"grid": grid_of(s)}),
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
    """Per row of a long frame, how its evaluation differs from others that share a metric with it; "" if it does not.

    All metrics of one evaluation have the same label, so that each row of a table can be of one evaluation. Fields
    that have one value per model (the digest of the tokens, the number of windows, the unquantized model that one by
    others is compared with) do not count as a difference.
    """
    evals = df["science"].map(lambda s: canon(s.get("eval") or {}))
    metrics, models = ({key: set(part) for key, part in df.groupby(evals)[column]} for column in ("metric", "model"))
    labels = {}
    for key in metrics:
        near = {other: json.loads(other) for other in metrics if metrics[other] & metrics[key]}
        values: dict[str, dict[str, set]] = defaultdict(lambda: defaultdict(set))  # by field and model
        for other, ev in near.items():
            for field, value in flatten(ev).items():
                for model in models[other] if is_hash(value) or field.startswith(("windows", "base.")) else ():
                    values[field][model].add(canon(value))
        ignore = {field for field, by_model in values.items() if all(len(v) == 1 for v in by_model.values())}
        label = dict(zip(near, distinguish(list(near.values()), ignore)))[key]
        name = str(near[key].get("name", "eval"))
        rest = [part for part in label.split(", ") if part != f"name={name}"]
        labels[key] = " ".join([name, ", ".join(rest)]).strip() if label else ""
    return evals.map(labels)


def short_value(v: object) -> str:
    """A value as labels show it, digests in 8 digits."""
    return "none" if v is None else str(v)[:8] if is_hash(v) else str(v)
