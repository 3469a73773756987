import math

import pytest
import torch

from qbench.grid import ActQuant, Grid, rounded
from qbench.weights import UniformWeight, round_to_nearest

BITS = range(1, 9)


def levels(grid, scale, zero):
    """Every value the grid can take, ascending."""
    return [scale * (q - zero) for q in range(2**grid.bits)]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [-1, 32])
def test_rounding_takes_the_nearest_level(bits, symmetric, group):
    w = torch.randn(3, 64, generator=torch.Generator().manual_seed(bits))
    grid = Grid(bits, group, symmetric)
    q = round_to_nearest(w, grid)
    got = q.dequantize()
    zero = torch.full_like(q.scale_NG, grid.midpoint) if symmetric else q.zero_NG
    for n in range(3):
        for k in range(64):
            g = 0 if group == -1 else k // group
            table = levels(grid, q.scale_NG[n, g].item(), zero[n, g].item())
            best = min(abs(v - w[n, k].item()) for v in table)
            assert abs(got[n, k].item() - w[n, k].item()) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("grid", [Grid(3, 16), Grid(1, -1, True), Grid(8, 32, True)])
def test_rounding_for_searches_is_rounding(grid):
    w = torch.randn(4, 64)
    assert torch.equal(rounded(w, grid, 0.8), round_to_nearest(w, grid, 0.8).dequantize())


@pytest.mark.parametrize("bits", BITS)
def test_asymmetric_range_covers_the_weights_and_holds_zero(bits):
    w = torch.rand(4, 32) + 0.5  # all positive: the range must still begin at zero
    scale, zero = Grid(bits).fit(w)
    assert (zero == 0).all()
    torch.testing.assert_close(scale * (2**bits - 1), w.amax(-1), rtol=1e-3, atol=0)


def test_symmetric_scale_is_smoothquants_equation_1():
    w = torch.tensor([[-3.0, 1.0, 2.0]])
    scale, _ = Grid(8, -1, True).fit(w)
    assert scale.item() == pytest.approx(3 / 127, rel=1e-3)
    one = round_to_nearest(w, Grid(1, -1, True)).dequantize()
    assert one.tolist() == [[-2.0, 2.0, 2.0]]


def test_rows_of_zeros_stay_zero():
    for symmetric in (False, True):
        for bits in range(2, 9):
            assert (round_to_nearest(torch.zeros(2, 8), Grid(bits, -1, symmetric)).dequantize() == 0).all()


def test_smaller_groups_do_not_raise_the_error():
    w = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    errors = [(round_to_nearest(w, Grid(4, g)).dequantize() - w).square().sum() for g in (-1, 128, 64, 32)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("symmetric", "expected"), [(False, 4 + (16 + 4) / 32), (True, 4 + 16 / 32)])
def test_stored_bits_counts_scales_and_zeros(symmetric, expected):
    q = round_to_nearest(torch.randn(8, 64), Grid(4, 32, symmetric))
    assert q.stored_bits == expected
    assert q.nominal_bits == 4


def test_stored_bits_counts_moving_groups():
    q = round_to_nearest(torch.randn(8, 64), Grid(4, 32))
    moved = UniformWeight.of(Grid(4, 32), q.codes_NK, q.scale_NG.float(), q.zero_NG, torch.arange(64) // 32)
    assert moved.stored_bits == q.stored_bits + 16 / 8
    assert torch.equal(moved.dequantize(), q.dequantize())


def test_clipping_shrinks_the_range():
    w = torch.tensor([[-1.0, 0.1, 0.2, 4.0]])
    scale, zero = Grid(2, -1).fit(w, clip=0.5)
    assert scale.item() * 3 == pytest.approx(3, rel=1e-3)  # from -1 to 2
    assert zero.item() == 1


def test_activations_per_token():
    x = torch.randn(2, 5, 16) * torch.tensor([1, 100]).view(2, 1, 1)
    y = ActQuant(8)(x)
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((y - x).abs() <= step / 2 * (1 + 1e-5)).all()
    assert torch.equal(ActQuant(8)(y * 1.0).round(decimals=3), y.round(decimals=3))
    assert ActQuant(8)(torch.zeros(1, 4)).abs().sum() == 0
    assert ActQuant(4)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [0, 9, -1, 2.5, True, "4", math.nan])
def test_bits_outside_1_to_8_are_refused(bits):
    with pytest.raises(ValueError, match=r"grid.bits must be a whole number( from 1 to 8)?, got"):
        Grid(bits)


def test_group_size_must_divide():
    with pytest.raises(ValueError, match=r"group_size 96 does not divide K=128 \(down_proj\); use a divisor of 128"):
        Grid(4, 96).columns(128, "down_proj")
    with pytest.raises(ValueError, match=r"grid.group_size must be -1"):
        Grid(4, 0)


def test_scales_beyond_float16_are_refused():
    with pytest.raises(ValueError, match="not a finite float16"):
        round_to_nearest(torch.full((1, 4), 1e9), Grid(4, -1))
