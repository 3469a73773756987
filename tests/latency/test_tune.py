"""What is compiled before timing, the search for launch parameters, and our kernels as what is measured."""

import json
import math
import os
import time
from dataclasses import replace
from functools import lru_cache, partial

import pytest
import torch
from fakes.latency_fakes import OURS, TINY, FakeClock, Plain, bench, script

from qbench.kernels import configs, pack
from qbench.latency import own_kernels, peers, tune, warm_up
from qbench.latency.bench import DeviceLostError
from qbench.latency.jobs import Job, layers, make_jobs
from qbench.latency.products import Contender, Ring, relative_error
from qbench.latency.record import BF16, Kernel


def job(contender, M=1, N=512, K=1024):
    return Job(contender, "qwen3-8b", "o_proj", N, K, M)


# -- compiling


def test_variants_are_what_triton_tells_apart():
    same_tiles = replace(OURS, config=partial(tune._fixed, {"block_m": 16}))
    found = warm_up.variants([job(same_tiles, M) for M in (1, 2, 3, 16, 32)], "cpu")
    assert [j.M for j in found.values()] == [1, 2, 16]
    assert len(warm_up.variants([job(OURS, 16), job(OURS, 32)], "cpu")) == 2, "other tiles"
    assert len(warm_up.variants([job(same_tiles), job(same_tiles, K=1000)], "cpu")) == 2, "other divisors"
    assert len(warm_up.variants([job(same_tiles), job(same_tiles, K=2048)], "cpu")) == 1
    assert not warm_up.variants([job(Contender(BF16, Plain))], "cpu")


def test_each_variant_is_launched_once():
    launched, compile = [], warm_up.WarmUp("cpu", workers=0)
    contender = replace(OURS, load=partial(Plain, count=launched))
    jobs = [job(contender, M) for M in (1, 1, 16)]
    assert compile([*jobs, job(replace(OURS, kernel=Kernel("wna16", 3, 128), load=None))], 60) == []
    assert len(launched) == 2, "and what fails there fails again where it is said"
    compile(jobs, 60)
    assert len(launched) == 2


def test_other_processes_compile():
    """What is sent there can be pickled; a process that dies is a note, and the next jobs get new ones."""
    compile = warm_up.WarmUp("cpu", workers=1)
    small = job(Contender(Kernel("wna16", 4, 128), peers.CublasBf16, config=partial(tune._fixed, {})), N=8, K=8)
    deadly = replace(small, contender=replace(small.contender, kernel=Kernel("wna16", 3, 128), load=_die))
    assert "died" in compile([deadly], 60)[0]
    assert compile([small], 60) == []
    slow = replace(small, contender=replace(small.contender, kernel=Kernel("wna16", 2, 128), load=_sleep))
    assert "longer than" in compile([slow], 0.2)[0]
    compile.close()


def _die(*_):
    os._exit(1)


def _sleep(*_):
    time.sleep(1)


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
    def __init__(self, config=None, **changes):
        self.said, self.kernels = [], {}
        start = config or tiles(split=1, stages=4)
        self.contender = Contender(Kernel("wna16", 4, 128), Tunable, config=partial(tune._fixed, start))
        clock = FakeClock(lambda _: price(Tunable.running))
        self.bench = bench([self.contender], clock, **changes)
        self.tuner = tune.Tuner(self.bench, self.kernels, self.said.append)

    def best(self, M):
        one = job(self.contender, M)
        return self.tuner.best(one, Ring(self.contender, one.N, one.K, "cpu", l2_bytes=1))


def test_the_best_right_configuration_is_found():
    found = Tuning()
    config, us = found.best(M=1)
    assert config == BEST
    assert us == 1_000 / 2, "of a ring of two"
    assert any("wrong" in line and "relative error 0.5" in line for line in found.said)
    assert any("failed" in line and "shared memory" in line for line in found.said)
    every = [c for c in configs.candidates("wna16", 4, 512, 1024, 1) if c not in (WRONG, BROKEN)]
    assert price(config) == min(map(price, every))


