"""The weight-only kernels and what they read: packing, products, splits of K, tiles, bad input.

Where there is no GPU these run in Triton's interpreter (conftest.py); with one they run compiled.
"""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.gpu_timing import tuning
from qbench.grid import ActQuant, Grid
from qbench.kernels import configs, launch, pack
from qbench.kernels.packed import PackedBinary, PackedUniform, Unfused, fuse, pack_weight
from qbench.linear import QuantLinear
from qbench.shape import QWEN3
from qbench.weights import BinaryWeight, FloatWeight, UniformWeight, round_to_nearest

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float16, torch.bfloat16)
ROUNDING = {torch.float16: 6e-4, torch.bfloat16: 5e-3}  # relative, for a result rounded once
FUSED = dict(path="fused", block_n=64, block_m=16, split=1, warps=4, stages=2)


def random_uniform(N, K, bits, group, symmetric=False, seed=0) -> UniformWeight:
    w = torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    weight = round_to_nearest(w.to(DEVICE), Grid(bits, group, symmetric))
    return weight


def random_binary(N, K, block=128, seed=0) -> BinaryWeight:
    draw = torch.Generator().manual_seed(seed)
    bits = [torch.rand(N, K, generator=draw) > share for share in (0.5, 0.5, 0.7)]
    salient = torch.rand(K, generator=draw) > 0.9
    levels = torch.randn(N, -(-K // block), 4, 2, generator=draw).half()
    state = [t.to(DEVICE) for t in (bits[0], bits[1], salient, bits[2], levels)]
    return BinaryWeight(*state, block_size=block)


def inputs(M, K, dtype, seed=1):
    return torch.randn(M, K, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def relative(y, reference) -> float:
    return ((y.double() - reference).norm() / reference.norm()).item()


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory that a kernel is given to write is full of NaN before."""
    empty = torch.empty

    def poisoned(*shape, **options):
        t = empty(*shape, **options)
        return t.fill_(float("nan")) if t.is_floating_point() else t

    monkeypatch.setattr(torch, "empty", poisoned)


# -- packing


@pytest.mark.parametrize("lanes", [2, 4])
@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_exact_and_takes_exactly_its_bits(bits, lanes):
    codes = torch.randint(0, 2**bits, (5, 384), device=DEVICE)
    words = pack.pack(codes, bits, lanes)
    assert torch.equal(pack.unpack(words, 384, lanes).long(), codes)
    assert words.numel() * 32 == codes.numel() * bits
    ragged = torch.randint(0, 2**bits, (3, 96), device=DEVICE)
    assert torch.equal(pack.unpack(pack.pack(ragged, bits, lanes), 96, lanes).long(), ragged)


@pytest.mark.parametrize("lanes", [2, 4])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_bit_of_a_word_holds_one_bit_of_a_code(bits, lanes):
    width = 32 // lanes
    used = [
        (word, at + i, c, to + i)
        for c in range(width)
        for word, at, count, to in pack.pieces(bits, lanes, c)
        for i in range(count)
    ]
    assert len({(word, at) for word, at, _, _ in used}) == len(used) == width * bits
    assert {(c, to) for _, _, c, to in used} == {(c, i) for c in range(width) for i in range(bits)}


def test_packing_refuses_codes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"3-bit codes must be 0\.\.7, got 0\.\.8"):
        pack.pack(torch.arange(9).view(1, 9), 3)
    with pytest.raises(ValueError, match="9 bits"):
        pack.pack(torch.zeros(1, 4, dtype=torch.uint8), 9)


# -- products

CASES = [  # N, K, group, M, symmetric, split
    (5, 96, -1, 1, False, 1),
    (70, 256, 128, 3, False, 2),
    (64, 256, 64, 2, True, 1),
    (64, 160, 32, 17, False, 1),
    (5, 96, 48, 2, False, 1),
    (64, 512, 256, 1, True, 2),
    (9, 320, 160, 2, False, 1),
    (64, 512, 128, 1, False, 3),  # the last of three programs has no chunk
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
@pytest.mark.parametrize("bits", range(1, 9))
def test_products_of_packed_weights(bits, case):
    N, K, group, M, symmetric, split = case
    weight = random_uniform(N, K, bits, group, symmetric)
    packed = PackedUniform.of(weight)
    for dtype in DTYPES:
        x = inputs(M, K, dtype)
        reference = x.double() @ weight.dequantize().double().T
        y = packed.multiply(x, FUSED | {"split": split})
        assert y.shape == (M, N)
        assert relative(y, reference) < ROUNDING[dtype]
        assert torch.equal(packed.dequantize(dtype), weight.dequantize().to(dtype))
    assert relative(packed(x), reference) < 2 * ROUNDING[dtype]  # whichever way is chosen
    assert not packed.counters.any()


@pytest.mark.parametrize("block_n", [64, 128])
@pytest.mark.parametrize("block_m", [16, 32, 128])
def test_all_tiles_give_the_same(block_n, block_m):
    weight = random_uniform(136, 256, 4, 128)
    x = inputs(33, 256, torch.float16)
    config = FUSED | {"block_n": block_n, "block_m": block_m}
    y = PackedUniform.of(weight).multiply(x, config)
    assert relative(y, x.double() @ weight.dequantize().double().T) < ROUNDING[torch.float16]


@pytest.mark.parametrize("shape", [(70, 256, 3, 128, 1), (5, 200, 1, 128, 2), (64, 384, 17, 256, 1)])
def test_products_of_binary_weights(shape):
    N, K, M, block, split = shape
    weight = random_binary(N, K, block)
    packed = PackedBinary.of(weight)
    for dtype in DTYPES:
        x = inputs(M, K, dtype)
        y = packed.multiply(x, FUSED | {"split": split})
        assert relative(y, x.double() @ weight.dequantize().double().T) < ROUNDING[dtype]
        assert torch.equal(packed.dequantize(dtype), weight.dequantize().to(dtype))
    assert not packed.counters.any()


def test_groups_that_move_are_sorted():
    weight = random_uniform(20, 256, 3, 64)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    moved = UniformWeight(weight.codes_NK[:, order], weight.scale_NG, 3, weight.zero_NG, (order // 64).to(torch.int16))
    assert torch.equal(moved.dequantize(), weight.dequantize()[:, order])
    packed, x = PackedUniform.of(moved), inputs(3, 256, torch.float16)
    assert torch.equal(packed.dequantize(torch.float16), moved.dequantize().half())
    assert relative(packed(x), x.double() @ moved.dequantize().double().T) < ROUNDING[torch.float16]
    uneven = UniformWeight(weight.codes_NK, weight.scale_NG, 3, weight.zero_NG, torch.zeros(256, dtype=torch.int16))
    with pytest.raises(ValueError, match="groups of equal size"):
        PackedUniform.of(uneven)


def test_extreme_activations_stay_finite_and_nan_stays_nan():
    packed = PackedUniform.of(random_uniform(8, 128, 4, 128))
    x = inputs(2, 128, torch.bfloat16)
    x[0, 3], x[1, 5] = 1e30, float("nan")
    y = packed.multiply(x, FUSED)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


@pytest.mark.gpu
def test_a_cuda_graph_replays_the_same_bits():
    packed, x = PackedUniform.random(4096, 4096, 4), inputs(1, 4096, torch.bfloat16)
    expected = packed(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = packed(x)
    for _ in range(20):
        y.fill_(float("nan"))
        graph.replay()
        assert torch.equal(y, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_full_shapes_on_a_gpu(bits, dtype):
    packed = PackedUniform.random(12288, 4096, bits)
    w = packed.dequantize(torch.float32).double()
    for M in (1, 2, 16, 17, 64, 128, 300):
        x = inputs(M, 4096, dtype)
        assert relative(packed(x), x.double() @ w.T) < 2 * ROUNDING[dtype]


# -- layers


def test_layers_count_and_keep_what_they_store(tmp_path):
    weight = random_uniform(64, 256, 3, 128)
    packed = pack_weight(weight, None)
    assert packed.weight_bytes == 64 * 256 * 3 // 8 + 64 * 2 * (2 + 1)
    x = inputs(2, 256, torch.bfloat16)
    expected = packed(x)
    assert torch.equal(packed.to(torch.bfloat16)(x), expected)
    assert packed.scale_GN.dtype == torch.float16
    save_file(packed.state_dict(), tmp_path / "packed.safetensors")
    state = load_file(tmp_path / "packed.safetensors", DEVICE)
    again = PackedUniform(state["words"], state["scale_GN"], state["zero_GN"], None, **packed.settings)
    assert torch.equal(again(x), expected)


def test_random_layers_are_like_real_ones():
    for packed in (PackedUniform.random(64, 256, 3, device=DEVICE), PackedBinary.random(64, 256, device=DEVICE)):
        x = inputs(2, 256, torch.bfloat16)
        w = packed.dequantize(torch.float32).double()
        assert 0.1 < w.norm(dim=1).mean() < 10
        assert relative(packed(x), x.double() @ w.T) < ROUNDING[torch.bfloat16]


def test_products_of_the_same_activations_become_one():
    x = inputs(2, 256, torch.float16)
    for parts in (
        [PackedUniform.of(random_uniform(n, 256, 3, 128, seed=n)) for n in (64, 16, 16)],
        [PackedBinary.of(random_binary(64, 256)), PackedBinary.of(random_binary(64, 256))],
    ):
        fused = fuse(parts)
        assert type(fused) is type(parts[0])
        assert sum(p.N for p in parts) == fused.N
        assert relative(fused(x), torch.cat([p(x) for p in parts], 1).double()) < 1e-3
    other = PackedUniform.of(random_uniform(16, 256, 4, 128))
    unfused = fuse([parts[0], other])
    assert isinstance(unfused, Unfused)
    assert unfused.weight_bytes == parts[0].weight_bytes + other.weight_bytes
    assert torch.equal(unfused(x), torch.cat([parts[0](x), other(x)], 1))


def test_linears_run_packed():
    weight, bias = random_uniform(64, 256, 4, 128), inputs(1, 64, torch.bfloat16)[0]
    x = inputs(6, 256, torch.bfloat16).view(2, 3, 256)
    layers = [QuantLinear(weight, bias, None, torch.bfloat16, path) for path in ("dequantized", "packed")]
    assert layers[1](x).shape == (2, 3, 64)
    assert relative(layers[1](x), layers[0](x).double()) < 2 * ROUNDING[torch.bfloat16]
    with pytest.raises(ValueError, match="path must be"):
        QuantLinear(weight, None, None, torch.bfloat16, "pack")


# -- bad input


def test_what_no_kernel_takes_is_refused(monkeypatch):
    packed = PackedUniform.of(random_uniform(8, 128, 4, 128))
    with pytest.raises(ValueError, match=r"float16 or bfloat16 activations, got torch\.float32"):
        packed(inputs(1, 128, torch.float32))
    with pytest.raises(ValueError, match=r"K=128 input channels, the activations have 96"):
        packed(inputs(1, 96, torch.float16))
    with pytest.raises(ValueError, match="move one of them"):
        launch.check(torch.empty(1, 128, dtype=torch.float16, device="meta"), 128, packed.words)
    with pytest.raises(ValueError, match="no kernel multiplies a packed FloatWeight"):
        pack_weight(FloatWeight(torch.zeros(8, 128)), None)
    with pytest.raises(ValueError, match="no kernel multiplies a packed BinaryWeight with 8-bit activations"):
        pack_weight(random_binary(8, 128), ActQuant(8))
    with pytest.raises(ValueError, match="block_size=64"):
        PackedBinary.of(random_binary(8, 128, 64))
    if DEVICE == "cpu":
        monkeypatch.setattr(launch, "interpreted", lambda: False)
        with pytest.raises(ValueError, match="on a GPU, and this tensor is on cpu"):
            packed(inputs(1, 128, torch.float16))


# -- tiles


def all_shapes():
    for shape in QWEN3.values():
        yield from {(sum(names.values()), K) for K, names, _ in shape.stages} | set(shape.linears)


def test_estimated_tiles_fit_every_shape():
    for N, K in all_shapes():
        for M in configs.TOKENS:
            for kernel in configs.KERNELS:
                config = configs.estimate(kernel, N, K, M, 132)
                if config["path"] == "dequantize":
                    assert M > 64
                    assert kernel != "wna8"
                    continue
                assert config["block_n"] % 64 == 0
                assert config["block_m"] >= min(M, 128)
                assert 1 <= config["split"] <= max(1, K // 256)
                shared = config["stages"] * (config["block_n"] * 64 + config["block_m"] * 256)
                assert shared <= tuning.SHARED
                assert config["split"] == 1 or config["block_m"] >= M
                assert config["block_n"] * config["block_m"] <= config["warps"] * 32 * 64


def test_estimated_tiles_leave_no_processor_idle():
    for N, K in ((6144, 4096), (24576, 4096), (4096, 12288), (51200, 5120)):
        config = configs.estimate("wna16", N, K, 1, 132)
        assert -(-N // config["block_n"]) * config["split"] >= 132
    assert configs.estimate("wna16", 1024, 1024, 1, 1)["block_n"] == 512


def test_measured_tiles_are_read_and_other_token_counts_are_estimated(tmp_path, monkeypatch):
    best = FUSED | {"split": 7}
    monkeypatch.setattr(configs, "FOLDER", tmp_path)
    path = configs.save("Some GPU", {"wna16": {"4": {"64x256": {"16": best}}}})
    assert path.name == "some-gpu.json"
    assert configs.measured("Some GPU")["wna16"]["4"]["64x256"]["16"] == best
    assert configs._choose("wna16", 4, 64, 256, 16, "Some GPU", 132) == best
    assert configs._choose("wna16", 4, 64, 256, 1, "Some GPU", 132) != best
    configs._choose.cache_clear()


@pytest.mark.parametrize(
    ("text", "says", "kernels"),
    [
        (json.dumps({"gpu": "G", "triton": "0.1", "kernels": {"wna16": {}}}), "with Triton 0.1", {"wna16": {}}),
        ("{", "damaged", {}),
    ],
)
def test_another_triton_s_tiles_are_used_and_damaged_ones_are_not(tmp_path, monkeypatch, text, says, kernels):
    monkeypatch.setattr(configs, "FOLDER", tmp_path)
    (tmp_path / "g.json").write_text(text)
    configs.measured.cache_clear()
    with pytest.warns(UserWarning, match=says):
        assert configs.measured("G") == kernels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert configs.measured("H") == {}


# -- compiled for a GPU that is not here

COMPILE = """
import re, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from qbench.kernels.wna16 import _wna16 as f
types = dict(x_ptr="*bf16", w_ptr="*i32", s_ptr="*fp16", z_ptr="*u8", y_ptr="*bf16", sums_ptr="*fp32",
             counter_ptr="*i32", M="i32", N="i32", K="i32")
for bits in map(int, sys.argv[1:]):
    fixed = dict(GROUP=128, BITS=bits, MIDDLE=0.0, EVEN=True, SINGLE=True, BLOCK_N=128, BLOCK_M=16, SPLIT=4, STAGES=4)
    signature = types | dict.fromkeys(fixed, "constexpr")
    even = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(f.arg_names) if n in types and n != "M"}
    k = triton.compile(ASTSource(f, {n: signature[n] for n in f.arg_names}, constexprs=fixed, attrs=even),
                       target=GPUTarget("cuda", 90, 32), options=dict(num_warps=4, num_stages=4))
    ir, ptx = k.asm["ttgir"], k.asm["ptx"]
    tile = re.findall(r"convert_layout.*tensor<128x(?:64|128)x", ir)
    tile += re.findall(r"local_alloc %\\S+ : \\(tensor<128x128x", ir)
    wide = re.findall(r"cp.async.cg.shared.global \\[[^]]*\\], \\[[^]]*\\], 0x10", ptx)
    print(bits, len(tile), len(re.findall("wgmma.mma_async", ptx)), len(wide), int(".local" in ptx))
"""


def test_tiles_stay_in_registers_on_hopper():
    """sm_90 code of the decode kernel: weights come in 16-byte asynchronous copies, become the register operand of
    wgmma without a detour over shared memory, and nothing is spilled."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, "4", "3", "1"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for line in done.stdout.splitlines():
        bits, conversions, products, wide, spills = map(int, line.split())
        assert conversions == 0
        assert spills == 0
        assert products >= 8
        assert wide >= bits
