"""Statistics of a metric beside its value: the difference to the unquantized model, paired item by item.

Both models saw the same items, so the error of their difference comes from the differences item by item. It is much
smaller than the errors of the two values, which the choice of items dominates. A further statistic is a further name
in ``COLUMNS`` and a further value in ``compared``, and so a further column of the frame.
"""

import math

import numpy as np

from qbench.record import Metric
from qbench.report.quality.columns import COMPARISONS

COLUMNS = ("base", "delta", "delta_stderr", "delta_note")


def compared(name: str, metric: Metric, base: Metric | None) -> dict:
    """The ``COLUMNS`` of ``metric``, called ``name``; ``base`` is the unquantized model's, None if not measured."""
    if metric is base:
        difference: tuple = 0.0, 0.0, ""
    elif name.rsplit("/", 1)[-1] in COMPARISONS:
        difference = math.nan, math.nan, "already a comparison with the unquantized model"
    else:
        difference = paired_difference(metric, base)
    return dict(zip(COLUMNS, (base.value if base else math.nan, *difference)))


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
