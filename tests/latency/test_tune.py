"""What is compiled before timing, the search for launch parameters, and our kernels as what is measured."""

import json
import math
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
from fakes.latency_fakes import OURS, TINY, FakeClock, Plain, bench, script

from experiments.gpu_timing import tuning as tune
from experiments.gpu_timing.jobs import layers
from experiments.peers import torch_kernels as peers
from qbench.kernels import configs, pack
from qbench.kernels.packed import PackedUniform
from qbench.latency import own_kernels
from qbench.latency.bench import variants
from qbench.latency.jobs import Job
from qbench.latency.products import Contender, Ring, relative_error
from qbench.latency.record import BF16, Kernel


def job(contender, M=1, N=512, K=1024):
    return Job(contender, "qwen3-8b", "o_proj", N, K, M)


# -- compiling


def test_variants_are_what_triton_tells_apart():
    same_tiles = replace(OURS, config=partial(tune._fixed, {"block_m": 16}))
    found = variants([job(same_tiles, M) for M in (1, 2, 3, 16, 32)], "cpu")
    assert [j.M for j in found.values()] == [1, 2, 16]
    assert len(variants([job(OURS, 16), job(OURS, 32)], "cpu")) == 2, "other tiles"
    assert len(variants([job(same_tiles), job(same_tiles, K=1000)], "cpu")) == 2, "other divisors"
    assert len(variants([job(same_tiles), job(same_tiles, K=2048)], "cpu")) == 1
    assert not variants([job(Contender(BF16, Plain))], "cpu")


def test_each_variant_is_launched_once():
    launched, machine = [], bench()
    contender = replace(OURS, load=partial(Plain, count=launched))
    jobs = [job(contender, M) for M in (1, 1, 16)]
    machine.compile([*jobs, job(replace(OURS, kernel=Kernel("wna16", 3, 128), load=None))])
    assert len(launched) == 2, "and what fails there fails again where it is said"
    machine.compile(jobs)
    assert len(launched) == 2


def test_other_processes_compile(capsys):
    """What is sent there can be pickled; a process that dies does not end the measurement."""
    small = job(Contender(Kernel("wna16", 4, 128), peers.CublasBf16, config=partial(tune._fixed, {})), N=8, K=8)
    deadly = replace(small, contender=replace(small.contender, kernel=Kernel("wna16", 3, 128), load=_die))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as workers:
        machine = bench(compilers=workers)
        for one, said in ((small, ""), (deadly, "a process that compiled 1 kernels died")):
            machine.compile([one])
            assert (said in capsys.readouterr().err) if said else capsys.readouterr().err == ""


def _die(*_):
    os._exit(1)


# -- tuning


class Tunable(Plain):
    """As fast as ``price`` says of its configuration."""

    running = None

    def __init__(self, N, K, device, seed, config=None):
        super().__init__(N, K, device, seed)
        self.config = config

    def multiply(self, x_MK):
        Tunable.running = self.config
        if self.config == BROKEN:
            raise RuntimeError("out of resource: shared memory")
        return super().multiply(x_MK) * (1.5 if self.config == WRONG else 1)


def tiles(**changes):
    return dict(path="fused", block_n=128, block_m=16, split=4, warps=4, stages=6) | changes


BEST, WRONG, BROKEN = tiles(), tiles(warps=8, stages=4), tiles(block_n=64, stages=4)
DENSE_US = {"dequantize": 1_500.0}


def price(config):
    """Microseconds of a ring: the wrong and the broken one would be the fastest."""
    if config in (WRONG, BROKEN):
        return 1.0
    if config["path"] == "dequantize":
        return DENSE_US["dequantize"]
    return 1_000 * (1 + sum(abs(math.log2(config[k] / BEST[k])) for k in ("block_n", "split", "warps", "stages")))


class Tuning:
    def __init__(self, config=None, models=None):
        start = config or tiles(split=1, stages=4)
        self.contender = Contender(Kernel("wna16", 4, 128), Tunable, config=partial(tune._fixed, start))
        clock = FakeClock(lambda _: price(Tunable.running))
        self.bench = bench([self.contender], clock, models=models or {"qwen3-8b": TINY})

    def best(self, M):
        one = job(self.contender, M)
        return tune.best(self.bench, one, Ring(self.contender, one.N, one.K, "cpu", l2_bytes=1))


@pytest.fixture
def file(monkeypatch, tmp_path):
    """Where the configurations of the GPU are stored."""
    monkeypatch.setattr(tune.configs, "FOLDER", tmp_path)
    configs.measured.cache_clear()
    yield tmp_path / "nvidia-test-1.json"
    configs.measured.cache_clear()


def stored(file, kernel="wna16", bits="4"):
    return json.loads(file.read_text())["kernels"][kernel][bits]


