"""Statistics of a metric beside its value: its paired difference to the unquantized model, and errors by subject.

Both models saw the same items, so the error of their difference comes from the differences item by item. It is much
smaller than the errors of the two values, which the choice of items dominates. A further statistic is a further name
in ``COLUMNS`` and a further value in ``compared``, and so a further column of the frame.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qbench.record import Metric
from qbench.report.quality.columns import COMPARISONS
from qbench.significance import clustered_stderr, members, paired_difference

COLUMNS = ("base", "delta", "delta_stderr", "delta_note", "stderr_by_subject", "outcomes", "subjects")


def with_subjects(metrics: Mapping[str, Metric]) -> dict[str, tuple[Metric, np.ndarray | None]]:
    """Each metric with, for a task group, the subject of each question; subjects get their outcomes from the group."""
    found: dict[str, tuple[Metric, np.ndarray | None]] = {key: (metric, None) for key, metric in metrics.items()}
    for key, metric in metrics.items():
        if parts := members(metrics, key):
            found[key] = metric, np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])
            found |= {name: (replace(metrics[name], samples=part), None) for name, part in parts.items()}
    return found


def compared(name: str, metric: Metric, subjects: np.ndarray | None, base: Metric | None) -> dict:
    """The ``COLUMNS`` of ``metric``, called ``name``; ``base`` is the unquantized model's, None if not measured."""
    if metric is base:
        difference: tuple = 0.0, 0.0, ""
    elif name.rsplit("/", 1)[-1] in COMPARISONS:
        difference = math.nan, math.nan, "already a comparison with the unquantized model"
    else:
        difference = paired_difference(metric, base)
    clustered = math.nan if subjects is None else clustered_stderr(metric.samples, subjects)
    return dict(zip(COLUMNS, (base.value if base else math.nan, *difference, clustered, metric, subjects)))
