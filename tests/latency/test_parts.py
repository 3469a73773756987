"""The parts that measure latency: percentiles and rings, what is compared and in which order, and the same on a GPU."""

import math
import pickle
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes.latency_fakes import PROVENANCE, FakeClock, Lazy, Plain, Wrong

from experiments.gpu_timing.jobs import layers, make_jobs
from experiments.gpu_timing.session import Session, gpu_bench
from experiments.peers import torch_kernels as peers
from qbench.latency.clock import Clock, Timing, measure
from qbench.latency.jobs import MODELS, TOKENS
from qbench.latency.models import CHOICES
from qbench.latency.products import Contender, normal, poisoned, relative_error, ring_size
from qbench.latency.record import BF16, Kernel
from qbench.shape import QWEN3

# -- the clock


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_a_timing_has_numpys_percentiles(n):
    samples = np.random.default_rng(n).random(n)
    found = Timing.of(samples.tolist())
    assert (found.p20, found.us, found.p80) == pytest.approx(np.quantile(samples, [0.2, 0.5, 0.8]), rel=1e-12)


def test_timing_says_its_spread():
    steady = Timing.of([10.0, 10.1, 10.2, 10.0, 10.1])
    assert (steady.us, steady.runs, steady.notes) == (10.1, 5, ())
    shaken = Timing.of([10.0, 10.0, 10.0, 14.0, 14.0])
    assert shaken.p20 <= shaken.us <= shaken.p80
    assert "unsteady" in shaken.notes[0]
    assert "40 %" in shaken.notes[0]


@pytest.mark.parametrize("size", [1, 999, 1000, 50_000, 10**9])
def test_ring_keeps_three_caches_between_two_uses(size):
    l2 = 50_000
    n = ring_size(size, l2)
    assert (n - 1) * size >= 3 * l2
    assert n == 2 or (n - 2) * size < 3 * l2


def test_measure_goes_round_and_divides():
    order, clock = [], FakeClock(us=200.0)  # the ring takes 200 us, so 5 rounds fill a replay of 1000

    def launch(i):
        order.append(i)
        return torch.zeros(1)

    found = measure([partial(launch, i) for i in range(4)], clock, budget_us=30_000)
    assert found.us == 200 / (4 * 5)
    assert order[-20:] == [0, 1, 2, 3] * 5
    assert found.runs == 30
    assert measure([partial(launch, 0)], FakeClock(us=5e6), budget_us=30_000).runs == 10
    assert measure([partial(launch, 0)], FakeClock(us=1e3), budget_us=1e9).runs == 100


def test_measure_keeps_a_whole_ring_of_outputs():
    alive = []

    class Watching(FakeClock):
        def graph(self, fn):
            alive.append(fn())
            return super().graph(fn)

    measure([lambda: torch.empty(8)] * 5, Watching())
    assert len({y.data_ptr() for y in alive[0]}) == 5


def test_cuda_clock_brackets_replays(monkeypatch):
    """The calls in their order, on a torch.cuda that only writes them down."""
    said = []
    event = SimpleNamespace(record=lambda: said.append("event"), elapsed_time=lambda end: 0.25)
    fake = SimpleNamespace(synchronize=lambda: said.append("synchronize"), Event=lambda enable_timing: event)
    monkeypatch.setattr(torch, "cuda", fake)
    assert Clock().time(lambda: said.append("replay"), 2) == [250.0, 250.0], "milliseconds become microseconds"
    assert said == ["replay", "event", "replay", "event", "event", "replay", "event", "synchronize"]


# -- products


def test_poison_fills_and_goes():
    with poisoned():
        assert torch.empty(64).isnan().all()
        assert (torch.empty(64, dtype=torch.int32) == 2**31 - 1).all()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("kind", [Plain, peers.CublasBf16, peers.IntMM, peers.ScaledMM])
@pytest.mark.parametrize("M", [1, 5, 33])
def test_products_are_their_dequantized_weights(kind, M):
    product = kind(48, 256, "cpu", 1)
    error = relative_error(product, product.activations(M, 2))
    assert error <= product.tolerance
    other = kind(48, 256, "cpu", 7)
    assert not relative_error(product, product.activations(M, 2), other.dequantized().double()) <= product.tolerance


def test_error_sees_wrong_and_unwritten():
    assert relative_error(Wrong(32, 64, "cpu", 0), (normal((2, 64), "cpu", 1),)) == pytest.approx(0.05, rel=0.1)
    assert math.isnan(relative_error(Lazy(32, 64, "cpu", 0), (normal((2, 64), "cpu", 1),)))
    narrow = Plain(32, 64, "cpu", 0)
    narrow.multiply = lambda x: x[:, :3]
    with pytest.raises(ValueError, match="shape"):
        relative_error(narrow, (normal((2, 64), "cpu", 1),))


def test_peers_count_their_bytes():
    """N=256, K=384, 3 tokens: stored tensors, activations and outputs by hand."""
    assert peers.CublasBf16(256, 384, "cpu", 0).bytes(3) == 2 * 256 * 384 + 2 * 3 * 384 + 2 * 3 * 256
    fp8 = peers.ScaledMM(256, 384, "cpu", 0)
    assert fp8.weight_bytes == 256 * 384 + 4 * 256
    assert fp8.bytes(3) == fp8.weight_bytes + 3 * 384 + 3 * 4 + 3 * 256 * 2
    assert peers.IntMM(256, 384, "cpu", 0).bytes(32) == 256 * 384 + 32 * 384 + 32 * 256 * 4


