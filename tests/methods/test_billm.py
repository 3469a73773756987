"""BiLLM against an independent slow version of its equations in float64, on random and on real weights."""

import pytest
import torch
from fakes.oracles import billm, problem, salient_columns, seen

from qbench.calibration import BlockCalibration, first_block_inputs
from qbench.data.corpus import Calibration
from qbench.grid import Grid
from qbench.methods.billm import BiLLM
from qbench.models.checkpoint import Checkpoint
from qbench.stats import Gram
from qbench.weights import round_to_nearest

RELEASED = {"salience": "cholesky", "split_on": "salience"}


@pytest.mark.parametrize("ways", [{}, {"salience": "cholesky"}, {"split_on": "salience"}, RELEASED], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_is_the_paper_weight_by_weight(seed, ways):
    w, x = problem(N=5, K=48, seed=seed)
    method, stat = BiLLM(block_size=16, max_salient=6, **ways), seen(x)
    got = method.quantize(w, stat, "x").dequantize().double()
    torch.testing.assert_close(got, billm(w, stat.gram_KK, method), rtol=2e-3, atol=2e-5)


# --- the number of salient columns ---


def first_q_proj(size):
    """The first query projection of a nano model and the Gram of its inputs in the study's calibration data."""
    ckpt = Checkpoint(size, nano=size, dtype="float32").open()
    model, block = ckpt.embedding("cpu"), ckpt.block(0, "cpu")
    ids = Calibration(source="nano", n=64, length=256).tokens(ckpt.tokenizer)
    calib = BlockCalibration(block, first_block_inputs(model, model.model.layers[0], ids, "cpu", "cpu"), "cpu")
    calib.observe([Gram])
    return block["self_attn.q_proj"].weight.detach(), calib.stats[block.stages[0]][Gram]


@pytest.mark.parametrize(("ways", "counts"), [({}, [4, 4, 4]), (RELEASED, [49, 7, 17])], ids=["default", "released"])
@pytest.mark.parametrize(("size", "blocks"), [("nano-s", 1), ("nano-m", 2), ("nano-l", 3)])
def test_salient_columns_of_real_weights(size, blocks, ways, counts):
    """Every block's columns are those of the slow search, given the same weights.

    Of the released way ``counts`` are also what the authors' own code finds on nano-l, in float32 and in float64.
    """
    w, stat = first_q_proj(size)
    found = BiLLM(**ways).quantize(w, stat, "q_proj")
    U = torch.linalg.cholesky(torch.linalg.inv(damped(stat.gram_KK.double())), upper=True)
    inverse = U.diagonal() if ways else U.square().sum(0)
    W, w_hat = w.double().clone(), found.dequantize().double()
    for at in (slice(i, i + 128) for i in range(0, w.shape[1], 128)):
        expected = salient_columns(W[:, at] ** 2 / inverse[at] ** 2, 49)
        assert found.salient_K[at].nonzero().flatten().tolist() == expected
        W[:, at.stop :] -= (W[:, at] - w_hat[:, at]) / U.diagonal()[at] @ U[at, at.stop :]
    assert len(found.salient_K) == 128 * blocks
    if size == "nano-l":
        assert found.salient_K.view(-1, 128).sum(1).tolist() == counts


def damped(H):
    return H + 0.01 * H.diagonal().mean() * torch.eye(len(H))


@pytest.mark.parametrize("strong", [2, 3, 8])
def test_six_strong_columns_are_six(strong):
    """On the metric; and on the weights too, where further columns cost more than their second bit gains."""
    w = torch.randn(256, 128, generator=torch.Generator().manual_seed(0))
    at = [5, 17, 40, 41, 99, 120]
    w[:, at] *= strong
    white = seen(torch.eye(128))
    assert BiLLM().quantize(w, white, "x").salient_K.nonzero().flatten().tolist() == at
    assert salient_columns(w.double(), 49) == at
    # with the rest binarized once every column gains a bit, and only columns that stand out more than twice stop it
    assert (salient_columns(w.double(), 49, rest_passes=1) == at) == (strong > 2)


def test_the_search_does_not_overflow():
    """Inputs of 1e6 give metrics of 1e20, whose squares float32 cannot hold."""
    w, x = problem(N=16, K=128)
    few, many = (BiLLM().quantize(w, seen(x * scale), "x").salient_K for scale in (1.0, 1e6))
    assert torch.equal(few, many)


# --- bits and limits ---


def test_counts_its_bits():
    w, x = problem(N=64, K=256)
    q = BiLLM().quantize(w, seen(x), "x")
    share = q.salient_K.float().mean().item()
    assert q.nominal_bits == pytest.approx(1 + share)
    # a sign, a second plane (residual sign or part), which columns are salient, and 8 float16 a row and block
    assert q.stored_bits == pytest.approx(2 + 1 / 64 + 16 * 8 / 128)


def test_can_count_the_last_block_only():
    w, x = problem(N=8, K=64)
    honest, printed = (
        BiLLM(block_size=16, max_salient=6, count=count).quantize(w, seen(x), "x") for count in ("all", "last_block")
    )
    assert torch.equal(honest.dequantize(), printed.dequantize())
    assert printed.nominal_bits == 1 + printed.salient_K[-16:].float().mean().item()
    assert honest.nominal_bits == 1 + printed.salient_K.float().mean().item()
    assert honest.stored_bits == printed.stored_bits


def test_beats_one_bit_rounding():
    w, x = problem(N=64, K=256)
    stat = seen(x)
    ours = stat.relative_error(BiLLM().quantize(w, stat, "x").dequantize(), w)
    assert ours < 0.7 * stat.relative_error(round_to_nearest(w, Grid(1, -1, True)).dequantize(), w)


@pytest.mark.parametrize(("K", "block", "last"), [(160, 128, 32), (32, 128, 32), (49, 128, 49), (177, 128, 49)])
def test_refuses_a_last_block_too_narrow(K, block, last):
    with pytest.raises(ValueError, match=rf"leaves {last} of the K={K} columns of x .*max_salient below {last}"):
        BiLLM(block_size=block).check({"x": (8, K)})


@pytest.mark.parametrize("K", [50, 128, 178])
def test_takes_a_last_block_wide_enough(K):
    w, x = problem(N=8, K=K)
    BiLLM().check({"x": w.shape})
    found = BiLLM(count="last_block").quantize(w, seen(x), "x")
    assert torch.isfinite(found.dequantize()).all()
    assert found.nominal_bits == 1 + found.salient_K[K // 128 * 128 if K % 128 else -128 :].float().mean().item()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"block_size": v}, f"max_salient=49 must be below method.block_size={v}") for v in (1, 49)]
    + [({"max_salient": 128}, "max_salient=128 must be below method.block_size=128")]
    + [({name: 0}, f"{name} must be a whole number of at least 1") for name in ("block_size", "max_salient")]
    + [({"damp": v}, "damp must be a number between 0 and 1") for v in (0.0, 1.0)],
)
def test_refuses_settings(settings, message):
    with pytest.raises(ValueError, match=f"method.{message}"):
        BiLLM(**settings)
