"""Whole calls of the latency measurement without a GPU, on the clock and the products of ``fakes.latency_fakes``."""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes.latency_fakes import (
    OURS,
    PROVENANCE,
    TINY,
    FakeClock,
    Lazy,
    Plain,
    Wrong,
    bench,
    made,
    script,
    tiles,
)
from fakes.oracles import binary_weight_bytes, integer_bytes, weight_only_bytes

from experiments.gpu_timing import session
from experiments.gpu_timing.gpu import describe
from experiments.gpu_timing.jobs import layers, make_jobs
from experiments.peers import torch_kernels
from qbench.latency import ceilings, own_kernels
from qbench.latency.bench import DeviceLostError, variants
from qbench.latency.products import Contender, ring_size
from qbench.latency.record import BF16, Kernel, LatencyRecord, ModelRow
from qbench.shape import Shape

ROOT = Path(__file__).parents[2]
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, Triton does not interpret")


# -- a whole call


def test_a_record_is_complete_and_reads_back(tmp_path):
    found = made(tmp_path, notes=["noted"])
    assert set(found.provenance) == {*PROVENANCE, "seconds"}
    assert set(found.ceilings) == {"copy_gbps", "read_gbps", "bf16_tflops", "launch_us"}
    assert len(found.kernels) == 2 * 5 * 2 * 3
    for row in found.kernels:
        assert row.us_p20 <= row.us <= row.us_p80
        assert row.error < 0.01
        assert row.bytes == 2 * (row.N * row.K + row.M * (row.N + row.K))
        assert row.flops == 2 * row.M * row.N * row.K
        assert row.config == ({"block_m": row.M} if row.kernel.name == "wna16" else None)
    assert found.notes == ["noted"]
    file = json.loads((tmp_path / "nvidia-test-1.json").read_text())
    assert list(file) == ["schema", "provenance", "notes", "ceilings", "kernels", "models"]
    assert file["kernels"][0]["kernel"] == {"name": "cublas_bf16", "bits": 16, "group": None}
    assert all(set(c) == {"value", "p20", "p80"} for c in file["ceilings"].values())


def test_ceilings_are_rates(tmp_path):
    found = made(tmp_path, models={}).ceilings
    each = 1000.0  # us of a launch
    assert found["copy_gbps"].value == pytest.approx(2 * 2**14 / each / 1e3)
    assert found["read_gbps"].value == pytest.approx(2**14 / each / 1e3)
    assert found["bf16_tflops"].value == pytest.approx(2 * 16**3 / each / 1e6)
    assert found["launch_us"].value == pytest.approx(10.0)


def test_copy_bandwidth_counts_both_ways():
    assert ceilings.copy_bandwidth("cpu", FakeClock(), 2**20) == pytest.approx(2 * 2**20 / 1e-3)


def test_ceilings_of_the_first_call_stay_and_changes_are_noted(tmp_path):
    first = made(tmp_path, models={})
    assert first.notes == []
    again = made(tmp_path, clock=FakeClock(1100.0), models={}, resume=tmp_path / "nvidia-test-1.json")
    assert again.ceilings == first.ceilings
    changed = "not steady: copy_gbps was 0.032768 at first and 0.029789 later"
    assert changed in again.notes
    clock = FakeClock(lambda i: 1000.0 if i < 60 else 1100.0)
    assert changed in made(tmp_path / "later", clock=clock).notes, "also at the end of the same call"


def test_the_ring_is_cold(tmp_path):
    """As many weights are launched as keep three caches of other bytes between two uses."""
    clock = FakeClock()
    made(tmp_path, [OURS], clock, models={"qwen3-8b": TINY}, tokens=(1,))
    sizes = [2 * N * K + 2 * (N + K) for N, K in layers(TINY).values()]
    assert {ring_size(size, 20_000) for size in sizes} == set(clock.launched) - {1, ceilings.LAUNCHES}
    assert max(clock.launched) > 5


