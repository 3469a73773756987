"""The kernels of a decode step against float64, the lean decoder against transformers, and timing on a fake clock."""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import tiny_config
from fakes.latency_fakes import bench
from fakes.oracles import weight_only_bytes
from torch.nn import functional as F
from transformers import DynamicCache, Qwen3ForCausalLM

from qbench.decoder.model import Decoder, check_model
from qbench.grid import ActQuant, Grid
from qbench.kernels.attention import decode_attention
from qbench.kernels.fused import add_rms_norm, rope_cache, silu_mul
from qbench.kernels.packed import PackedInteger, PackedUniform
from qbench.latency import models
from qbench.latency.bench import DeviceLostError
from qbench.latency.clock import Clock
from qbench.latency.models import random_dense, time_decoders, timed
from qbench.latency.record import BF16, Kernel, ModelRow
from qbench.shape import Shape
from qbench.weights import round_to_nearest

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.bfloat16, torch.float16)
ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # half a unit in the last place, relative


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def close(got, want, dtype, rounds=2.0):
    """Within ``rounds`` roundings of the largest number."""
    assert got.dtype == dtype
    error = (got.double() - want.double()).abs().max() / want.double().abs().max()
    assert error <= rounds * ULP[dtype], f"{error:.2e} of {ULP[dtype]:.2e}"


def norm64(x, gain, eps=1e-6):
    x = x.double()
    return gain.double() * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "D"), [(1, 128), (3, 80), (2, 5120)])
def test_add_rms_norm(dtype, rows, D):
    x, delta, gain = (
        randn(rows, D, dtype=dtype),
        30 * randn(rows, D, seed=1, dtype=dtype),
        randn(D, seed=2, dtype=dtype),
    )
    total, normed = add_rms_norm(x, delta, gain, 1e-6)
    assert torch.equal(total, x + delta)
    close(normed, norm64(x + delta, gain), dtype)
    same, normed = add_rms_norm(x, None, gain, 1e-6)
    assert torch.equal(same, x)
    close(normed, norm64(x, gain), dtype)


def rotated64(x, cos, sin):
    """x [..., d] with its halves turned by the angles of cos, sin [..., d / 2]."""
    a, b = x.double().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def angles(T, d):
    turn = torch.arange(T)[:, None] * 10000.0 ** -(torch.arange(0, d, 2) / d)
    return turn.cos().to(DEVICE), turn.sin().to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "J", "S", "start"), [(4, 2, 1, (6, 0, 3)), (5, 1, 3, (0, 4, 2)), (2, 2, 1, (6, 7, 3))])
def test_rope_cache(dtype, H, J, S, start):
    B, T, d = 3, 7, 32
    cos, sin = (x.to(dtype) for x in angles(T, d))
    qkv, q_gain, k_gain = (randn(*s, seed=i, dtype=dtype) for i, s in enumerate([(B, S, (H + 2 * J) * d), (d,), (d,)]))
    k, v = torch.full((2, B, T, J, d), torch.nan, dtype=dtype, device=DEVICE)
    position = torch.tensor(start, dtype=torch.int32, device=DEVICE)
    got = rope_cache(qkv, q_gain, k_gain, cos, sin, position, k, v, 1e-6)
    heads = qkv.view(B, S, H + 2 * J, d)
    want_k, want_v = torch.full((2, B, T, J, d), torch.nan, dtype=torch.float64, device=DEVICE)
    for b in range(B):
        for s in range(S):
            t = start[b] + s
            if t >= T:  # no place is left: nothing is written, anywhere
                continue
            turn = cos[t].double(), sin[t].double()
            close(got[b, s], rotated64(norm64(heads[b, s, :H], q_gain), *turn), dtype, 4)
            want_k[b, t] = rotated64(norm64(heads[b, s, H : H + J], k_gain), *turn)
            want_v[b, t] = heads[b, s, H + J :].double()
    assert torch.equal(k.isnan(), want_k.isnan())
    close(k.nan_to_num(), want_k.nan_to_num(), dtype, 4)
    assert torch.equal(v.nan_to_num().double(), want_v.nan_to_num())
    assert torch.equal(v.isnan(), want_v.isnan())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 24), (2, 1, 1400), (3, 512 * 2)])
