"""Whole calls of the latency measurement without a GPU, on the clock and the products of ``fakes.latency_fakes``."""

import json
import os
import subprocess
import sys
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
    model_row,
    script,
    tiles,
)
from fakes.oracles import binary_weight_bytes, integer_bytes, weight_only_bytes

from qbench.latency import ceilings, models, own_kernels, peers, session, warm_up
from qbench.latency.bench import DeviceLostError
from qbench.latency.gpu import describe
from qbench.latency.jobs import layers, make_jobs
from qbench.latency.kernels import MOST_LOST, KernelTimer
from qbench.latency.products import Contender, ring_size
from qbench.latency.record import BF16, LEFT_OUT, Kernel, LatencyRecord
from qbench.shape import Shape

ROOT = Path(__file__).parents[2]
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, Triton does not interpret")


# -- a whole call


def test_a_record_is_complete_and_reads_back(tmp_path):
    found = made(tmp_path, parts=session.PARTS, notes=["noted"], decode=lambda name, *_, **options: [model_row(name)])
    assert set(found.provenance) == {*PROVENANCE, "seconds"}
    assert set(found.ceilings) == {"copy_gbps", "read_gbps", "bf16_tflops", "launch_us"}
    assert len(found.kernels) == 2 * 5 * 2 * 3
    for row in found.kernels:
        assert row.us_p20 <= row.us <= row.us_p80
        assert row.error < 0.01
        assert row.bytes == 2 * (row.N * row.K + row.M * (row.N + row.K))
        assert row.flops == 2 * row.M * row.N * row.K
        assert row.config == ({"block_m": row.M} if row.kernel.name == "wna16" else None)
    assert found.models == [model_row("qwen3-8b"), model_row("qwen3-0.6b")]
    assert found.notes == ["noted"]
    file = json.loads((tmp_path / "nvidia-test-1.json").read_text())
    assert list(file) == ["schema", "provenance", "notes", "ceilings", "kernels", "models"]
    assert file["kernels"][0]["kernel"] == {"name": "cublas_bf16", "bits": 16, "group": None}
    assert all(set(c) == {"value", "p20", "p80"} for c in file["ceilings"].values())


def test_ceilings_are_rates(tmp_path):
    found = made(tmp_path, parts=["ceilings"]).ceilings
    each = 1000.0  # us of a launch
    assert found["copy_gbps"].value == pytest.approx(2 * 2**14 / each / 1e3)
    assert found["read_gbps"].value == pytest.approx(2**14 / each / 1e3)
    assert found["bf16_tflops"].value == pytest.approx(2 * 16**3 / each / 1e6)
    assert found["launch_us"].value == pytest.approx(10.0)


def test_copy_bandwidth_counts_both_ways():
    assert ceilings.copy_bandwidth("cpu", FakeClock(), 2**20) == pytest.approx(2 * 2**20 / 1e-3)


def test_ceilings_of_the_first_call_stay(tmp_path):
    first = made(tmp_path, parts=["ceilings"])
    file = tmp_path / "nvidia-test-1.json"
    again = made(tmp_path, clock=FakeClock(1100.0), parts=["ceilings"], resume=file)
    assert again.ceilings == first.ceilings
    assert any("not steady: copy_gbps was 0.032768 at first and 0.029789" in note for note in again.notes)
    assert made(tmp_path, parts=["ceilings"]).notes == []


def test_the_ring_is_cold(tmp_path):
    """As many weights are launched as keep three caches of other bytes between two uses."""
    clock = FakeClock()
    made(tmp_path, [OURS], clock, models={"qwen3-8b": TINY}, tokens=(1,))
    sizes = [2 * N * K + 2 * (N + K) for N, K in layers(TINY).values()]
    assert {ring_size(size, 20_000) for size in sizes} == set(clock.launched)
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


