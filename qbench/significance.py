"""Whether two models differ by more than noise, from their outcomes on the same items.

Differences are paired: item i of one model against item i of the other, so that how hard the items are cancels. Right
and wrong answers are tested by McNemar's exact test, which looks only at the answers that flip. Everything else, such
as the mean negative log-likelihoods of windows, is tested by the paired t test.

Questions of one subject are alike, so the error of a mean over subjects can be larger than over as many independent
questions; ``clustered_stderr`` takes that into account, as Miller (arXiv 2411.00640) advises.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from qbench.record import Metric

LEVEL, POWER = 0.05, 0.8  # of a two-sided test: how often it may see what is not there, and must see what is


@dataclass(frozen=True)
class Comparison:
    """One model against another on the same items.

    ``difference``  of the values
    ``stderr``      its paired standard error
    ``clustered``   the same where items of one subject depend on each other; nan without subjects
    ``p``           two-sided, of no difference
    ``visible``     the smallest true difference that such a test finds with a probability of 80 %, at 5 %
    ``flips``       (right to wrong, wrong to right) from the second model to the first; None unless outcomes are 0 or 1
    ``note``        why there is no comparison, or ""
    """

    difference: float = math.nan
    stderr: float = math.nan
    clustered: float = math.nan
    p: float = math.nan
    visible: float = math.nan
    flips: tuple[int, int] | None = None
    note: str = ""


def compare(metric: Metric, base: Metric | None, subjects: np.ndarray | None = None) -> Comparison:
    """``metric`` against ``base``; ``subjects`` has a number per item, equal for items of one subject.

    Infinite values have a difference and no test.
    """
    difference, stderr, note = paired_difference(metric, base)
    if math.isnan(stderr):
        return Comparison(difference, note=note)
    d, n = _contributions(metric, base), metric.n
    visible, flips = _noncentrality(n - 1) * stderr, None
    if is_answers(metric) and is_answers(base):
        flips = flipped(base.samples, metric.samples)
        p = mcnemar(*flips)
        visible = max(visible, _least_flips(n))
    else:
        p = float(stats.ttest_rel(metric.samples, base.samples).pvalue) if d.any() else 1.0
    clustered = math.nan if subjects is None else clustered_stderr(d, subjects)
    return Comparison(difference, stderr, clustered, p, visible, flips)


def paired_difference(metric: Metric, base: Metric | None) -> tuple[float, float, str]:
    """(difference, its standard error, "" or why there is no difference)."""
    if base is None:
        return math.nan, math.nan, "the unquantized model was not measured by the same evaluation"
    if not (math.isfinite(metric.value) and math.isfinite(base.value)):
        return metric.value - base.value, math.nan, ""
    if not metric.samples or not base.samples:
        return math.nan, math.nan, "no per-item outcomes were recorded: nothing to pair"
    if len(metric.samples) != len(base.samples):
        n, n0 = len(metric.samples), len(base.samples)
        return math.nan, math.nan, f"{n} items against {n0} of the unquantized model: nothing to pair"
    for m in (metric, base):
        mean = math.exp(np.mean(m.samples)) if m.unit == "perplexity" else np.mean(m.samples)
        if not math.isclose(mean, m.value, rel_tol=1e-3, abs_tol=1e-6):
            return math.nan, math.nan, "the per-item outcomes do not average to the value: nothing to pair"
    d = _contributions(metric, base)
    return metric.value - base.value, float(d.std(ddof=1)) / math.sqrt(len(d)) if len(d) > 1 else math.nan, ""


def _contributions(metric: Metric, base: Metric) -> np.ndarray:
    """Numbers per item, the error of whose mean is that of the difference of the values.

    Where the unit is "perplexity", the samples are mean NLLs l_i of equally long windows and P = exp(mean l). By the
    delta method the error of P - P0 is that of the mean of P l_i - P0 l0_i.
    """
    x, x0 = np.asarray(metric.samples, float), np.asarray(base.samples, float)
    return metric.value * x - base.value * x0 if metric.unit == "perplexity" else x - x0


def is_answers(metric: Metric) -> bool:
    """Whether the outcomes are those of questions: 1 for right and 0 for wrong."""
    return bool(metric.samples) and set(metric.samples) <= {0, 1}


def flipped(before: ArrayLike, after: ArrayLike) -> tuple[int, int]:
    """How many answers went from right to wrong, and from wrong to right."""
    change = np.asarray(after, int) - np.asarray(before, int)
    return int((change < 0).sum()), int((change > 0).sum())


def mcnemar(lost: int, won: int) -> float:
    """McNemar's exact two-sided p: how likely flips are this one-sided where both directions are equally likely."""
    return float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def clustered_stderr(x: ArrayLike, clusters: ArrayLike) -> float:
    """Standard error of the mean of ``x`` where only items of different ``clusters`` are independent; nan for one."""
    x = np.asarray(x, float)
    sums = np.bincount(np.unique(clusters, return_inverse=True)[1], weights=x - x.mean())
    g = len(sums)
    return math.sqrt(g / (g - 1) * float(sums @ sums)) / len(x) if g > 1 else math.nan


def holm(p: ArrayLike) -> list[float]:
    """Holm's step-down correction of many p: the chance that any of those at or below 5 % is wrong stays at 5 %."""
    order, left = np.argsort(p), np.arange(np.size(p), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p)[order] * left))
    return corrected.tolist()


def with_subjects(metrics: Mapping[str, Metric]) -> dict[str, tuple[Metric, np.ndarray | None]]:
    """Each metric with, for a task group, a number per question that is equal within a subject.

    A record holds a group's outcomes as one list, subject after subject, and of the subjects only their sizes and
    values; here they get their part of the list. Where parts and values do not fit, all stays as it is.
    """
    found: dict[str, tuple[Metric, np.ndarray | None]] = {key: (metric, None) for key, metric in metrics.items()}
    for key, group in metrics.items():
        kind = key.rpartition("/")[2]
        parts = {k: m for k, m in metrics.items() if k != key and k.endswith(f"/{kind}") and m.samples is None}
        subjects = np.repeat(np.arange(len(parts)), [m.n for m in parts.values()])
        if parts and group.samples and len(subjects) == len(group.samples):
            samples = [np.asarray(group.samples)[subjects == i].tolist() for i in range(len(parts))]
            if all(math.isclose(np.mean(x), m.value, abs_tol=1e-9) for x, m in zip(samples, parts.values())):
                found[key] = group, subjects
                found |= {k: (replace(m, samples=x), None) for (k, m), x in zip(parts.items(), samples)}
    return found


@lru_cache
def _noncentrality(df: int) -> float:
    """The true difference in standard errors that a t test with ``df`` degrees of freedom sees with 80 %."""
    t = stats.t.isf(LEVEL / 2, df)
    return optimize.brentq(lambda x: stats.nct.sf(t, df, x) - POWER, 0, 2 * t)


def _least_flips(n: int) -> float:
    """The smallest difference that McNemar's test of ``n`` questions can see at all: flips in one direction only.

    Six of them are the fewest with a p below 5 %; this share of flips gives six or more with a probability of 80 %.
    """
    return float(stats.beta.ppf(POWER, 6, n - 5)) if n > 5 else math.nan