def test_silu_mul(dtype, shape):
    x = 4 * randn(*shape, dtype=dtype)
    gate, up = x.double().chunk(2, -1)
    close(silu_mul(x), F.silu(gate) * up, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "J", "splits"), [(4, 2, 1), (4, 2, 2), (5, 1, 3), (2, 2, 16), (16, 1, 5)])
def test_decode_attention(dtype, H, J, splits):
    B, T, d = 3, 150, 16
    last = (0, 149, 70)
    q, k, v = (
        3 * randn(B, H, d, dtype=dtype),
        randn(B, T, J, d, seed=1, dtype=dtype),
        randn(B, T, J, d, seed=2, dtype=dtype),
    )
    for b, t in enumerate(last):  # whatever lies behind the newest token must not matter
        k[b, t + 1 :] = torch.nan
        v[b, t + 1 :] = torch.nan
    done = torch.zeros(B, J, dtype=torch.int32, device=DEVICE)
    position = torch.tensor(last, dtype=torch.int32, device=DEVICE)
    first, again = (decode_attention(q, k, v, position, done, splits) for _ in range(2))
    assert torch.equal(first, again)
    assert not done.any()
    for b, t in enumerate(last):
        wide_k, wide_v = (x[b, : t + 1].double().repeat_interleave(H // J, 1) for x in (k, v))
        p = torch.einsum("hd,thd->ht", q[b].double(), wide_k).div(d**0.5).softmax(-1)
        close(first[b], torch.einsum("ht,thd->hd", p, wide_v), dtype, 3)


def qwen3(dtype, seed=0, **changes):
    """A small random model whose numbers are of the size of a trained one's."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(tiny_config(**dict(num_hidden_layers=2, vocab_size=256) | changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn_like(p) + 1 if p.ndim == 1 else torch.randn_like(p) * p.shape[-1] ** -0.5)
    return model.to(DEVICE, dtype)


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (torch.bfloat16, dict(rope_parameters=dict(rope_type="default", rope_theta=500.0))),
        (torch.float16, dict(tie_word_embeddings=False, num_key_value_heads=1)),
    ],
)
@torch.no_grad()
def test_decoder_is_transformers_qwen3(dtype, changes):
    """Prompts, then greedy tokens: as near to the model in float32 as transformers in the same dtype."""
    model = qwen3(dtype, **changes)
    exact = copy.deepcopy(model).float()
    length, steps = 6, 3
    ids = torch.randint(0, 256, (2, 6), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    decoder = Decoder.of(model, batch=2, context=length + steps)
    got = [decoder.prefill(ids)]
    tokens = [decoder.token_B.clone()]
    for _ in range(steps):
        got.append(decoder.step())
        tokens.append(decoder.token_B.clone())
    error = allowed = 0.0
    for b in range(2):
        cache, wide, row, wide_row = DynamicCache(), DynamicCache(), ids[b : b + 1], ids[b : b + 1]
        for ours, token in zip(got, tokens):
            theirs = model(row, past_key_values=cache).logits[0, -1].float()
            want = exact(wide_row, past_key_values=wide).logits[0, -1]
            error += (ours[b].float() - want).square().sum()
            allowed += (theirs - want).square().sum()
            tie = 4 * ULP[dtype] * theirs.abs().max()
            assert theirs[token[b]] >= theirs.max() - tie
            row = wide_row = token[b].view(1, 1)
    assert error <= 1.3**2 * allowed, f"{error**0.5:.2e}, transformers {allowed**0.5:.2e}"


@torch.no_grad()
def test_decoder_with_packed_weights():
    """A model of which every linear is packed gives the logits of the model with the dequantized weights."""
    model = qwen3(torch.float16, num_hidden_layers=1)
    ids = torch.randint(0, 256, (1, 3), generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def packed(w_NK):
        return PackedUniform.of(round_to_nearest(w_NK, Grid(4, 64)))

    got = Decoder.of(model, 1, 4, packed).prefill(ids)
    for linear in model.modules():
        if isinstance(linear, torch.nn.Linear) and linear is not model.lm_head:
            linear.weight.copy_(packed(linear.weight).dequantize(torch.float16))
    close(got, model(ids).logits[:, -1], torch.float16, 16)


@torch.no_grad()
def test_integer_products_get_the_activations_they_would_quantize():
    """To the bit, though the norms and the MLP's activation quantize in their own launch."""

    class Apart(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    def packed(w_NK):
        return PackedInteger.of(round_to_nearest(w_NK, Grid(4, -1, symmetric=True)), ActQuant(8))

    model = qwen3(torch.float16, num_hidden_layers=1)
    ids = torch.randint(0, 256, (1, 3), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    together = Decoder.of(model, 1, 4, packed).prefill(ids)
    apart = Decoder.of(model, 1, 4, lambda w_NK: Apart(packed(w_NK))).prefill(ids)
    assert torch.equal(together, apart)
    exact = Decoder.of(model, 1, 4).prefill(ids)
    assert 0.01 < (together - exact).norm() / exact.norm() < 0.5


def test_decoder_refuses():
    for change, message in (
        (dict(attention_bias=True), "biases in attention"),
        (dict(head_dim=24), "head width 24"),
        (dict(num_attention_heads=17, num_key_value_heads=1), "17 query heads"),
    ):
        with pytest.raises(ValueError, match=message):
            Decoder.of(qwen3(torch.float16, **change), 1, 4)
    for family in ("qwen2", "llama", "mistral"):
        with pytest.raises(ValueError, match=f"no decoder layers of {family}; give it a dense Qwen3"):
            check_model(tiny_config(family))
    for field, message in ((dict(biases=("q_proj",)), "biases in q_proj"), (dict(qk_norms=False), "without norms")):
        with pytest.raises(ValueError, match=message):
            Decoder.random(replace(TINY, **field), partial(random_dense, device=DEVICE), 1, 4, torch.float16, DEVICE)
    model = qwen3(torch.float16)
    model.model.layers[1].mlp.up_proj = torch.nn.Sequential()
    with pytest.raises(ValueError, match="Sequential as a linear"):
        Decoder.of(model, 1, 4)
    decoder = Decoder.of(qwen3(torch.float16), 2, 4)
    for size in [(2, 5), (1, 4)]:
        with pytest.raises(ValueError, match="takes 2 prompts of up to 4 tokens"):
            decoder.prefill(torch.zeros(size, dtype=torch.int64, device=DEVICE))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: add_rms_norm(x.float(), None, x[0], 1e-6), "float16 or bfloat16"),
        (lambda x: add_rms_norm(x, x[:1], x[0], 1e-6), "added"),
        (lambda x: silu_mul(x[:, :7]), "even number"),
    ],
)
def test_kernels_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call(randn(2, 8, dtype=torch.float16))


TINY = Shape(64, 128, layers=1, heads=4, kv_heads=2, head_dim=16, vocab=32, tied=False)


def test_random_decoder_is_as_large_as_the_real_one():
    shape = replace(TINY, layers=2)
    decoder = Decoder.random(shape, partial(random_dense, device=DEVICE), 3, 8, torch.bfloat16, DEVICE)
    embedding = 2 * shape.vocab * shape.hidden
    assert decoder.weight_bytes == shape.weight_bytes() - embedding + 3 * 2 * shape.hidden
    assert shape.cache_bytes * 3 * 8 == decoder.k_cache_LBTJd.nbytes + decoder.v_cache_LBTJd.nbytes
    tensors = [p for layer in decoder.layers for p in (*layer.parameters(), *layer.buffers())]
    assert len({t.data_ptr() for t in tensors}) == len(tensors) == 8 * shape.layers
    logits = decoder.prefill(torch.arange(12, device=DEVICE).view(3, 4))
    assert logits.isfinite().all()
    assert logits.std() > 0.1


class FakeClock:
    """Every replay takes 1000, 1100, 1200... microseconds; ``now`` is a second later each time it is asked."""

    def __init__(self, broken_at=None):
        self.seconds, self.broken_at, self.graphs = 0.0, broken_at, 0

    def graph(self, fn):
        self.graphs += 1
        if self.graphs == self.broken_at:
            raise RuntimeError("an illegal memory access was encountered")
        fn()
        return fn

    def time(self, replay, runs):
        return [1000.0 + 100 * i for i in range(runs)]

    def synchronize(self):
        if self.graphs == self.broken_at:
            raise RuntimeError("nothing runs any more")

    def now(self):
        self.seconds += 1
        return self.seconds


BANDWIDTH = 2e9  # bytes per second


def tiny_rows(clock, *kernels, keep=None):
    """The rows of a tiny model with each of ``kernels``."""
    found: list = []
    machine = bench(clock=clock, device=DEVICE, models={"qwen3-tiny": TINY})
    each = [("decode", 1, 6), ("decode", 2, 6), ("prefill", 1, 5)]
    wanted = [ModelRow("qwen3-tiny", what, kernel, *size) for kernel in kernels for what, *size in each]
    time_decoders(machine, wanted, BANDWIDTH, keep or found.append)
    return found


def test_rows_of_a_model(monkeypatch):
    w3 = Kernel("wna16", 3, 32)
    monkeypatch.setattr(models, "RUNS", (5, 5))
    monkeypatch.setitem(models.CHOICES, w3, partial(PackedUniform.random, bits=3, group_size=32))
    found = tiny_rows(FakeClock(), BF16, w3)
    assert [row.kernel for row in found] == [BF16] * 3 + [w3] * 3
    for row in found:
        assert (row.ms, row.ms_p20, row.ms_p80, row.runs) == pytest.approx((1.2, 1.08, 1.32, 5))
        tokens = row.batch * (row.context if row.what == "prefill" else 1)
        assert row.tokens_per_s == pytest.approx(tokens / 1.2e-3)
        assert row.cache_bytes == 2 * 2 * TINY.layers * row.batch * row.context * 2 * 16
        assert row.floor_ms == pytest.approx((row.weight_bytes + row.cache_bytes) / 2e6)
    rest = 2 * (TINY.vocab * TINY.hidden + TINY.hidden + TINY.layers * 2 * (64 + 16)) + 2 * TINY.hidden
    assert found[0].weight_bytes == 2 * TINY.linear_parameters + rest
    packed = sum(weight_only_bytes(0, N, K, 3, 32) for N, K in TINY.linears) * TINY.layers
    assert found[3].weight_bytes >= packed + rest


def test_a_model_that_fails_has_rows_that_say_so(monkeypatch):
    def too_large(N, K, device):
        raise torch.OutOfMemoryError("tried to allocate 65 GiB")

    large = Kernel("wna16", 4, 128)
    monkeypatch.setitem(models.CHOICES, large, too_large)
    found = tiny_rows(FakeClock(), large, BF16)
    assert [r.ms is None for r in found] == [True] * 3 + [False] * 3
    assert {note for r in found[:3] for note in r.notes} == {"failed: OutOfMemoryError: tried to allocate 65 GiB"}
    assert found[0].floor_ms is None


def test_a_lost_device_ends_the_model_after_its_row():
    found = []
    with pytest.raises(DeviceLostError, match="16-bit cublas_bf16, batch 1"):
        tiny_rows(FakeClock(broken_at=1), BF16, keep=found.append)
    assert [row.notes for row in found] == [["failed: RuntimeError: an illegal memory access was encountered"]]


@torch.no_grad()
def test_a_step_that_does_not_advance_repeats_itself():
    decoder = Decoder.random(TINY, partial(random_dense, device=DEVICE), 2, 8, torch.bfloat16, DEVICE)
    decoder.prefill(torch.arange(10, device=DEVICE).view(2, 5))
    token = decoder.token_B.clone()
    first = decoder.step(advance=0)
    decoder.token_B.copy_(token)
    assert torch.equal(decoder.step(), first)
    assert decoder.position_B.tolist() == [6, 6]


def test_a_measured_step_sees_the_context_it_says():
    decoder = Decoder.random(TINY, partial(random_dense, device=DEVICE), 2, 1, torch.bfloat16, DEVICE)
    row = ModelRow("qwen3-tiny", "decode", BF16, 2, 6)
    assert timed(row, decoder, FakeClock(), BANDWIDTH).runs > 0
    assert decoder.position_B.tolist() == [5, 5]
    before = decoder.k_cache_LBTJd.clone()
    decoder.k_cache_LBTJd[:, :, 5] = torch.nan  # where the new token goes
    decoder.step(advance=0)
    assert torch.equal(decoder.k_cache_LBTJd[:, :, :5], before[:, :, :5])
    assert decoder.k_cache_LBTJd.isfinite().all()


LAUNCH_A_STEP = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

class NoGpu:  # launches are bound and compiled as on an H200, and not run
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

launched = {}
run = JITFunction.run
def compile_only(self, *args, grid, warmup, **options):
    launched[self.fn.__name__] = run(self, *args, grid=grid, warmup=True, **options)
driver.set_active(NoGpu())
JITFunction.run = compile_only

from qbench.shape import Shape
from qbench.kernels import attention, fused
from qbench.decoder import model as decoder
from qbench.latency import models
fused.check = attention.check = lambda x, K, weight: x.reshape(-1, K)  # which refuses the CPU
decoder.attention_splits = lambda programs, device: 16
shape = Shape(4096, 12288, layers=1, heads=32, kv_heads=8, head_dim=128, vocab=64, tied=True)
class Zeros(torch.nn.Module):
    def __init__(self, N, K):
        super().__init__()
        self.N = N
    def forward(self, x):
        return x.new_zeros(*x.shape[:-1], self.N)
decoder.Decoder.random(shape, Zeros, 1, 1024, torch.bfloat16, "cpu").step()
for name, kernel in sorted(launched.items()):
    ptx = kernel.asm["ptx"]
    print(name, ".local" in ptx, ptx.count("ld.global.v4") + ptx.count("cp.async.cg.shared.global") > 0)
"""


def test_a_step_compiles_for_an_h200():
    """All kernels of a step, with the arguments of a real launch: no local memory, 16 bytes a load."""
    pytest.importorskip("triton.backends.nvidia")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", LAUNCH_A_STEP]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr[-2000:]
    names = ("_add_rms_norm", "_decode_attention", "_rope_cache", "_silu_mul")
    assert found.stdout.split("\n")[:-1] == [f"{name} False True" for name in names]


@pytest.mark.gpu
@torch.no_grad()
def test_graph_of_a_step_generates_what_eager_steps_do():
    """And so often that a race between the programs that share a sequence would show."""
    shape = Shape(1024, 3072, layers=4, heads=32, kv_heads=8, head_dim=128, vocab=1000, tied=True)
    prompt = torch.arange(600, device="cuda").view(1, 600)
    decoder = Decoder.random(shape, partial(random_dense, device="cuda"), 1, 700, torch.bfloat16, "cuda")
    assert decoder.splits > 1
    replay = Clock().graph(decoder.step)
    generated = []
    for step in (decoder.step, replay):
        for _ in range(20):
            decoder.prefill(prompt)
            tokens = []
            for _ in range(64):
                step()
                tokens.append(decoder.token_B.clone())
            generated.append(torch.cat(tokens))
    assert all(torch.equal(g, generated[0]) for g in generated)
    assert not decoder.done_BJ.any()