@pytest.mark.parametrize("start", [configs.DEQUANTIZE, tiles(split=1, block_m=32)])
def test_tuning_knows_both_paths(start, monkeypatch):
    assert Tuning(start).best(M=32)[0] == tiles(block_m=32)
    monkeypatch.setitem(DENSE_US, "dequantize", 900.0)
    assert Tuning(start).best(M=32)[0] == configs.DEQUANTIZE


def test_tuning_says_when_nothing_is_right(monkeypatch):
    monkeypatch.setattr(Tunable, "multiply", lambda self, x_MK: x_MK @ self.w_NK.T * 2)
    Tunable.running = BEST
    with pytest.raises(ValueError, match="no configuration of wna16 is right"):
        Tuning().best(M=1)


def test_tuning_goes_by_importance_stops_in_time_and_goes_on():
    found, saved = Tuning(), []
    all_jobs = make_jobs([found.contender], {"qwen3-0.6b": TINY, "qwen3-8b": TINY}, (1, 16))
    left = found.tuner.run(all_jobs, tune.Tuner.slack + 0.5, lambda: saved.append(len(found.said)))
    assert 0 < len(left) < len(all_jobs) == 20
    assert saved
    before = str(found.kernels)
    assert found.tuner.run(all_jobs, 1e9, lambda: None) == []
    shapes = {f"{N}x{K}" for N, K in layers(TINY).values()}
    assert set(found.kernels["wna16"]["4"]) == shapes
    assert all(set(by_tokens) == {"1", "16"} for by_tokens in found.kernels["wna16"]["4"].values())
    assert before != str(found.kernels)


def test_a_lost_device_ends_tuning_and_is_remembered(monkeypatch):
    found = Tuning()
    jobs = make_jobs([found.contender], {"qwen3-8b": TINY}, (1,))

    def deadly(self, x_MK):
        found.bench.clock.dead = True
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(Tunable, "multiply", deadly)
    with pytest.raises(DeviceLostError):
        found.tuner.run(jobs, 1e9, lambda: None)
    N, K = layers(TINY)["qkv_proj"]
    assert found.kernels["wna16"]["4"] == {f"{N}x{K}": {"1": tiles(split=1, stages=4)}}


def test_a_lost_device_restarts_the_search(monkeypatch, tmp_path):
    calls = []
    found = Tuning(models={"qwen3-8b": TINY}, restart=calls.append)
    monkeypatch.setattr(tune.configs, "save", lambda gpu, kernels: tmp_path)
    monkeypatch.setattr(Tunable, "multiply", lambda self, x: setattr(found.bench.clock, "dead", True) or x / 0)
    assert script().main(["--tune", "--commit", "abc"], found.bench) == 1
    assert calls == [["--minutes", "9.00", "--commit", "abc", "--tune"]]


def test_tuning_writes_the_file(monkeypatch, tmp_path, capsys):
    found = Tuning(models={"qwen3-8b": TINY})
    monkeypatch.setattr(configs, "save", partial(configs.save, folder=tmp_path))
    monkeypatch.setattr(tune.configs, "measured", lru_cache(lambda gpu: {"wna8": {"8": {}}}))
    tune.tune(found.bench, 1e9)
    (file,) = tmp_path.iterdir()
    kernels = json.loads(file.read_text())["kernels"]
    assert file.name == "nvidia-test-1.json"
    assert set(kernels) == {"wna8", "wna16"}, "what was there stays"
    assert set(kernels["wna16"]["4"]) == {f"{N}x{K}" for N, K in layers(TINY).values()}
    assert "written" in capsys.readouterr().out


# -- our kernels


@pytest.mark.parametrize("contender", own_kernels.contenders(), ids=lambda c: f"{c.kernel.name}-{c.kernel.bits}")
def test_ours_are_right_and_know_when_not(contender):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    product = contender.load(80, 256, device, 3)
    error = relative_error(product, product.activations(2, 1))
    assert error < product.tolerance
    other = contender.load(80, 256, device, 4).dequantized()
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


def test_float64_weights_are_unpacked_by_the_format():
    p = own_kernels.Uniform(16, 256, "cpu", 0, bits=3)
    packed, n, k = p.packed, 5, 200
    q = int(pack.unpack(packed.words, 256)[n, k])
    expected = float(packed.scale_GN[1, n]) * (q - int(packed.zero_GN[1, n]))
    assert float(p.dequantized()[n, k]) == expected