def test_wrong_kernels_are_not_timed(tmp_path):
    clock, counts = FakeClock(), {}
    kinds = {"wrong": Wrong, "lazy": Lazy, "right": Plain}
    load = {name: partial(kind, count=counts.setdefault(name, [])) for name, kind in kinds.items()}
    contenders = [Contender(Kernel(name, 4, 128), load[name]) for name in kinds]
    found = made(tmp_path, contenders, clock, models={"qwen3-8b": TINY}, tokens=(1,))
    rows = {name: [r for r in found.kernels if r.kernel.name == name] for name in kinds}
    for name in ("wrong", "lazy"):
        assert len(counts[name]) == len(rows[name]) == 5, "once for the check, never more"
        for row in rows[name]:
            assert (row.us, row.us_p20, row.us_p80, row.runs) == (None, None, None, 0)
            assert "wrong: relative error" in row.notes[0]
    assert rows["wrong"][0].error == pytest.approx(0.05, rel=0.1)
    assert rows["lazy"][0].error is None, "what is not finite is no number in a record"
    assert all(row.us for row in rows["right"])
    assert "no time: wrong 4 bits: wrong: relative error 0.05" in script().summary(found)


def test_failures_are_said(tmp_path):
    def refuse(N, K, device, seed):
        raise ValueError(f"K={K} is too odd\nfor this library")

    found = made(tmp_path, [Contender(Kernel("torch_int4", 4, 128), refuse, note="only with luck"), OURS])
    assert "torch_int4, 4 bits: only with luck" in found.notes
    refused = [row for row in found.kernels if row.kernel.name == "torch_int4"]
    assert len(refused) == 2 * 5 * 3
    assert all(row.us is None and row.notes == [f"failed: ValueError: K={row.K} is too odd"] for row in refused)
    assert sum(row.us is not None for row in found.kernels) == 30


def test_a_busy_gpu_is_noted(tmp_path):
    found = made(tmp_path, clock=FakeClock(lambda i: [1000.0] * 5 + [1300.0] * 5))
    assert all("unsteady" in row.notes[0] for row in found.kernels)


def test_stop_and_resume(tmp_path):
    whole = made(tmp_path / "whole")
    part = made(tmp_path / "part", clock=FakeClock(stop=1.0))
    assert all(row.us for row in part.kernels), "what was being measured is not in the record"
    assert 0 < len(part.kernels) < len(whole.kernels) == 60
    missing = 60 - len(part.kernels)
    assert any(f"left out for time: {missing} of 60 products" in note for note in part.notes)
    assert {row.model for row in part.kernels[:6]} == {"qwen3-8b"}
    file = tmp_path / "part" / "nvidia-test-1.json"
    again = made(tmp_path / "part", resume=file)
    assert again.kernels[: len(part.kernels)] == part.kernels, "existing rows are not measured again"
    assert {row.key for row in again.kernels} == {row.key for row in whole.kernels}
    assert len(again.kernels) == 60
    assert not any("left out" in note for note in again.notes)
    assert again.provenance["seconds"] > part.provenance["seconds"]


def test_resume_refuses_another_gpu_and_says_changes(tmp_path):
    made(tmp_path, clock=FakeClock(stop=0))
    file = tmp_path / "nvidia-test-1.json"
    with pytest.raises(ValueError, match="this GPU is NVIDIA Other"):
        made(tmp_path, resume=file, provenance=PROVENANCE | {"gpu": "NVIDIA Other"})
    found = made(tmp_path, resume=file, provenance=PROVENANCE | {"driver": "999"}, clock=FakeClock(stop=0))
    assert any("under other conditions: driver None -> 999" in note for note in found.notes)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 0}))
    with pytest.raises(ValueError, match="schema 0"):
        made(tmp_path, resume=file)


def test_a_lost_device_restarts_the_command(tmp_path, monkeypatch):
    clock, calls = FakeClock(), []

    def deadly(N, K, device, seed):
        clock.dead = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    first = [Contender(BF16, torch_kernels.CublasBf16), Contender(Kernel("wna16", 4, 128), deadly)]
    arguments = ["--out", str(tmp_path), "--commit", "abc"]
    monkeypatch.setattr(os, "execv", lambda *a: calls.append(a))
    monkeypatch.setattr(sys, "argv", ["experiments/latency.py", *arguments])
    assert script().main(arguments, bench(first, clock)) == 1
    ((program, (_, *again)),) = calls
    file = tmp_path / "nvidia-test-1.json"
    assert (program, again[:5]) == (sys.executable, sys.argv)
    before = LatencyRecord.read(file)
    assert before.kernels[-1].us is None
    assert any("went on in a new process" in note for note in before.notes)
    assert again[5:] == ["--minutes", again[6], "--resume", str(file)]
    assert 0 < float(again[6]) <= 9
    assert script().main(again[1:], bench()) == 0
    after = LatencyRecord.read(file).kernels
    assert len(after) == 60
    assert {row.kernel.name for row in after if row.us is None} == {"wna16"}, "the deadly kernel is not tried again"


