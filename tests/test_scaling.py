"""The fit of experiments/scaling.py recovers the law that made-up losses were drawn from."""

import math
from dataclasses import replace

import numpy as np
import pytest

from experiments.scaling import LEAST, MOST, Point, fit, printed


def made_up(noise=0.0, groups=(64, 128)):
    rng, points = np.random.default_rng(0), []
    for size in (10**6, 10**7, 10**8):
        for bits in (3, 4, 5):
            for group in groups:
                ln_loss = (
                    6.5 - 0.4 * math.log(size) - 1.2 * bits + 0.5 * math.log(group) + noise * rng.standard_normal()
                )
                points.append(Point("x", "y", "m", "rtn", size, bits, group, group == 64, math.exp(ln_loss)))
    return points


def test_the_law_is_recovered_with_its_errors():
    exact = fit(made_up())
    assert [exact.coefficients[k][0] for k in "akg"] == pytest.approx([0.4, 1.2, 0.5])
    assert exact.spread < 1e-9
    noisy = fit(made_up(noise=0.3))
    assert noisy.spread == pytest.approx(0.3, rel=0.4)
    for letter, true in (("a", 0.4), ("k", 1.2), ("g", 0.5)):
        value, error = noisy.coefficients[letter]
        assert error > 0
        assert abs(value - true) < 3 * error


def test_what_does_not_vary_is_left_out_and_what_is_out_of_range_is_counted():
    points = made_up(groups=(128,))
    points[0] = replace(points[0], loss=MOST * 1.01)
    points[-1] = replace(points[-1], loss=LEAST * 0.99)
    points[4] = replace(points[4], doubted=True)
    found = fit(points)
    assert set(found.coefficients) == {"c", "a", "k"}
    assert (len(found.points), found.left_out) == (6, 3)


def test_printed_cells_in_doubt_are_not_fitted():
    awq = [p for p in printed() if p.method == "awq" and p.bits in (3, 4)]
    assert awq
    assert not any(p.fitted for p in awq)
