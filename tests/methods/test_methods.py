"""Each method against an independent slow version of its equations, and every yaml against the contract."""

from pathlib import Path

import pytest
import torch
from fakes.oracles import obq, problem, seen
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load, save

from qbench.files import packaged
from qbench.grid import ActQuant, Grid
from qbench.methods import gptq
from qbench.methods.awq import AWQ
from qbench.methods.gptq import GPTQ
from qbench.methods.rtn import RTN
from qbench.methods.smoothquant import SmoothQuant
from qbench.stats import Gram
from qbench.weights import QuantWeight, round_to_nearest

YAMLS = sorted(Path(packaged("conf"), "method").glob("*.yaml"))


def make(path, bits=4, group=32):
    grid = {"_target_": "qbench.grid.Grid", "bits": bits, "group_size": group, "symmetric": False}
    cfg = OmegaConf.create({"grid": grid, "method": OmegaConf.load(path)})
    return instantiate(cfg, _convert_="all")["method"]


# --- the contract ---


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
def test_contract(path, bits):
    method = make(path, bits)
    w, x = problem()
    before = w.clone()
    stat = None if method.statistic is None else seen(x, method.statistic)
    q = method.quantize(w, stat, "mlp.up_proj")
    assert isinstance(q, QuantWeight)
    assert torch.equal(w, before), "quantize must not modify the weight"
    w_hat = q.dequantize()
    assert w_hat.shape == w.shape
    assert w_hat.dtype == torch.float32
    assert torch.isfinite(w_hat).all()
    assert q.stored_bits >= q.nominal_bits > 0
    assert torch.equal(method.quantize(w, stat, "mlp.up_proj").dequantize(), w_hat), "same input, same weight"
    again = type(q)(**load(save(q.state())), **q.settings())
    assert torch.equal(again.dequantize(), w_hat), "what is stored must be enough to decode"
    outline = method.outline(*w.shape)
    assert type(outline) is type(q)
    if q.state().keys() != {"w_NK"}:
        assert {k: (t.shape, t.dtype, t.device.type) for k, t in outline.state().items()} == {
            k: (t.shape, t.dtype, "meta") for k, t in q.state().items()
        }
    if method.grid is not None:
        assert q.nominal_bits == bits
    if method.grid is not None and method.grid.group_size != -1:
        with pytest.raises(ValueError, match=r"group_size 256 does not divide K=128 \(mlp.up_proj\)"):
            make(path, bits, 256).check({"mlp.up_proj": (16, 128)})


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
def test_more_bits_err_less(path):
    w, x = problem(seed=3)
    stat = seen(x)
    errors = []
    for bits in (2, 3, 4, 6, 8):
        method = make(path, bits)
        q = method.quantize(w, stat if method.statistic is Gram else None, "mlp.up_proj")
        errors.append(stat.relative_error(q.dequantize(), w))
    assert errors == sorted(errors, reverse=True)


# --- GPTQ ---


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("group", [-1, 16, 64])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gptq_is_obq_code_for_code(bits, group, act_order, static, symmetric):
    w, x = problem(N=6, K=64, seed=bits)
    stat, grid = seen(x), Grid(bits, group, symmetric)
    perm = torch.argsort(stat.gram_KK.diagonal(), descending=True, stable=True) if act_order else torch.arange(64)
    q = GPTQ(grid, act_order=act_order, static_groups=static).quantize(w, stat, "x")
    assert torch.equal(q.codes_NK, obq(w, stat.gram_KK, grid, perm, 0.01, static))


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_with_dead_channels_does_not_depend_on_the_unit(act_order):
    """Channels 16 to 31 never fire: the others get the codes of a weight without them, whatever the unit of x is.

    The oracle takes dead channels out, where the authors' code puts 1 on the diagonal and 0 into the weight.
    """
    w, x = problem(N=6, K=64)
    x[:, 16:32] = 0
    alive = [*range(16), *range(32, 64)]
    method = GPTQ(Grid(3, 16), act_order=act_order, static_groups=act_order)
    expected = method.quantize(w[:, alive], seen(x[:, alive]), "x").codes_NK
    for unit in (1, 2.0**-10, 2.0**10):
        codes = method.quantize(w, seen(x * unit), "x").codes_NK
        assert torch.equal(codes[:, alive], expected)
        assert torch.equal(codes[:, 16:32], round_to_nearest(w, Grid(3, 16)).codes_NK[:, 16:32])


@pytest.mark.parametrize("group", [-1, 8, 32])
def test_gptq_does_not_depend_on_when_updates_are_made(monkeypatch, group):
    w, x = problem()
    codes = []
    for leaf in (1, 8, 24, 128):
        monkeypatch.setattr(gptq, "BLOCK", leaf)
        codes.append(GPTQ(Grid(3, group)).quantize(w, seen(x), "x").codes_NK)
    assert all(torch.equal(codes[0], other) for other in codes)


def test_gptq_does_the_linears_of_a_stage_as_it_does_each():
    w, x = problem(N=40)
    stat = seen(x)
    parts = {"q": w[:16], "k": w[16:24], "v": w[24:]}
    for method in (GPTQ(Grid(3, 32), act_order=True), GPTQ(Grid(3, -1, True))):
        together = method.quantize_stage(parts, stat)
        assert list(together) == list(parts)
        for name, part in parts.items():
            alone = method.quantize(part, stat, name)
            assert torch.equal(together[name].codes_NK, alone.codes_NK)
            assert torch.equal(together[name].dequantize(), alone.dequantize())