def test_a_deadly_kernel_is_given_up(tmp_path):
    clock = FakeClock()

    def deadly(N, K, device, seed):
        clock.dead = True
        raise RuntimeError("CUDA error")

    contenders = [Contender(Kernel("wna16", 3, 128), deadly), OURS]
    with pytest.raises(DeviceLostError, match="'wna16', bits=3"):
        made(tmp_path, contenders, clock)
    clock.dead = False
    rows = made(tmp_path, contenders, clock, resume=tmp_path / "nvidia-test-1.json").kernels
    first, *rest = (row.notes for row in rows if row.kernel.bits == 3)
    assert first == ["failed: RuntimeError: CUDA error", "left the GPU unusable"]
    assert len(rest) == 29
    assert set(map(tuple, rest)) == {("not tried: this kernel left the GPU unusable before",)}
    assert all(row.us for row in rows if row.kernel.bits == 4)


def test_the_command_ends_after_its_time(tmp_path, capsys, monkeypatch):
    waiting = bench()
    monkeypatch.setattr(waiting.clock, "time", lambda replay, runs: time.sleep(60))
    assert script().main(["--out", str(tmp_path), "--minutes", "0.002"], waiting) == 0
    assert "left out for time: 60 of 60 products" in capsys.readouterr().out
    assert LatencyRecord.read(tmp_path / "nvidia-test-1.json").kernels == []


def test_the_command(tmp_path, capsys):
    assert script().main(["--out", str(tmp_path)], bench()) == 0
    out = capsys.readouterr().out
    assert "copy_gbps" in out
    assert "60 products, 0 rows of decoders" in out
    assert str(tmp_path / "nvidia-test-1.json") in out
    with pytest.raises(SystemExit):
        script().main(["--resume", "no.json"], bench())
    assert "no such record" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(capsys):
    assert script().main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def decoder_steps(*kernels):
    return [ModelRow("qwen3-8b", *rest) for k in kernels for rest in (("decode", k, 1, 4), ("prefill", k, 1, 2))]


@interpreted
def test_decoders_through_a_whole_call(tmp_path):
    shape = Shape(128, 128, 1, heads=2, kv_heads=1, head_dim=64, vocab=64, tied=True)
    steps = decoder_steps(Kernel("none", 4, 128), Kernel("wna16", 4, 128))
    one = dict(steps=steps, models={"qwen3-8b": shape}, tokens=())
    late = made(tmp_path, clock=FakeClock(stop=0), **one)
    assert late.models == []
    assert any("left out for time: 4 of 4 rows of decoders" in note for note in late.notes)
    found = made(tmp_path, resume=tmp_path / "nvidia-test-1.json", **one)
    assert [row.key for row in found.models] == [row.key for row in steps]
    for row in found.models[:2]:
        assert (row.ms, row.notes[0][:16]) == (None, "failed: KeyError"), "and costs nothing else"
    for row in found.models[2:]:
        assert row.ms == 1.0, row.notes
        bandwidth = 2 * 2**14 / 1e-3  # bytes per second, of copies that take 1000 us
        assert row.floor_ms == pytest.approx(1e3 * (row.weight_bytes + row.cache_bytes) / bandwidth)
    assert not any("left out" in note for note in found.notes)
    again = made(tmp_path, resume=tmp_path / "nvidia-test-1.json", **one)
    assert again.models == found.models, "existing rows are not measured again"


def test_what_decoders_launch_is_compiled_before(tmp_path, monkeypatch):
    launched = []
    contenders = [
        replace(OURS, load=partial(Plain, count=launched)),
        Contender(Kernel("wna16", 5, 128), partial(Plain, count=launched), config=tiles),
    ]
    monkeypatch.setattr(session, "time_decoders", lambda *_: launched.append("decoders"))
    monkeypatch.setattr(session, "FIRST_RANK", -1)
    made(tmp_path, contenders, steps=decoder_steps(OURS.kernel))
    products = launched[: launched.index("decoders")]
    kinds = len(variants(make_jobs([OURS], {"qwen3-8b": TINY}, (1, 3, 16)), "cpu"))
    assert len(products) == kinds > len({(p.N, p.K) for p in products})