SHAPES = {f"{N}x{K}" for N, K in layers(TINY).values()}


def test_the_best_right_configuration_is_found(capsys):
    config = Tuning().best(M=1)
    assert config == BEST
    said = capsys.readouterr().out
    assert f"{1_000 / 2:.2f} us" in said, "of a ring of two"
    assert "relative error 0.5" in next(line for line in said.splitlines() if line.startswith("wrong"))
    assert "shared memory" in next(line for line in said.splitlines() if line.startswith("failed"))
    every = [c for c in tune.candidates("wna16", 4, 512, 1024, 1) if c not in (WRONG, BROKEN)]
    assert price(config) == min(map(price, every))


@pytest.mark.parametrize("start", [configs.DEQUANTIZE, tiles(split=1, block_m=32)])
def test_tuning_knows_both_paths(start, monkeypatch):
    assert Tuning(start).best(M=32) == tiles(block_m=32)
    monkeypatch.setitem(DENSE_US, "dequantize", 900.0)
    assert Tuning(start).best(M=32) == configs.DEQUANTIZE


def test_where_nothing_is_right_the_estimate_stays(monkeypatch, capsys):
    monkeypatch.setattr(Tunable, "multiply", lambda self, x_MK: x_MK @ self.w_NK.T * 2)
    Tunable.running = BEST
    assert Tuning().best(M=1) == tiles(split=1, stages=4)
    assert "inf us" in capsys.readouterr().out


def test_tuning_goes_on_and_keeps_what_was_there(file, capsys):
    configs.save("NVIDIA Test-1", {"wna8": {"8": {"1x1": {"1": {}}}}})
    found = Tuning(models={"qwen3-0.6b": TINY, "qwen3-8b": TINY})
    found.bench.clock.stop = 1.0
    with pytest.raises(KeyboardInterrupt):
        tune.tune(found.bench)
    part = stored(file)
    assert 0 < sum(map(len, part.values())) < 5 * len(configs.TOKENS)
    found.bench.clock.stop = math.inf
    tune.tune(found.bench)
    said = capsys.readouterr().out
    assert set(stored(file)) == SHAPES
    assert all(set(by_tokens) == set(map(str, configs.TOKENS)) for by_tokens in stored(file).values())
    assert stored(file, "wna8", "8") == {"1x1": {"1": {}}}
    assert f"written: {file}" in said


def test_a_lost_device_ends_tuning_is_remembered_and_restarts(monkeypatch, file):
    found, calls = Tuning(), []

    def deadly(self, x_MK):
        found.bench.clock.dead = True
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(Tunable, "multiply", deadly)
    monkeypatch.setattr(os, "execv", lambda *a: calls.append(a))
    monkeypatch.setattr(sys, "argv", ["experiments/latency.py", "--tune"])
    assert script().main(["--tune"], found.bench) == 1
    assert calls == [(sys.executable, [sys.executable, *sys.argv, "--minutes", "9.00"])]
    N, K = layers(TINY)["qkv_proj"]
    assert {shape: by for shape, by in stored(file).items() if by} == {f"{N}x{K}": {"1": tiles(split=1, stages=4)}}


# -- our kernels


@pytest.mark.parametrize("contender", own_kernels.contenders(), ids=lambda c: f"{c.kernel.name}-{c.kernel.bits}")
def test_ours_are_right_and_know_when_not(contender):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    product = contender.load(80, 256, device, 3)
    error = relative_error(product, product.activations(2, 1))
    assert error < product.tolerance
    other = contender.load(80, 256, device, 4).dequantized().double()
    assert relative_error(product, product.activations(2, 1), other) > 0.5
    assert contender.config is None or contender.config(80, 256, 2, device)["path"] in ("fused", "dequantize")


def test_bits_and_bytes_of_ours():
    """N=64, K=256, by hand."""
    found = {(c.kernel.name, c.kernel.bits): c.load(64, 256, "cpu", 0).weight_bytes for c in own_kernels.contenders()}
    for bits in range(1, 9):
        assert found["wna16", bits] == 64 * 256 * bits // 8 + 64 * 2 * 3
    assert found["wna8", 8] == 64 * 256 + 64 * 2
    assert found["wna8", 4] == 64 * 128 + 64 * 2
    assert found["binary", 1] == 2 * 64 * 32 + 256 + 2 * 8 * 64 * 2


def test_weights_are_unpacked_by_the_format():
    packed, n, k = PackedUniform.random(16, 256, 3, device="cpu"), 5, 200
    q = int(pack.unpack(packed.words, 256)[n, k])
    expected = float(packed.scale_GN[1, n]) * (q - int(packed.zero_GN[1, n]))
    assert float(own_kernels.unpacked(packed).dequantize()[n, k]) == expected