def test_gptq_beats_rtn_where_inputs_correlate():
    w, x = problem()
    stat = seen(x)
    for bits in (2, 3, 4):
        ours = stat.relative_error(GPTQ(Grid(bits, 32)).quantize(w, stat, "x").dequantize(), w)
        assert ours < 0.9 * stat.relative_error(RTN(Grid(bits, 32)).quantize(w, None, "x").dequantize(), w)


def test_gptq_moving_groups_are_stored_and_static_ones_are_not():
    w, x = problem()
    moving = GPTQ(Grid(4, 32), act_order=True).quantize(w, seen(x), "x")
    static = GPTQ(Grid(4, 32), act_order=True, static_groups=True).quantize(w, seen(x), "x")
    assert moving.group_K is not None
    assert static.group_K is None
    assert moving.stored_bits > static.stored_bits


def test_gptq_notes_the_damping_it_needed():
    w, _ = problem(K=4, T=8)
    stat = Gram(4, "cpu")
    stat._sum_KK, stat._tokens = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.05])), torch.tensor(1)
    assert GPTQ(Grid(4, -1)).quantize(w, stat, "x").notes == ("Cholesky failed with damping 0.01 in float32",)


# --- AWQ ---


def test_awq_clip_takes_the_least_output_error():
    w, x = problem(N=4, K=64)
    grid = Grid(3, 16)
    got = AWQ(grid).quantize(w, seen(x), "mlp.up_proj").dequantize()
    expected = torch.empty_like(w)
    for n in range(4):
        for g in range(0, 64, 16):
            part, best = w[n : n + 1, g : g + 16], float("inf")
            for i in range(10):
                q = round_to_nearest(part, Grid(3, -1), 1 - i / 20).dequantize()
                error = ((q - part).double() @ x[:, g : g + 16].T.double()).square().sum()
                if error < best:
                    best, expected[n, g : g + 16] = error, q
    torch.testing.assert_close(got, expected)


def test_awq_leaves_q_and_k_unclipped():
    w, x = problem()
    stat = seen(x)
    for name in ("self_attn.q_proj", "self_attn.k_proj"):
        assert torch.equal(AWQ().quantize(w, stat, name).dequantize(), round_to_nearest(w, Grid()).dequantize())
    assert not torch.equal(AWQ().quantize(w, stat, "x.v_proj").dequantize(), round_to_nearest(w, Grid()).dequantize())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_awq_in_bfloat16_is_llm_awqs_quantizer(bits):
    """Group by group in bfloat16 scalars; all-positive groups leave zero out of their range."""
    w, x = problem(N=3, K=64)
    w[1] = w[1].abs() + 0.1
    w = w.bfloat16()
    got = AWQ(Grid(bits, 16), arithmetic="bfloat16", n_clip=1).quantize(w, seen(x), "mlp.up_proj").dequantize()
    for n in range(3):
        for g in range(0, 64, 16):
            part = w[n, g : g + 16]
            scale = (part.max() - part.min()).clamp(min=1e-5) / (2**bits - 1)
            zero = (-(part.min() / scale).round()).clamp(0, 2**bits - 1)
            codes = ((part / scale).round() + zero).clamp(0, 2**bits - 1)
            expected = (codes - zero) * scale
            assert torch.equal(got[n, g : g + 16].bfloat16(), expected)
    assert not torch.equal(got.bfloat16(), round_to_nearest(w, Grid(bits, 16)).dequantize().bfloat16())


def test_awq_compares_exponents_on_all_rows():
    """One row of 600 that is far larger than the others decides, wherever it stands."""
    w, x = problem(N=600, K=64)
    w[301] *= 100
    stat = seen(x)
    scales = stat.mean_abs_K.pow(torch.arange(20)[:, None] / 20)
    loss = AWQ(Grid(3, 16))._gram_loss(w, stat, scales)
    exact = [stat.energy(round_to_nearest(w * s, Grid(3, 16)).dequantize() / s - w).sum() for s in scales]
    torch.testing.assert_close(loss, torch.stack(exact), rtol=1e-4, atol=0)


def test_rtn_can_ignore_the_group_size():
    w, _ = problem()
    assert torch.equal(
        RTN(Grid(4, 32), whole_rows=True).quantize(w, None, "x").dequantize(),
        RTN(Grid(4, -1)).quantize(w, None, "x").dequantize(),
    )


# --- SmoothQuant, and fields of all methods ---


def test_smoothquant_weights_are_symmetric_per_row():
    w, _ = problem()
    q = SmoothQuant(acts=ActQuant(8)).quantize(w, None, "x")
    assert q.zero_NG is None
    assert q.scale_NG.shape == (16, 1)
    torch.testing.assert_close(q.scale_NG[:, 0].float(), w.abs().amax(1) / 127, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        (GPTQ, dict(damp=0.0), r"method\.damp must be a number between 0 and 1, got 0\.0"),
        (AWQ, dict(arithmetic="float16"), r"method\.arithmetic must be float32 or bfloat16"),
        (AWQ, dict(arithmetic="bfloat16", grid=Grid(4, 16, True)), r"method\.arithmetic=bfloat16 is llm-awq's"),
        (SmoothQuant, dict(alpha=-0.1), r"method\.alpha must be a number from 0 to 1 or null"),
        (SmoothQuant, dict(alpha=1.1), r"method\.alpha must be a number from 0 to 1 or null"),
        (SmoothQuant, dict(grid=Grid()), r"set method\.grid\.symmetric=true"),
    ],
)
def test_bad_fields(method, fields, message):
    with pytest.raises(ValueError, match=message):
        method(**fields)
