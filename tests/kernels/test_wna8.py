"""Integer products: the quantizers against torch's expressions, the kernel against float64 of the very integers."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, pad, silu
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from qbench.grid import ActQuant, Grid
from qbench.kernels import wna8
from qbench.kernels.packed import PackedInteger
from qbench.kernels.quantize import add_rms_norm_quantize, quantize, silu_mul_quantize
from qbench.weights import UniformWeight, round_to_nearest

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float16, torch.bfloat16)
CONFIG = dict(path="fused", block_n=64, block_m=16, split=1, warps=4, stages=2)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """New tensors hold what nobody wants."""
    empty = torch.empty

    def filled(*size, **options):
        x = empty(*size, **options)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    monkeypatch.setattr(torch, "empty", filled)
    monkeypatch.setattr(torch, "empty_like", lambda x: filled(x.shape, dtype=x.dtype, device=x.device))


def normal(*size: int, dtype=torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def codes_of(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """ActQuant's equation, codes and scales apart."""
    scale = (x.float().abs().amax(-1) / (2 ** (bits - 1) - 1)).clamp(min=1e-8)
    return (x.float() / scale[:, None]).round(), scale


def assert_quantized(codes: Tensor, scale: Tensor, x: Tensor):
    """``x`` in 8 bits, where the order of a float32 sum may have moved a few numbers to the next of their dtype."""
    assert ((scale - codes_of(x, 8)[1]).abs() <= torch.finfo(x.dtype).eps * scale).all()
    off = (codes.float() - (x.float() / scale[:, None]).round()).abs()
    assert off.max() <= 1
    assert off.mean() < 0.01


def product(x: Tensor, weight: UniformWeight, acts_bits: int = 8, **config) -> Tensor:
    packed = PackedInteger.of(weight, ActQuant(acts_bits))
    y = packed.multiply(x, CONFIG | config)
    assert not packed.counters.any()
    return y


def assert_rounded(y: Tensor, exact: Tensor, sums: float):
    """``y`` is ``exact`` rounded to its dtype, where float32 sums may be off by ``sums`` of the largest."""
    half = torch.finfo(y.dtype).eps / 2
    assert ((y.double() - exact).abs() <= 1.001 * half * exact.abs() + sums * exact.abs().max()).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("K", "bits"), [(96, 8), (480, 4), (25600, 8), (128, 2)])
def test_quantizer_is_the_grid(dtype, K, bits):
    x = 3 * normal(7, K, dtype=dtype)
    x[3] = 0
    x[4] *= 1e-6  # in float16 the smallest numbers; in both, a scale below its limit
    x[5, :8] = torch.tensor([2 ** (bits - 1) - 1, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5], dtype=dtype)
    x[5, 8:] = 0.5  # with 4 and 8 bits the scale is 1, and these are ties
    codes, scale = quantize(x, bits)
    expected, s = codes_of(x, bits)
    assert torch.equal(codes.float(), expected)
    assert torch.equal(scale, s)
    assert torch.equal((codes.float() * scale[:, None]).to(dtype), ActQuant(bits)(x))


def test_quantizer_passes_nan_and_infinity_on():
    x = normal(3, 96, dtype=torch.bfloat16)
    x[0, 95], x[1, 5] = float("nan"), -float("inf")
    scale = quantize(x)[1]
    assert [bool(s) for s in scale.isfinite()] == [False, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", [480, 512])
@pytest.mark.parametrize("residual", [True, False])
def test_norm_and_quantizer_are_the_model_s(dtype, K, residual):
    norm = Qwen3RMSNorm(K, eps=1e-6).to(DEVICE, dtype)
    norm.weight.data = 1 + normal(K, dtype=dtype, seed=1) / 4
    x, delta = normal(2, 3, K, dtype=dtype, seed=2), normal(2, 3, K, dtype=dtype, seed=3) if residual else None
    total, codes, scale = add_rms_norm_quantize(x, delta, norm.weight.data, 1e-6)
    assert torch.equal(total, x + delta if residual else x)
    assert_quantized(codes, scale, norm(total).detach().view(6, K))


@pytest.mark.parametrize("dtype", DTYPES)
def test_activation_and_quantizer_are_the_model_s(dtype):
    gate, up = 4 * normal(5, 480, dtype=dtype, seed=4), normal(5, 480, dtype=dtype, seed=5)
    gate[0, 0] = -100
    codes, scale = silu_mul_quantize(torch.cat([gate, up], -1))
    assert_quantized(codes, scale, silu(gate) * up)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_come_back(bits):
    codes = torch.randint(0, 2**bits, (5, 300), dtype=torch.uint8, device=DEVICE)
    words = wna8.pack_codes(codes, bits)
    assert words.shape == (3, bits, 5, 4)
    assert torch.equal(wna8.unpack_codes(words, 300), codes)


@pytest.mark.parametrize(("N", "K", "group", "M"), [(5, 5 * 96, -1, 3), (70, 256, 128, 1), (64, 512, 256, 17)])
@pytest.mark.parametrize("bits", range(1, 9))
def test_products_are_exact(bits, N, K, group, M):
    dtype = DTYPES[bits % 2]
    weight = round_to_nearest(normal(N, K, seed=bits), Grid(bits, group, symmetric=True))
    x = normal(M, K, dtype=dtype, seed=6)
    codes, scale = codes_of(x, 8)
    exact = (codes.double() * scale.double()[:, None]) @ weight.dequantize().double().T
    assert_rounded(product(x, weight), exact, 0 if group == -1 else 1e-6)
    assert_rounded(product(x, weight, split=2), exact, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "acts"), [(8, 8), (4, 8), (4, 4)])
