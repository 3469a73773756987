"""FP8 against the description of the format: e4m3 by its bits, one scale per block of 128 x 128, amax / 448."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from fakes.oracles import problem
from hydra import compose, initialize_config_dir
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Quantize

from qbench.files import packaged
from qbench.grid import Fp8ActQuant, e4m3
from qbench.methods.fp8 import FP8
from qbench.run import run
from qbench.store import Store


def numbers():
    """The number of each of the 256 codes: a sign, 4 bits of exponent with bias 7, 3 of mantissa. All bits set is NaN;
    an exponent of 0 is subnormal; there is no infinity."""
    found = {}
    for code in range(256):
        sign, exponent, mantissa = (-1) ** (code >> 7), code >> 3 & 15, code & 7
        if exponent:
            found[code] = sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        else:
            found[code] = sign * mantissa / 8 * 2.0**-6
    del found[0x7F], found[0xFF]
    return found


CODES = numbers()


def nearest(x):
    """The e4m3 number nearest to x; of two, the one whose last bit is 0."""
    return min((abs(value - x), code & 1, value) for code, value in CODES.items())[2]


def blocks(w):
    """(rows, columns) of each block."""
    N, K = w.shape
    for n in range(0, N, 128):
        for k in range(0, K, 128):
            yield slice(n, min(n + 128, N)), slice(k, min(k + 128, K))


def test_rounding_takes_the_nearest_of_256_codes():
    """Every number, every midpoint of two, what is beside those, and what is beyond the largest."""
    values = sorted(set(CODES.values()))
    x = values + [(a + b) / 2 for a, b in pairwise(values)]
    x += [v * (1 + step) for v in x for step in (-1e-6, 1e-6)] + [449.0, 464.0, 465.0, 1e9, -1e9]
    got = e4m3(torch.tensor(x), torch.ones(())).float()
    assert max(values) == 448
    assert got.tolist() == [nearest(v) for v in torch.tensor(x).tolist()]
    bits = torch.tensor(list(CODES), dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert bits.float().tolist() == list(CODES.values())


@pytest.mark.parametrize("scales", ["bfloat16", "float32"])
@pytest.mark.parametrize(("N", "K"), [(128, 256), (130, 200), (3, 140)])
def test_weights_are_the_nearest_multiples_of_their_blocks_scale(N, K, scales):
    dtype = getattr(torch, scales)
    w = torch.randn(N, K, generator=torch.Generator().manual_seed(N)) * torch.logspace(-3, 0, N)[:, None]
    q = FP8(scales=scales).quantize(w.bfloat16(), None, "x")
    got, table = q.dequantize(), torch.tensor(sorted(set(CODES.values())), dtype=torch.float64)
    assert (q.codes_NK.dtype, q.scale_nk.dtype) == (torch.float8_e4m3fn, dtype)
    for i, (rows, cols) in enumerate(blocks(w)):
        part = w.bfloat16()[rows, cols].double()
        scale = (part.abs().max() / 448).to(dtype).double()
        assert q.scale_nk.flatten()[i] == scale
        error = (part[..., None] - scale * table).abs().amin(-1)
        torch.testing.assert_close((got[rows, cols].double() - part).abs(), error, rtol=0, atol=3e-7)


@pytest.mark.parametrize("K", [128, 200, 64])
def test_activations_have_one_scale_per_token_and_128_channels(K):
    _, x = problem(K=K, T=5)
    x[1, :128] = 0
    got, acts = Fp8ActQuant()(x[None])[0], []
    for t in range(5):
        for k in range(0, K, 128):
            part = x[t, k : k + 128]
            scale = part.abs().max().item() / 448 or 1.0
            acts += [nearest(v / scale) * scale for v in part.tolist()]
    torch.testing.assert_close(got.flatten(), torch.tensor(acts), rtol=1e-6, atol=0)
    assert Fp8ActQuant()(x.bfloat16()).dtype == torch.bfloat16


def test_transformers_makes_the_same_weight():
    """With its scales, which are reciprocals of float32 reciprocals: a last bit moves one weight in 100,000."""
    w = torch.randn(256, 384, generator=torch.Generator().manual_seed(0))
    quantizer = SimpleNamespace(quantization_config=FineGrainedFP8Config())
    theirs = Fp8Quantize(quantizer).convert({"x.weight": w})
    ours = FP8(scales="float32").quantize(w, None, "x")
    torch.testing.assert_close(ours.scale_nk, theirs["x.weight_scale_inv"], rtol=3e-7, atol=0)
    assert (ours.codes_NK.float() == theirs["x.weight"].float()).float().mean() > 0.9999


def test_bits_are_those_of_the_file():
    w, _ = problem(N=130, K=200)
    assert (FP8().quantize(w, None, "x").nominal_bits, FP8.grid) == (8, None)
    assert FP8().quantize(w, None, "x").stored_bits == 8 + 16 * 4 / (130 * 200)
    assert FP8(scales="float32").quantize(w, None, "x").stored_bits == 8 + 32 * 4 / (130 * 200)


def test_zeros_stay_zero_and_nan_is_refused():
    w = torch.zeros(130, 130)
    assert torch.equal(FP8().quantize(w, None, "x").dequantize(), w)
    w[129, 129] = torch.nan
    with pytest.raises(ValueError, match="NaN or inf"):
        FP8().quantize(w, None, "x")


@pytest.fixture
def configure(tmp_path):
    fixed = ["model=nano-s", "calib.n=2", "calib.length=64", "machine.device=cpu", "machine.threads=1"]
    fixed += [f"machine.results_dir={tmp_path / 'results'}", f"machine.cache_dir={tmp_path / 'cache'}"]

    def make(*overrides):
        with initialize_config_dir(str(packaged("conf")), version_base="1.3"):
            return compose("config", [*fixed, *overrides])

    return make


def test_runs_are_w8a16_and_w8a8(configure, tmp_path):
    for method in ("fp8", "fp8_w8a8"):
        outcome = run(configure(f"method={method}", "eval=ppl", "eval.limit=2", "eval.window=64"))
        assert outcome.status == "measured", outcome.message
    one, other = sorted(Store(tmp_path / "results").measurements(), key=lambda m: m.science["method"]["acts"] is None)
    assert one.science["method"] == dict(name="fp8", version=1, scales="bfloat16", acts={"bits": 8})
    assert one.id != other.id
    assert one.science["grid"] is other.science["grid"] is None
    assert one.metrics["nano/ppl"].value != other.metrics["nano/ppl"].value
    assert [one.nominal_bits, one.stored_bits] == [other.nominal_bits, other.stored_bits]
    assert one.nominal_bits == 8 < one.stored_bits < 8.01


@pytest.mark.parametrize("method", ["fp8", "fp8_w8a8"])
def test_no_kernel_multiplies_with_it(configure, method):
    outcome = run(configure(f"method={method}", "eval=agreement"))
    assert outcome.status == "refused"
    assert "no kernel multiplies with the packed weights of nano-s fp8" in outcome.message
