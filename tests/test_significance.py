"""Paired statistics against slow definitions, simulations, and values that statsmodels 0.15.0 gave."""

import math

import numpy as np
import pytest
from scipy import stats

from qbench.record import Metric
from qbench.significance import clustered_stderr, compare, flipped, holm, mcnemar, with_subjects


def accuracy(samples, value=None):
    samples = [float(x) for x in samples]
    return Metric(sum(samples) / len(samples) if value is None else value, "fraction", len(samples), 0.1, samples)


def perplexity(nlls):
    return Metric(math.exp(np.mean(nlls)), "perplexity", len(nlls), 0.1, [float(x) for x in nlls])


def answers(seed, n, right):
    return (np.random.default_rng(seed).random(n) < right).astype(float)


@pytest.mark.parametrize(("lost", "won", "p"), [(3, 11, 0.057373046875), (0, 6, 0.03125), (40, 22, 0.030015864349067)])
def test_mcnemar_is_the_binomial_tail(lost, won, p):
    n = lost + won
    tail = sum(math.comb(n, i) for i in range(min(lost, won) + 1)) / 2**n
    assert mcnemar(lost, won) == mcnemar(won, lost) == pytest.approx(2 * tail) == pytest.approx(p)


def test_mcnemar_of_a_draw():
    assert mcnemar(0, 0) == 1
    assert mcnemar(7, 7) == 1


def test_flips_have_a_direction():
    assert flipped([1, 1, 1, 0, 0, 1], [0, 0, 1, 1, 0, 1]) == (2, 1)


def test_questions_are_compared_by_their_flips():
    base, other = answers(0, 300, 0.8), answers(1, 300, 0.7)
    found = compare(accuracy(other), accuracy(base))
    lost, won = (sum(1 for a, b in zip(base, other) if (a, b) == pair) for pair in ((1, 0), (0, 1)))
    assert found.flips == (lost, won)
    assert found.difference == pytest.approx((won - lost) / 300)
    assert found.stderr == pytest.approx(np.std(other - base, ddof=1) / math.sqrt(300))
    rng, d = np.random.default_rng(2), other - base
    swapped = (rng.choice([-1, 1], (20_000, 300)) * d).sum(1)  # which model gave which answer is a coin's toss
    assert found.p == pytest.approx((abs(swapped) >= abs(d.sum())).mean(), rel=0.15)
    assert found.p == mcnemar(lost, won)


def test_windows_are_compared_by_their_log_likelihoods():
    rng = np.random.default_rng(3)
    base = rng.normal(2, 0.5, 24)
    other = base + rng.normal(0.03, 0.06, 24)
    found, d = compare(perplexity(other), perplexity(base)), other - base
    t = d.mean() / (d.std(ddof=1) / math.sqrt(24))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), 23))
    assert found.flips is None
    assert found.difference == pytest.approx(math.exp(other.mean()) - math.exp(base.mean()))
    picks = rng.integers(0, 24, (8000, 24))
    resampled = np.exp(other[picks].mean(1)) - np.exp(base[picks].mean(1))
    assert found.stderr == pytest.approx(resampled.std(), rel=0.1)


def test_equal_models_do_not_differ():
    for metric in (accuracy(answers(4, 50, 0.5)), perplexity([2.0, 2.5, 3.0])):
        found = compare(metric, metric)
        assert (found.difference, found.stderr, found.p) == (0, 0, 1)


@pytest.mark.parametrize("n", [5, 64])
def test_the_visible_difference_is_found_four_times_in_five(n):
    """Many experiments with a true difference of just this size; the error that a comparison uses is the true one."""
    rng, sigma = np.random.default_rng(5), 0.3
    d = rng.normal(0, 1, n)
    d = (d - d.mean()) / d.std(ddof=1) * sigma
    base = np.linspace(0.1, 0.9, n)
    visible = compare(Metric((base + d).mean(), "nats/token", n, 0.1, (base + d).tolist()), accuracy(base)).visible
    assert visible == pytest.approx(sigma / math.sqrt(n) * {5: 3.761059816, 64: 2.845202349}[n], rel=1e-5)
    p = stats.ttest_1samp(rng.normal(visible, sigma, (20_000, n)), 0, axis=1).pvalue
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.01)


def test_questions_that_do_not_flip_still_have_a_limit():
    """With no flip at all the error is 0; how many one-sided flips McNemar's test would have found is not."""
    same = accuracy(answers(6, 737, 0.8))
    visible = compare(same, same).visible
    flips = np.random.default_rng(7).binomial(737, visible, 20_000)
    found = np.mean([p < 0.05 for p in map({int(k): mcnemar(0, int(k)) for k in set(flips)}.get, flips)])
    assert found == pytest.approx(0.8, abs=0.01)
    assert 6 / 737 < visible < 8.1 / 737