def test_failures_and_missing_peers_are_said(tmp_path):
    def refuse(N, K, device, seed):
        raise ValueError(f"K={K} is too odd\nfor this library")

    absent = Contender(Kernel("gemlite", 4, 128), Plain, missing="not installed")
    odd = Contender(Kernel("torch_int4", 4, 128), refuse, note="only with luck")
    found = made(tmp_path, [absent, odd, OURS])
    assert not any(row.kernel.name == "gemlite" for row in found.kernels)
    assert "gemlite, 4 bits, groups of 128: not measured: not installed" in found.notes
    assert "torch_int4, 4 bits, groups of 128: only with luck" in found.notes
    refused = [row for row in found.kernels if row.kernel.name == "torch_int4"]
    assert len(refused) == 2 * 5 * 3
    assert all(row.us is None and row.notes == [f"failed: ValueError: K={row.K} is too odd"] for row in refused)
    assert sum(row.us is not None for row in found.kernels) == 30


def test_a_busy_gpu_is_noted(tmp_path):
    found = made(tmp_path, clock=FakeClock(lambda i: [1000.0] * 5 + [1300.0] * 5))
    assert all("unsteady" in row.notes[0] for row in found.kernels)


def test_drift_is_noted(tmp_path):
    """The first row is measured again at the end; by then everything takes twice as long."""
    jobs = len(make_jobs(bench().contenders, bench().models, bench().tokens))
    slow = made(tmp_path, clock=FakeClock(lambda i: 1000.0 if i < 2 * jobs else 2000.0))
    assert any("not steady: cublas_bf16 qwen3-8b qkv_proj M=1" in note for note in slow.notes)
    assert not any("not steady" in note for note in made(tmp_path / "steady").notes)


def test_deadline_and_resume(tmp_path):
    whole = made(tmp_path / "whole")
    part = made(tmp_path / "part", minutes=(KernelTimer.slack + 0.5) / 60)
    assert 0 < len(part.kernels) < len(whole.kernels) == 60
    missing = 60 - len(part.kernels)
    assert any(f"left out for time: {missing} of 60 kernel rows" in note for note in part.notes)
    assert {row.model for row in part.kernels[:6]} == {"qwen3-8b"}
    file = tmp_path / "part" / "nvidia-test-1.json"
    again = made(tmp_path / "part", resume=file)
    assert again.kernels[: len(part.kernels)] == part.kernels, "existing rows are not measured again"
    assert {row.key for row in again.kernels} == {row.key for row in whole.kernels}
    assert len(again.kernels) == 60
    assert not any("left out" in note for note in again.notes)
    assert again.provenance["seconds"] > part.provenance["seconds"]


def test_resume_refuses_another_gpu_and_says_changes(tmp_path):
    made(tmp_path, minutes=0)
    file = tmp_path / "nvidia-test-1.json"
    with pytest.raises(ValueError, match="this GPU is NVIDIA Other"):
        made(tmp_path, resume=file, provenance=PROVENANCE | {"gpu": "NVIDIA Other"})
    found = made(tmp_path, resume=file, provenance=PROVENANCE | {"driver": "999"}, minutes=0)
    assert any("under other conditions: driver None -> 999" in note for note in found.notes)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 0}))
    with pytest.raises(ValueError, match="schema 0"):
        made(tmp_path, resume=file)


def test_a_lost_device_restarts_the_command(tmp_path, capsys):
    clock, calls = FakeClock(), []

    def deadly(N, K, device, seed):
        clock.dead = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    first = [Contender(BF16, peers.CublasBf16), Contender(Kernel("wna16", 4, 128), deadly)]
    main = script().main
    common = ["--out", str(tmp_path), "--only", "kernels"]
    assert main(common, bench(first, clock, restart=calls.append)) == 1
    (again,) = calls
    file = tmp_path / "nvidia-test-1.json"
    before = LatencyRecord.read(file)
    assert before.kernels[-1].us is None
    assert any("went on in a new process" in note for note in before.notes)
    assert again[again.index("--resume") + 1] == str(file)
    assert 0 < float(again[again.index("--minutes") + 1]) <= 9
    assert main(again, bench()) == 0
    after = LatencyRecord.read(file).kernels
    assert len(after) == 60
    assert sum(row.us is None for row in after) == 1, "the deadly one is not tried again"


