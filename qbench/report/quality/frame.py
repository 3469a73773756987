"""Records as a long table: one row per measurement and metric, with its difference to the unquantized model."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import fields

import pandas as pd

from qbench.protocol import name_of
from qbench.record import Failure, Measurement, Metric
from qbench.report.quality.columns import COMPARISONS
from qbench.report.quality.variants import (
    UNQUANTIZED,
    canon,
    eval_labels,
    grid_of,
    method_of,
    quant_labels,
    quantization,
)
from qbench.significance import clustered_stderr, paired_difference, with_subjects

OF_KERNELS = ("agreement", "latency", "noise_floor")  # evaluations of how a model runs, not of how good it is

WHO = ["id", "quant", "model", "model_bytes", "method", "bits", "act_bits", "group_size"]
COLUMNS = [
    *(*WHO, "label", "nominal_bits", "stored_bits", "metric", "unit", "value", "stderr", "n"),
    *("delta", "delta_stderr", "delta_note", "stderr_by_subject", "outcomes", "subjects", "notes", "status", "error"),
    *("variant", "evaluation", "higher_is_better", "chance", "header", "science", "protocol"),
]


def frame(measurements: Iterable[Measurement], failures: Iterable[Failure] = (), kernels: bool = False) -> pd.DataFrame:
    """One row per measurement and metric, and one per failed measurement and metric that it would have had.

    ``delta`` is the value minus that of the unquantized model under the same evaluation, ``delta_stderr`` its paired
    standard error; both are NaN where nothing is paired, and ``delta_note`` says why. ``stderr_by_subject`` is the
    standard error of a task group if the questions of a subject depend on each other. ``outcomes`` is the Metric with
    its outcomes per item, and ``subjects`` has a number per item, equal within a subject. ``bits`` is NaN for a method
    without a choice of bits (BiLLM); a ``group_size`` of -1 means one group per row. ``variant`` sets apart
    quantizations that agree in these columns, ``evaluation`` the ways in which a metric was evaluated. ``failures`` are
    as ``Store.failures`` gives them; those that have been measured since are ignored. With ``kernels`` the frame has
    only the evaluations of kernels, without it all others.
    """
    measurements = [m for m in measurements if of_kernels(m.science) == kernels]
    failures = [f for f in failures if of_kernels(f["science"]) == kernels]
    unquantized = [m for m in measurements if method_of(m.science)["name"] == UNQUANTIZED]
    outcomes = {m.id: with_subjects(m.metrics) for m in measurements}
    baselines = {canon([m.science["model"], m.science["eval"]]): outcomes[m.id] for m in unquantized}
    rows = []
    for m in measurements:
        base = baselines.get(canon([m.science["model"], m.science["eval"]]), {})
        shared = _identity(m.id, m.science, m.protocol, m.nominal_bits) | dict(status="ok", error="")
        shared |= dict(model_bytes=m.model_bytes, stored_bits=m.stored_bits)
        shared |= dict(notes=Counter(note for layer in m.layers for note in layer.notes))
        for key, (metric, subjects) in outcomes[m.id].items():
            own = {f.name: getattr(metric, f.name) for f in fields(metric) if f.name in COLUMNS}
            own |= dict(metric=key, outcomes=metric, subjects=subjects)
            if subjects is not None:
                own["stderr_by_subject"] = clustered_stderr(metric.samples, subjects)
            rows.append(shared | own | _difference(key, metric, base.get(key, (None,))[0]))
    rows += _failed_rows(failures, measurements)
    df = pd.DataFrame(rows, columns=COLUMNS)
    df["stderr"] = df["stderr"].astype(float)  # None is NaN
    df["variant"] = _variants(df)
    names = df["science"].map(lambda s: str((s.get("eval") or {}).get("name", "eval")))
    df["evaluation"] = eval_labels(df).where(lambda label: label != "", names)
    return df.sort_values(["quant", "metric", "id"], kind="stable", ignore_index=True)


def layer_frame(measurements: Iterable[Measurement]) -> pd.DataFrame:
    """One row per quantization and linear: its relative output error, in network order."""
    first: dict[str, Measurement] = {}  # by quantization
    for m in sorted(measurements, key=lambda m: m.id):
        if m.layers and not of_kernels(m.science):
            first.setdefault(canon(quantization(m.science)), m)
    rows = []
    for m in first.values():
        who = _identity(m.id, m.science, m.protocol, m.nominal_bits) | dict(model_bytes=m.model_bytes)
        for i, r in enumerate(m.layers):
            rows.append(who | dict(order=i, block=r.block, name=r.name, error=r.error, notes=Counter(r.notes)))
    df = pd.DataFrame(rows, columns=[*WHO, "nominal_bits", "order", "block", "name", "error", "notes", "science"])
    return df.assign(variant=_variants(df))


def _variants(df: pd.DataFrame) -> pd.Series:
    """What sets a row's quantization apart within its model: another model's calibration is no variant."""
    labels = {}
    for _, mine in df.groupby("model"):
        labels |= quant_labels(mine["science"])
    return df["quant"].map(labels)


def of_kernels(science: dict) -> bool:
    """Whether a record or failure with ``science`` is of the kernels and has no place in a table of quality."""
    return (science.get("eval") or {}).get("name") in OF_KERNELS


def _identity(id: str, science: dict, protocol: dict, nominal_bits: float = math.nan) -> dict:
    """The columns that say which quantized model a row is of; ``label`` is as papers write it: W4A16 g128."""
    method, grid = method_of(science), grid_of(science)
    bits = 16.0 if method["name"] == UNQUANTIZED else float(grid.get("bits", math.nan))
    acts, group = float((method.get("acts") or {"bits": 16})["bits"]), float(grid.get("group_size", math.nan))
    label = f"W{nominal_bits if math.isnan(bits) else bits:.3g}A{acts:.0f}" + (f" g{group:.0f}" if group > 0 else "")
    who: dict = dict(id=id, science=science, protocol=name_of(protocol), quant=canon(quantization(science)))
    who |= dict(label=label, model=science["model"]["name"], method=method["name"], nominal_bits=nominal_bits)
    return who | dict(bits=bits, act_bits=acts, group_size=group)


def _difference(key: str, metric: Metric, base: Metric | None) -> dict:
    """The paired difference of ``metric``, called ``key``, to the unquantized model's, None if not measured."""
    if metric is base:
        found: tuple = 0.0, 0.0, ""
    elif key.rsplit("/", 1)[-1] in COMPARISONS:
        found = math.nan, math.nan, "already a comparison with the unquantized model"
    else:
        found = paired_difference(metric, base)
    return dict(zip(("delta", "delta_stderr", "delta_note"), found))


def _failed_rows(failures: Iterable[Failure], measurements: list[Measurement]) -> list[dict]:
    """A row per metric that other records of the same evaluation have, or of its name; else one for the name."""
    done = {m.id for m in measurements}
    known: dict[str, set[str]] = defaultdict(set)  # by evaluation, and by its name
    for m in measurements:
        for which in (canon(m.science["eval"]), m.science["eval"].get("name")):
            known[which] |= set(m.metrics)
    rows = []
    for f in sorted(failures, key=lambda f: f["id"]):
        if f["id"] not in done:
            ev = f["science"].get("eval") or {}
            who = _identity(f["id"], f["science"], f.get("protocol", {})) | dict(notes=Counter())
            who |= dict(status="failed", error=f["error"].strip().split("\n")[0])
            keys = known.get(canon(ev)) or known.get(ev.get("name")) or {str(ev.get("name", "eval"))}
            rows += [who | dict(metric=key) for key in sorted(keys)]
    return rows