@interpreted
def test_our_kernels_through_a_whole_call(tmp_path):
    counts = {
        ("wna16", 4): partial(weight_only_bytes, bits=4),
        ("wna8", 8): partial(integer_bytes, bits=8),
        ("binary", 1): binary_weight_bytes,
    }
    shape = Shape(128, 256, 2, heads=2, kv_heads=1, head_dim=64, vocab=256, tied=True)
    some = [c for c in own_kernels.contenders() if (c.kernel.name, c.kernel.bits) in counts]
    rows = made(tmp_path, some, models={"qwen3-8b": shape}, tokens=(2,), l2_bytes=100).kernels
    assert len(rows) == 15
    for row in rows:
        assert row.error < 0.005, row.notes
        assert row.us
        assert row.config["path"] == "fused"
        assert row.bytes == counts[row.kernel.name, row.kernel.bits](row.M, row.N, row.K)


def test_nothing_but_torch_triton_and_transformers_is_needed():
    blocked = ["hydra", "omegaconf", "lm_eval", "datasets", "accelerate", "pandas", "pyarrow", "matplotlib"]
    code = f"import sys; sys.modules |= dict.fromkeys({blocked}); sys.argv = ['x', '--help']; import runpy; "
    code += "runpy.run_path('experiments/latency.py', run_name='__main__')"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "--resume" in found.stdout, found.stderr


# -- the machine


@pytest.fixture
def gpu(monkeypatch):
    """``describe`` of an idle GPU, with ``changes`` of what nvidia-smi answers; a list: one after the other."""

    def make(**changes):
        properties = SimpleNamespace(
            uuid="a", name="NVIDIA X", multi_processor_count=132, L2_cache_size=5, total_memory=7
        )
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr("experiments.gpu_timing.gpu.WAIT", 0)
        monkeypatch.setattr("experiments.gpu_timing.gpu._work", lambda device: nullcontext())
        idle = dict(pid="", utilization="0\n", driver_version="550.1, 1980, 1980, 2619, 700.00, 41\n")
        answers = {k: v if isinstance(v, list) else [v] * 9 for k, v in (idle | changes).items()}

        def smi(command, **_):
            assert command[:3] == ["nvidia-smi", "-i", "GPU-a"]
            if changes.get("pid") is None and "pid" in changes:
                raise OSError("no such file")
            return SimpleNamespace(stdout=answers[command[3].split("=")[1].split(",")[0].split(".")[0]].pop(0))

        monkeypatch.setattr("qbench.provenance.collect", lambda *_: dict(time="now", commit=None))
        monkeypatch.setattr(subprocess, "run", smi)
        return describe("cuda", "abc")

    return make


def test_state_of_an_idle_gpu(gpu):
    found, notes = gpu()
    assert notes == []
    assert set(found) == set(PROVENANCE)
    state = [found[name] for name in ("driver", "sm_clock_mhz", "power_limit_w", "commit", "gpu", "l2_bytes")]
    assert state == ["550.1", 1980, 700, "abc", "NVIDIA X", 5]


def test_state_of_a_busy_and_throttled_gpu(gpu):
    state = "550.1, 1200, 1980, 2619, [N/A], 60\n"
    found, notes = gpu(utilization="99\n", pid="17, 900\n", driver_version=state)
    assert found["power_limit_w"] is None
    for text in ("process 17", "99 %", "1200 MHz of 1980"):
        assert any(text in note for note in notes)
    assert gpu(driver_version="550.1, [N/A], [N/A], 1, 1, 1\n")[1] == ["the driver does not report the clocks"]


def test_the_end_of_a_call_before_is_not_taken_for_another_user(gpu):
    assert gpu(pid=f"{os.getpid()}, 900\n", utilization=["80\n", "0\n"])[1] == []


def test_without_nvidia_smi_the_state_is_said_to_be_unknown(gpu):
    found, notes = gpu(pid=None)
    assert found["driver"] is None
    assert notes == ["nvidia-smi does not answer (no such file): clocks and other processes are unknown"]