def test_a_deadly_kernel_is_given_up(tmp_path):
    clock, file = FakeClock(), None

    def deadly(N, K, device, seed):
        clock.dead = True
        raise RuntimeError("CUDA error")

    contenders = [Contender(Kernel("wna16", 3, 128), deadly), OURS]
    for _ in range(MOST_LOST):
        clock.dead = False
        with pytest.raises(DeviceLostError, match="'wna16', bits=3"):
            made(tmp_path, contenders, clock, resume=file)
        file = tmp_path / "nvidia-test-1.json"
    clock.dead = False
    rows = made(tmp_path, contenders, clock, resume=file).kernels
    dead = [row.notes for row in rows if row.kernel.bits == 3]
    assert [notes[0].startswith("failed") for notes in dead] == [True, True] + [False] * 28
    assert set(map(tuple, dead[2:])) == {("not tried: this kernel left the GPU unusable before",)}
    assert all(row.us for row in rows if row.kernel.bits == 4)


def test_the_command(tmp_path, capsys):
    assert script().main(["--out", str(tmp_path)], bench(decoders=())) == 0
    out = capsys.readouterr().out
    assert "copy_gbps" in out
    assert "60 products, 0 rows of decoders" in out
    assert str(tmp_path / "nvidia-test-1.json") in out
    for wrong, message in ((["--only", "kernel"], "--only takes"), (["--resume", "no.json"], "no such record")):
        with pytest.raises(SystemExit):
            script().main(wrong, bench())
        assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(capsys):
    assert script().main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_rows_of_decoders_there_was_no_time_for(tmp_path):
    seen = []

    def decode(name, shape, clock, bandwidth, deadline, done, device):
        seen.append(len(done))
        assert bandwidth == 2 * 2**14 / 1e-3  # bytes per second, of copies that take 1000 us
        for batch in (1, 2):
            row = model_row(name, batch, [LEFT_OUT] if batch == 2 and len(seen) <= 2 else [])
            if row.key not in done:
                yield row

    first = made(tmp_path, parts=["ceilings", "models"], decode=decode)
    assert any("left out for time: 2 rows of decoders" in note for note in first.notes)
    again = made(tmp_path, parts=["models"], decode=decode, resume=tmp_path / "nvidia-test-1.json")
    assert seen == [0, 0, 2, 2]
    assert not any("left out" in note for note in again.notes)
    found = [(r.model, r.batch, r.notes) for r in again.models]
    assert found == [(model, batch, []) for batch in (1, 2) for model in ("qwen3-8b", "qwen3-0.6b")]
    with pytest.raises(ValueError, match="compared with the measured bandwidth"):
        made(tmp_path / "none", parts=["models"])


@interpreted
def test_decoders_through_a_whole_call(tmp_path):
    shape = Shape(128, 128, 1, heads=2, kv_heads=1, head_dim=64, vocab=64, tied=True)
    kernel = Kernel("wna16", 4, 128)
    tiny = dict(choices={kernel: models.CHOICES[kernel]}, batches=(1,), context=4, prompt=2)
    one = dict(decode=partial(models.rows, **tiny), decoders=["qwen3-8b"], models={"qwen3-8b": shape})
    found = made(tmp_path, parts=["ceilings", "models"], **one)
    assert [(r.what, r.kernel) for r in found.models] == [("decode", kernel), ("prefill", kernel)]
    for row in found.models:
        assert row.ms == 1.0, row.notes
        assert row.floor_ms > 0
    again = made(tmp_path, parts=["models"], resume=tmp_path / "nvidia-test-1.json", **one)
    assert again.models == found.models


