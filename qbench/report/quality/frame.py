"""Records as a long table: one row per measurement and metric, with its difference to the unquantized model.

Both models saw the same items, so the error of their difference comes from the differences item by item.
It is much smaller than the errors of the two values, which the choice of items dominates.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import fields

import numpy as np
import pandas as pd

from qbench.protocol import name_of
from qbench.record import Failure, Measurement, Metric
from qbench.report.quality.columns import COMPARISONS
from qbench.report.quality.variants import UNQUANTIZED, canon, eval_labels, method_of, quant_labels, quantization

OF_KERNELS = ("agreement", "latency", "noise_floor")  # evaluations of how a model runs, not of how good it is

COLUMNS = [
    *("id", "quant", "model", "model_bytes", "method", "bits", "act_bits", "group_size", "label"),
    *("nominal_bits", "stored_bits", "metric", "unit", "value", "stderr", "n", "base", "delta"),
    *("delta_stderr", "delta_note", "notes", "status", "error", "variant", "evaluation"),
    *("higher_is_better", "chance", "header", "science", "protocol"),
]


def frame(measurements: Iterable[Measurement], failures: Iterable[Failure] = (), kernels: bool = False) -> pd.DataFrame:
    """One row per measurement and metric, and one per failed measurement and metric that it would have had.

    ``delta`` is the value minus that of the unquantized model under the same evaluation, ``delta_stderr`` its paired
    standard error; both are NaN where nothing is paired, and ``delta_note`` says why. ``bits`` is NaN for a method
    without a choice of bits (BiLLM); a ``group_size`` of -1 means one group per row. ``variant`` sets apart
    quantizations that agree in these columns, ``evaluation`` the ways in which a metric was evaluated. ``failures`` are
    as ``Store.failures`` gives them; those that have been measured since are ignored. With ``kernels`` the frame has
    only the evaluations of kernels, without it all others.
    """
    measurements = [m for m in measurements if of_kernels(m.science) == kernels]
    failures = [f for f in failures if of_kernels(f["science"]) == kernels]
    unquantized = [m for m in measurements if method_of(m.science)["name"] == UNQUANTIZED]
    baselines = {canon([m.science["model"], m.science["eval"]]): m for m in unquantized}
    rows = []
    for m in measurements:
        base = baselines.get(canon([m.science["model"], m.science["eval"]]))
        shared = _identity(m.id, m.science, m.protocol, m.nominal_bits) | dict(status="ok", error="")
        shared |= dict(model_bytes=m.model_bytes, stored_bits=m.stored_bits)
        shared |= dict(notes=Counter(note for layer in m.layers for note in layer.notes))
        for key, metric in m.metrics.items():
            reference = base.metrics.get(key) if base else None
            if shared["method"] == UNQUANTIZED:
                delta, stderr, note = 0.0, 0.0, ""
            elif key.rsplit("/", 1)[-1] in COMPARISONS:
                delta, stderr, note = math.nan, math.nan, "already a comparison with the unquantized model"
            else:
                delta, stderr, note = paired_difference(metric, reference)
            row = shared | {f.name: getattr(metric, f.name) for f in fields(metric) if f.name in COLUMNS}
            row |= dict(metric=key, base=reference.value if reference else math.nan)
            rows.append(row | dict(delta=delta, delta_stderr=stderr, delta_note=note))
    rows += _failed_rows(failures, measurements)
    df = pd.DataFrame(rows, columns=COLUMNS)
    df["stderr"] = df["stderr"].astype(float)  # None is NaN
    df["variant"] = df["quant"].map(quant_labels(df["science"]))
    names = df["science"].map(lambda s: str((s.get("eval") or {}).get("name", "eval")))
    df["evaluation"] = eval_labels(df).where(lambda label: label != "", names)
    return df.sort_values(["quant", "metric", "id"], kind="stable", ignore_index=True)


def paired_difference(metric: Metric, base: Metric | None) -> tuple[float, float, str]:
    """(difference, its standard error, "" or why there is no difference).

    Where the unit is "perplexity", the samples are mean NLLs l_i of equally long windows and P = exp(mean l). By the
    delta method the error of P - P0 is that of the mean of P l_i - P0 l0_i.
    """
    if base is None:
        return math.nan, math.nan, "the unquantized model was not measured by the same evaluation"
    if not (math.isfinite(metric.value) and math.isfinite(base.value)):
        return metric.value - base.value, math.nan, ""
    if not metric.samples or not base.samples:
        return math.nan, math.nan, "no per-item outcomes were recorded: nothing to pair"
    if len(metric.samples) != len(base.samples):
        n, n0 = len(metric.samples), len(base.samples)
        return math.nan, math.nan, f"{n} items against {n0} of the unquantized model: nothing to pair"
    x, x0 = np.asarray(metric.samples, float), np.asarray(base.samples, float)
    perplexity = metric.unit == "perplexity"
    for samples, value in ((x, metric.value), (x0, base.value)):
        mean = math.exp(samples.mean()) if perplexity else samples.mean()
        if not math.isclose(mean, value, rel_tol=1e-3, abs_tol=1e-6):
            return math.nan, math.nan, "the per-item outcomes do not average to the value: nothing to pair"
    d = metric.value * x - base.value * x0 if perplexity else x - x0
    stderr = float(d.std(ddof=1)) / math.sqrt(len(d)) if len(d) > 1 else math.nan
    return metric.value - base.value, stderr, ""


def layer_frame(measurements: Iterable[Measurement]) -> pd.DataFrame:
    """One row per quantization and linear: its relative output error, in network order."""
    rows, seen = [], set()
    measurements = [m for m in measurements if m.layers and not of_kernels(m.science)]
    for m in sorted(measurements, key=lambda m: m.id):
        who = _identity(m.id, m.science, m.protocol, m.nominal_bits) | dict(model_bytes=m.model_bytes)
        if who["quant"] not in seen:
            seen.add(who["quant"])
            for i, r in enumerate(m.layers):
                rows.append(who | dict(order=i, block=r.block, name=r.name, error=r.error, notes=Counter(r.notes)))
    own = ["nominal_bits", "order", "block", "name", "error", "notes", "science"]
    return pd.DataFrame(rows, columns=[*COLUMNS[:8], *own])


def of_kernels(science: dict) -> bool:
    """Whether a record or failure with ``science`` is of the kernels and has no place in a table of quality."""
    return (science.get("eval") or {}).get("name") in OF_KERNELS


def _identity(id: str, science: dict, protocol: dict, nominal_bits: float = math.nan) -> dict:
    """The columns that say which quantized model a row is of; ``label`` is as papers write it: W4A16 g128."""
    method, grid = method_of(science), science.get("grid") or {}
    bits = 16.0 if method["name"] == UNQUANTIZED else float(grid.get("bits", math.nan))
    acts, group = float((method.get("acts") or {"bits": 16})["bits"]), float(grid.get("group_size", math.nan))
    label = f"W{nominal_bits if math.isnan(bits) else bits:.3g}A{acts:.0f}" + (f" g{group:.0f}" if group > 0 else "")
    who: dict = dict(id=id, science=science, protocol=name_of(protocol), quant=canon(quantization(science)))
    who |= dict(label=label, model=science["model"]["name"], method=method["name"], nominal_bits=nominal_bits)
    return who | dict(bits=bits, act_bits=acts, group_size=group)


def _failed_rows(failures: Iterable[Failure], measurements: list[Measurement]) -> list[dict]:
    """A row per metric that other records of the same evaluation have, or of its name; else one for the name."""
    done = {m.id for m in measurements}
    by_eval: dict[str, set[str]] = defaultdict(set)
    by_name: dict[str | None, set[str]] = defaultdict(set)
    for m in measurements:
        by_eval[canon(m.science["eval"])] |= set(m.metrics)
        by_name[m.science["eval"].get("name")] |= set(m.metrics)
    rows = []
    for f in sorted(failures, key=lambda f: f["id"]):
        if f["id"] not in done:
            ev = f["science"].get("eval") or {}
            who = _identity(f["id"], f["science"], f.get("protocol", {})) | dict(notes=Counter())
            who |= dict(status="failed", error=f["error"].strip().split("\n")[0])
            keys = by_eval.get(canon(ev)) or by_name.get(ev.get("name")) or {str(ev.get("name", "eval"))}
            rows += [who | dict(metric=key) for key in sorted(keys)]
    return rows