def test_agrees_with_the_dequantized_model(dtype, bits, acts):
    """What quality was measured with: activations and weights rounded to the dtype, then a product."""
    weight = round_to_nearest(normal(33, 384, seed=7), Grid(bits, -1, symmetric=True))
    x = normal(3, 384, dtype=dtype, seed=8)
    y = product(x, weight, acts, split=3)
    simulated = linear(ActQuant(acts)(x).double(), weight.dequantize().to(dtype).double())
    assert (y.double() - simulated).norm() <= 2 * torch.finfo(dtype).eps * simulated.norm()


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_large_sums_stay_exact(bits):
    """Every product at its largest: sums far beyond float32's 2^24, still right to the last bit."""
    K = 2048
    codes = torch.zeros(2, K, dtype=torch.uint8, device=DEVICE)
    codes[1, 1::2] = 2**bits - 1
    weight = UniformWeight(codes, torch.ones(2, 1, dtype=torch.float16, device=DEVICE), bits)
    x = torch.full((2, K), -127, dtype=torch.int8, device=DEVICE)
    x[1, 0] = -126
    scale = torch.full((2,), 2.0**-12, device=DEVICE)
    y = PackedInteger.of(weight, ActQuant(8)).multiply_codes(x, scale, torch.float16, CONFIG)
    assert_rounded(y, x.double() @ weight.dequantize().double().T / 2**12, 0)
    assert 128 * 127 * wna8.COLUMNS < 2**31 <= 128 * 127 * (wna8.COLUMNS + 1)


def test_several_blocks_of_tokens_ignore_split():
    weight = round_to_nearest(normal(70, 128, seed=9), Grid(3, -1, symmetric=True))
    x = normal(37, 128, dtype=torch.bfloat16, seed=10)
    assert torch.equal(product(x, weight, split=4), torch.cat([product(part, weight) for part in x.split(16)]))


def test_what_it_cannot_do():
    x = normal(1, 256, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"multiple of 128 columns, got groups of 64.*grid.group_size=-1 or 128"):
        product(x, round_to_nearest(normal(8, 256), Grid(4, 64, symmetric=True)))
    with pytest.raises(ValueError, match="2 to 8 bits, got 1"):
        quantize(x, 1)
    with pytest.raises(ValueError, match=r"float16 or bfloat16.*float32"):
        quantize(x.float())
    with pytest.raises(ValueError, match=r"even number of columns.*got 255"):
        silu_mul_quantize(x[:, :255])
    with pytest.raises(ValueError, match="equal shapes"):
        add_rms_norm_quantize(x, pad(x, (0, 0, 0, 1)), x[0], 1e-6)
    K = wna8.COLUMNS + 1
    with pytest.raises(ValueError, match=f"rows of {wna8.COLUMNS} columns, got K={K}"):
        wna8.check(K, -1)


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from qbench.kernels.wna8 import _wna8

for bits, group in ((1, -1), (3, 128), (4, -1), (8, -1)):
    constants = dict(GROUP=group, BITS=bits, EVEN=True, BLOCK_N=64, BLOCK_M=16, SPLIT=2, STAGES=3)
    types = dict(x_ptr="*i8", x_scale_ptr="*fp32", w_ptr="*i32", s_ptr="*fp16", y_ptr="*fp16", counter_ptr="*i32")
    types |= dict(sums_ptr="*fp32", M="i32", N="i32", K="i32") | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in _wna8.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(signature) if types[n][0] == "*" or n in "NK"}
    source = ASTSource(_wna8, signature, constants, aligned)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=4)).asm["ptx"]
    print(bits, ptx.count("m64n16k32.s32.s8.s8"), ptx.count("prmt") // 4, ptx.count(".local"))
"""


def test_weights_go_from_words_to_the_instruction_in_registers(tmp_path):
    """Compiled for an H100 or H200: matrix instructions of 32 columns, no bytes shuffled, nothing in local memory."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | dict(
        TRITON_CACHE_DIR=str(tmp_path)
    )
    ran = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert ran.stdout.split("\n")[:-1] == ["1 4 0 0", "3 4 0 0", "4 4 0 0", "8 4 0 0"], ran.stderr