def test_what_decoders_launch_is_compiled_before(tmp_path):
    order = []
    contenders = [
        replace(OURS, load=partial(Plain, count=order)),
        Contender(Kernel("wna16", 5, 128), partial(Plain, count=order), config=tiles),
    ]

    def decode(name, *_, **options):
        order.append(name)
        return []

    made(tmp_path, contenders, parts=["ceilings", "models"], decode=decode, decoders=["qwen3-8b"])
    assert [type(entry) for entry in order] == [Plain] * (len(order) - 1) + [str]
    products = len({(p.N, p.K) for p in order[:-1]})
    assert len(order) - 1 == len(warm_up.variants(make_jobs([OURS], {"qwen3-8b": TINY}, (1, 3, 16)), "cpu")) > products


def test_a_failing_decoder_costs_nothing_else(tmp_path):
    def decode(name, *_, **options):
        yield model_row(name)
        raise TypeError("a bug")

    found = made(tmp_path, parts=session.PARTS, decode=decode)
    assert [row.model for row in found.models] == ["qwen3-8b", "qwen3-0.6b"]
    assert "decoding of qwen3-0.6b failed: TypeError: a bug" in found.notes
    assert len(found.kernels) == 60


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


STATE = "GPU-a, 550.1, 1980, 1980, 2619, 700.00, 41\nGPU-b, 550.1, 1200, 1980, 2619, [N/A], 60\n"


@pytest.fixture
def gpu(monkeypatch):
    def make(uuid, answers):
        properties = SimpleNamespace(
            uuid=uuid, name="NVIDIA X", multi_processor_count=132, L2_cache_size=5, total_memory=7
        )
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr("qbench.latency.gpu.WAIT", 0)
        monkeypatch.setattr("qbench.latency.gpu._work", lambda device: nullcontext())

        def ask(query):
            if answers is None:
                raise RuntimeError("nvidia-smi does not answer")
            answer = answers[query.split("=")[1].split(",")[1]]
            return answer.pop(0) if isinstance(answer, list) else answer

        return describe("cuda", "abc", ask)

    return make


def test_state_of_an_idle_gpu(gpu):
    answers = {"utilization.gpu": "GPU-a, 0\nGPU-b, 99\n", "pid": "GPU-b, 17, 900\n", "driver_version": STATE}
    found, notes = gpu("a", answers)
    assert notes == []
    assert set(found) == set(PROVENANCE)
    assert (found["driver"], found["sm_clock_mhz"], found["power_limit_w"], found["commit"]) == (
        "550.1",
        1980,
        700,
        "abc",
    )
    assert (found["gpu"], found["l2_bytes"]) == ("NVIDIA X", 5)


def test_state_of_a_busy_and_throttled_gpu(gpu):
    answers = {"utilization.gpu": "GPU-a, 0\nGPU-b, 99\n", "pid": "GPU-b, 17, 900\n", "driver_version": STATE}
    found, notes = gpu("b", answers)
    assert found["power_limit_w"] is None
    for text in ("process 17", "99 %", "1200 MHz of 1980"):
        assert any(text in note for note in notes)


def test_the_end_of_a_call_before_is_not_taken_for_another_user(gpu):
    own = f"GPU-a, {os.getpid()}, 900\n"
    _, notes = gpu("a", {"utilization.gpu": ["GPU-a, 80\n", "GPU-a, 0\n"], "pid": own, "driver_version": STATE})
    assert notes == []


def test_state_of_a_gpu_that_is_not_listed(gpu):
    """As a part of one (MIG) is not."""
    found, notes = gpu("c", {"utilization.gpu": "GPU-a, 0\n", "pid": "", "driver_version": STATE})
    assert found["driver"] is None
    assert notes == ["the driver does not report the clocks"]


def test_without_nvidia_smi_the_state_is_said_to_be_unknown(gpu):
    found, notes = gpu("a", None)
    assert found["driver"] is None
    assert notes == ["nvidia-smi does not answer"]