def test_torch_int4_is_what_its_cpu_twin_says(monkeypatch):
    """The same product on the CPU takes codes one a number; the pairs have the even column in the high half."""

    def convert(pairs, tiles):
        codes = torch.stack([pairs >> 4, pairs & 15], -1).flatten(1)
        return torch._convert_weight_to_int4pack_for_cpu(codes.int(), tiles)

    monkeypatch.setattr(torch, "_convert_weight_to_int4pack", convert)
    monkeypatch.setattr(torch, "_weight_int4pack_mm", torch._weight_int4pack_mm_for_cpu)
    product = peers.TorchInt4(64, 256, "cpu", 0)
    assert product.weight_bytes == 64 * 256 // 2 + 64 * 2 * 2 * 2
    with pytest.raises(ValueError, match="K=320"):
        peers.TorchInt4(64, 320, "cpu", 0)
    assert relative_error(product, product.activations(3, 1)) <= product.tolerance
    other = peers.TorchInt4(64, 256, "cpu", 1).dequantized()
    assert relative_error(product, product.activations(3, 1), other) > 0.5


# -- the jobs


def test_jobs_have_everything_once_and_the_important_first():
    contenders = [Contender(BF16, Plain), *(Contender(Kernel("wna16", b, 128), Plain) for b in range(1, 9))]
    jobs = make_jobs(contenders, MODELS, TOKENS)
    assert len({job.key for job in jobs}) == len(jobs) == 7 * 5 * 9 * 10
    assert [job.rank for job in jobs] == sorted(job.rank for job in jobs)
    first = [job for job in jobs if job.rank == 0]
    assert {job.model for job in first} == {"qwen3-8b", "qwen3-32b"}
    assert {job.M for job in first} == {1}
    assert {job.contender.kernel.bits for job in first} == {16, 4, 3, 2, 1, 8}
    weights = [job.weight for job in jobs]
    assert sum(a != b for a, b in pairwise(weights)) + 1 == len(set(weights)), "a weight is made once a rank"


def test_layers_have_the_shapes_of_qwen3():
    shapes = layers(MODELS["qwen3-8b"])
    assert shapes == {
        "qkv_proj": (6144, 4096),
        "o_proj": (4096, 4096),
        "gate_up_proj": (24576, 4096),
        "down_proj": (4096, 12288),
        "gate_proj": (12288, 4096),
    }
    assert layers(MODELS["qwen2.5-7b"])["qkv_proj"] == (4608, 3584)


def test_a_contender_has_no_jobs_with_fewer_tokens_than_its_least():
    few = Contender(Kernel("dequantize_cublas", 4, 128), Plain, least_tokens=16)
    assert {job.M for job in make_jobs([few], MODELS, TOKENS)} == {16, 32, 64, 128, 512, 2048}


def test_a_gpu_gets_all_contenders(monkeypatch):
    found = PROVENANCE | {"l2_bytes": 7}
    describe = lambda device, commit: (found | {"commit": commit}, ["said"])  # noqa: E731
    monkeypatch.setattr("experiments.gpu_timing.session.describe", describe)
    b = gpu_bench(peers.contenders(), "abc")
    assert (b.device, b.l2_bytes, b.notes, b.provenance["commit"]) == ("cuda", 7, ["said"], "abc")
    kernels = [c.kernel for c in pickle.loads(pickle.dumps(b.contenders))]
    assert kernels[0] == BF16
    assert len(set(kernels)) == len(kernels)
    others = [("wna8", 8, -1), ("wna8", 4, -1), ("binary", 1, 128), ("dequantize_cublas", 4, 128)]
    assert {Kernel("wna16", bits, 128) for bits in range(1, 9)} | {Kernel(*k) for k in others} < set(kernels)
    assert CHOICES.keys() < set(kernels), "decoders run kernels that are also timed alone"


# -- on a GPU


@pytest.mark.gpu
def test_cuda_clock_times_what_is_captured():
    x = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    one = measure([lambda: x @ x], Clock())
    two = measure([lambda: x @ x @ x], Clock())
    assert 1.6 < two.us / one.us < 2.4


@pytest.mark.gpu
def test_peers_on_the_gpu():
    for contender in peers.contenders():
        product = contender.load(512, 1024, "cuda", 0)
        for M in (m for m in (1, 16, 40) if m >= contender.least_tokens):
            assert relative_error(product, product.activations(M, 1)) <= product.tolerance, contender.kernel


@pytest.mark.gpu
def test_a_whole_call_on_the_gpu(tmp_path):
    """The smallest model, one token: every contender is right, and is timed or says why not."""
    b = replace(gpu_bench(peers.contenders(), None), models={"qwen3-0.6b": QWEN3["0.6b"]}, tokens=(1, 16), steps=())
    run = Session(b, tmp_path)
    run.run()
    assert len(run.record.kernels) == len(run.jobs)
    for row in run.record.kernels:
        assert row.us or row.notes, row
        assert row.us or row.kernel.name.startswith("torch_"), row.notes
