import pytest
import torch

from qbench.stats import AbsMax, Gram


@pytest.fixture
def x():
    return torch.randn(200, 24, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 3, 24)


def filled(x, kind=Gram):
    stat = kind(x.shape[1], "cpu")
    for chunk in x.split(64):
        stat.update(chunk)
    return stat


def test_gram_and_means(x):
    stat = filled(x)
    torch.testing.assert_close(stat.gram_KK, x.T @ x / 200)
    torch.testing.assert_close(stat.mean_abs_K, x.abs().mean(0))
    assert torch.equal(filled(x, AbsMax).absmax_K, x.abs().amax(0))


@pytest.mark.parametrize("permute", [False, True])
def test_inverse_cholesky_is_the_upper_factor_of_the_damped_inverse(x, permute):
    stat, damp = filled(x), 0.05
    perm = torch.randperm(24) if permute else torch.arange(24)
    U, notes = stat.inverse_cholesky(damp, perm if permute else None)
    G = stat.gram_KK.double()
    H = (G + damp * G.diagonal().mean() * torch.eye(24))[perm][:, perm]
    expected = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    torch.testing.assert_close(U.double(), expected, rtol=1e-4, atol=1e-6)
    assert notes == ()


def test_relative_error_is_that_of_the_outputs(x):
    w, q = torch.randn(5, 24), torch.randn(5, 24)
    expected = ((q - w) @ x.T).norm() / (w @ x.T).norm()
    assert filled(x).relative_error(q, w) == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("kind", [Gram, AbsMax])
def test_rescaling_is_that_of_the_inputs(x, kind):
    s = torch.rand(24) + 0.5
    stat, expected = filled(x, kind), filled(x / s, kind)
    stat.rescale(s)
    for field in ("gram_KK", "mean_abs_K", "absmax_K"):
        if hasattr(stat, field):
            torch.testing.assert_close(getattr(stat, field), getattr(expected, field))


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e3])
def test_a_dead_channel_leaves_the_others_as_they_are_without_it(x, unit):
    """Damping is a share of the live diagonal: the factor scales with the unit of x and of no other number."""
    alive = [k for k in range(24) if k != 3]
    expected, _ = filled(x[:, alive]).inverse_cholesky(0.01)
    x[:, 3] = 0
    U, notes = filled(x * unit).inverse_cholesky(0.01)
    torch.testing.assert_close(U[alive][:, alive] * unit, expected, rtol=1e-4, atol=1e-6)
    assert not U[3, alive].any()
    assert not U[alive, 3].any()
    assert notes == ()


def test_an_input_that_is_always_zero_can_be_factorised(x):
    U, notes = filled(0 * x).inverse_cholesky(0.01)
    torch.testing.assert_close(U, 10 * torch.eye(24))
    assert notes == ()


def test_the_factor_does_not_depend_on_threads():
    x = torch.randn(900, 704, generator=torch.Generator().manual_seed(2))
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3, 4, 8):
            torch.set_num_threads(count)
            found.append(filled(x).inverse_cholesky(0.01)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found)


def test_a_failed_factorisation_climbs_the_ladder_and_says_so():
    stat = Gram(4, "cpu")
    stat._sum_KK, stat._tokens = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.05])), torch.tensor(1)
    U, notes = stat.inverse_cholesky(0.01)
    assert notes == ("Cholesky failed with damping 0.01 in float32",)
    assert torch.isfinite(U).all()


def test_a_hopeless_matrix_is_an_error_with_the_numbers():
    stat = Gram(2, "cpu")
    stat._sum_KK, stat._tokens = torch.tensor([[1.0, 50.0], [50.0, 1.0]]), torch.tensor(7)
    with pytest.raises(ArithmeticError, match="2 x 2 Gram matrix of 7 tokens cannot be factorised"):
        stat.inverse_cholesky(0.01)


@pytest.mark.parametrize("kind", [Gram, AbsMax])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_inputs_show(x, kind, bad):
    assert filled(x, kind).is_finite()
    x[5, 7] = bad
    assert not filled(x, kind).is_finite()