def test_items_of_one_subject_are_not_independent():
    x, g = np.array([1, 0, 0, 1, 1, 1, 0, 1, 0, 0, 1, 1.0]), np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3])
    assert clustered_stderr(x, g) == pytest.approx(0.10079417)
    c = x - x.mean()
    pairs = sum(c[i] * c[j] for i in range(12) for j in range(12) if g[i] == g[j])
    assert clustered_stderr(x, g) == pytest.approx(math.sqrt(4 / 3 * pairs) / 12)
    assert clustered_stderr(x, range(12)) == pytest.approx(stats.sem(x))
    assert clustered_stderr(x, np.repeat([5, 9, 7], 4)) == pytest.approx(stats.sem(x.reshape(3, 4).mean(1)))
    assert math.isnan(clustered_stderr(x, [0] * 12))


def test_the_clustered_error_is_that_of_other_subjects():
    rng = np.random.default_rng(8)
    subjects = np.repeat(np.arange(40), rng.integers(5, 30, 40))
    means, errors, plain = [], [], []
    for _ in range(400):
        x = rng.normal(0, 1, 40)[subjects] + rng.normal(0, 1, len(subjects))
        means.append(x.mean())
        errors.append(clustered_stderr(x, subjects))
        plain.append(stats.sem(x))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)
    assert np.mean(plain) < 0.5 * np.std(means)
    base = answers(9, 60, 0.7)
    other = np.concatenate([base[:30], answers(10, 30, 0.4)])
    found = compare(accuracy(other), accuracy(base), np.repeat(np.arange(6), 10))
    assert found.clustered == clustered_stderr(other - base, np.repeat(np.arange(6), 10)) > found.stderr
    assert math.isnan(compare(accuracy(other), accuracy(base)).clustered)


def step_down(p, level):
    """Holm's procedure as he states it: the k-th smallest of m counts while it is at most level / (m - k + 1)."""
    found, left = [False] * len(p), len(p)
    for i in sorted(range(len(p)), key=p.__getitem__):
        if p[i] > level / left:
            break
        found[i], left = True, left - 1
    return found


def test_holm_is_the_step_down_procedure():
    p = [0.0008, 0.0036, 0.0227, 0.014, 0.0009, 0.009, 0.0105, 0.002]
    assert holm(p) == pytest.approx([0.0064, 0.018, 0.036, 0.036, 0.0064, 0.036, 0.036, 0.012])
    rng = np.random.default_rng(11)
    for n in (1, 2, 5, 30):
        p = (rng.random(n) ** 3).round(4).tolist()
        for level in (0.01, 0.05, 0.2):
            assert [x <= level for x in holm(p)] == step_down(p, level)
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1, 1]


def test_nothing_is_tested_that_cannot_be():
    base = accuracy([0, 1, 1, 1])
    for other, note in (
        (None, "not measured"),
        (Metric(0.5, "fraction", 4), "no per-item outcomes"),
        (accuracy([0, 1, 1]), "4 items against 3"),
        (accuracy([0, 1, 1, 1], value=0.5), "do not average"),
    ):
        found = compare(base, other)
        assert note in found.note
        assert math.isnan(found.p)
        assert math.isnan(found.difference)
    diverged = compare(Metric(math.inf, "perplexity", 2, None, [900.0, 900.0]), perplexity([1, 2]))
    assert diverged.difference == math.inf
    assert math.isnan(diverged.p)


def test_subjects_are_parts_of_their_group():
    law, physics = answers(12, 30, 0.9), answers(13, 20, 0.4)
    parts = {f"mmlu_{k}/acc": Metric(x.mean(), "fraction", len(x)) for k, x in (("law", law), ("physics", physics))}
    whole = {"mmlu/acc": accuracy([*law, *physics])}
    record = whole | parts | {"piqa/acc": accuracy(answers(14, 9, 0.5)), "mmlu_law/acc_norm": Metric(0.1, "x", 5)}
    found = with_subjects(record)
    assert found["mmlu_law/acc"][0].samples == law.tolist()
    assert found["mmlu_physics/acc"][0].samples == physics.tolist()
    assert found["mmlu/acc"][1].tolist() == [0] * 30 + [1] * 20
    assert [key for key, (_, subjects) in found.items() if subjects is not None] == ["mmlu/acc"]
    assert all(found[key][0] == metric for key, metric in record.items() if key not in parts)
    turned = whole | dict(reversed(parts.items()))
    for unfit in (whole, turned, record | {"mmlu_more/acc": Metric(1.0, "fraction", 7)}):
        assert with_subjects(unfit) == {key: (metric, None) for key, metric in unfit.items()}
