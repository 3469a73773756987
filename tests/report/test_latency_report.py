"""Tables and figures of latency, from synthetic records in which time = bytes / bandwidth + launch."""

import csv
import dataclasses
import math

import pytest
from fakes.report_records import measure, science, study

from experiments.gpu_timing.figures import draw
from experiments.readme import SECTIONS
from experiments.readme_speed import W4, headlines
from qbench.latency.record import BF16, Ceiling, Kernel, KernelRow, LatencyRecord, ModelRow
from qbench.record import Metric, digest
from qbench.report import Report, frame
from qbench.report.latency.speeds import FUSED, geomean, label, load
from qbench.report.quality.packed_models import KERNEL_TABLES, kernel_sheet
from qbench.shape import QWEN3
from qbench.store import Store

COPY, READ, PEAK, LAUNCH = 4000.0, 4200.0, 700.0, 2.0  # GB/s, GB/s, TFLOP/s, microseconds
KERNELS = [BF16, Kernel("torch_int4", 4, 128), Kernel("torch_scaled_mm_fp8", 8, -1)]
KERNELS += [Kernel("wna16", b, 128) for b in range(8, 0, -1)]
KERNELS += [Kernel("wna8", 8, -1), Kernel("wna8", 4, -1), Kernel("binary", 1, 128)]
DECODED = [BF16, *(Kernel("wna16", b, 128) for b in (8, 4, 3, 2)), Kernel("wna8", 8, -1)]
REACHED = {"cublas_bf16": 0.9, "torch_int4": 0.6, "torch_scaled_mm_fp8": 0.75}  # of the bandwidth
COMPUTED = {"cublas_bf16": 0.95, "torch_int4": 0.3, "torch_scaled_mm_fp8": 1.7, "wna16": 0.8, "wna8": 1.2}
MODELS = ("qwen3-0.6b", "qwen3-8b", "qwen3-14b", "qwen3-32b")
TOKENS = (1, 4, 16, 32, 64, 128, 512, 2048)


def stored_bits(k):
    return 3.0 if k.name == "binary" else k.bits + (24 / 128 if k.group == 128 else 0)


def kernel_row(model, layer, N, K, M, k):
    size, flops = int(N * K * stored_bits(k) / 8) + 2 * M * (N + K), 2 * M * N * K
    us = max(size / (COPY * 1e3 * REACHED.get(k.name, 0.8)), flops / (PEAK * 1e6 * COMPUTED.get(k.name, 0.5))) + LAUNCH
    return KernelRow(model, layer, N, K, M, k, us, 0.99 * us, 1.02 * us, 200, size, flops, 2e-3, {"split": 2})


def model_row(model, k, batch, what="decode", context=1024):
    shape = QWEN3[model.removeprefix("qwen3-")]
    weights = int(shape.linear_parameters * stored_bits(k) / 8) + 2 * shape.vocab * shape.hidden
    cache = 4 * shape.layers * shape.kv_heads * shape.head_dim * context * batch
    floor = (weights + cache) / COPY / 1e6
    ms = floor / 0.75 + 0.3
    times = dict(ms=ms, ms_p20=0.99 * ms, ms_p80=1.01 * ms, runs=50, tokens_per_s=1e3 * batch / ms, floor_ms=floor)
    sizes = dict(weight_bytes=weights, cache_bytes=cache, peak_bytes=int(1.1 * (weights + cache)))
    return ModelRow(model, what, k, batch, context, **times, **sizes)


def record(models=MODELS, tokens=TOKENS, gpu="NVIDIA H200"):
    """A GPU whose kernels all reach a share of its bandwidth and of its rate."""
    kernels = []
    for model in models:
        shape = QWEN3[model.removeprefix("qwen3-")]
        for layer, (N, K) in (shape.fused | {"gate_proj": (shape.intermediate, shape.hidden)}).items():
            kernels += [kernel_row(model, layer, N, K, M, k) for M in tokens for k in KERNELS]
    rows = [model_row(m, k, b) for m in models for k in DECODED for b in (1, 8)]
    rows += [model_row(m, k, 1, "prefill", 2048) for m in models for k in DECODED]
    numbers = dict(copy_gbps=COPY, read_gbps=READ, bf16_tflops=PEAK, launch_us=LAUNCH)
    machine = dict(gpu=gpu, driver="1.2", torch="2", triton="3", commit="c0ffee0123", time="2026-01-02T03:04:05Z")
    notes = ["the GPU was busy: 12 % before the start"]
    return LatencyRecord(machine, notes, {k: Ceiling(v, v, v) for k, v in numbers.items()}, kernels, rows)


def speeds(d, folder):
    d.write(folder / "latency" / "nvidia-h200.json")
    return load(folder)[0]


def row_of(d, model, layer, M, k):
    return next(r for r in d.kernels if r.key == (model, layer, M, k))


def agreement(model="nano-s", method="gptq", bits=4, kernels="interpreted", error=1e-3):
    s = science(model, method, bits)
    ev = {"name": "agreement", "window": 64, "dtype": "bfloat16", "kernels": kernels, "data": "ef" * 8}
    m = measure(s, {"name": "kl", "window": 1, "data": "ab"}, 1.0)
    whole = {**s, "eval": ev}
    values = {"error": error, "rounding": 2 * error, "worst_layer": 3 * error, "top1": 0.99}
    metrics = {f"agreement/{k}": Metric(v, "relative", 100) for k, v in values.items()}
    return type(m)(digest(whole), whole, metrics, m.nominal_bits, m.stored_bits, m.model_bytes, m.layers)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One GPU, and what is built from its record."""
    root, out = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("out")
    record().write(root / "latency" / "nvidia-h200.json")
    return root, out, sorted(Report(root).write(out) + drawn(root, out))


def drawn(root, out):
    return [path for speeds in load(root) for path in draw(speeds, out / "figures")]


def test_nothing_is_written_without_a_record(tmp_path):
    assert Report(tmp_path).write(tmp_path / "out") == []
    (tmp_path / "latency").mkdir()
    assert Report(tmp_path).write(tmp_path / "out") == []
    assert Report(tmp_path).summary() == ""


def test_which_files_there_are(built):
    _, out, written = built
    names = {p.relative_to(out).as_posix() for p in written if "latency" in p.name}
    stem = "latency_nvidia-h200"
    wanted = {f"tables/{stem}_{t}.{e}" for t in ("m1", "tokens", "models") for e in ("csv", "md", "tex")}
    wanted |= {f"figures/{stem}_{f}.{e}" for f in ("roofline", "tokens") for e in ("png", "pdf")}
    assert names == wanted
    assert all(p.exists() for p in written)


def test_same_records_same_bytes(built, tmp_path):
    _, out, written = built
    d = record()
    d.kernels.reverse()
    d.models.reverse()
    d.write(tmp_path / "latency" / "nvidia-h200.json")
    again = Report(tmp_path).write(tmp_path / "out") + drawn(tmp_path, tmp_path / "out")
    for p in again:
        assert p.read_bytes() == (out / p.relative_to(tmp_path / "out")).read_bytes(), p.name
    assert len(again) == len(written)


def test_the_long_form_has_what_is_counted_from_the_rows(built):
    _, out, _ = built
    lines = list(csv.DictReader((out / "tables" / "latency_nvidia-h200_m1.csv").open()))
    assert len(lines) == len(MODELS) * 5 * len(KERNELS)
    one = next(
        x for x in lines if (x["model"], x["layer"], x["kernel"], x["bits"]) == ("qwen3-8b", "down_proj", "wna16", "4")
    )
    N, K = 4096, 12288
    size = N * K * (4 + 24 / 128) / 8 + 2 * (N + K)
    us = size / (COPY * 1e3 * 0.8) + LAUNCH
    bf16 = (2 * N * K + 2 * (N + K)) / (COPY * 1e3 * 0.9) + LAUNCH
    int4 = size / (COPY * 1e3 * 0.6) + LAUNCH
    assert float(one["us"]) == pytest.approx(us, rel=1e-4)
    assert float(one["gbps"]) == pytest.approx(size / us / 1e3, rel=1e-4)
    assert float(one["copy_share"]) == pytest.approx(size / us / 1e3 / COPY, rel=1e-4)
    assert float(one["gain_over_bf16"]) == pytest.approx(bf16 / us, rel=1e-4)
    assert float(one["gain_over_best_peer"]) == pytest.approx(int4 / us, rel=1e-4)
    assert one["best_peer"] == "torch W4"


def test_a_peer_reads_at_least_as_many_bits(tmp_path):
    s = speeds(record(), tmp_path)
    product = ("qwen3-8b", "down_proj", 1)
    assert s.best_peer(*product, W4).name == "torch_int4"
    assert s.best_peer(*product, Kernel("wna16", 8, 128)).name == "torch_scaled_mm_fp8"
    assert s.best_peer(*product, BF16) is None
    assert math.isnan(s.over_peer(*product, KERNELS[1]))


def test_means_are_geometric_and_over_the_fused_products(built):
    _, out, _ = built
    d = record()
    gains = []
    for model in ("qwen3-8b", "qwen3-14b", "qwen3-32b"):
        for layer in FUSED:
            a, b = (row_of(d, model, layer, 16, k).us for k in (BF16, W4))
            gains.append(a / b)
    mean = math.prod(gains) ** (1 / len(gains))
    text = (out / "tables" / "latency_nvidia-h200_tokens.md").read_text()
    block = text.split("*qwen3-8b, qwen3-14b and qwen3-32b together*")[1].split("*qwen3-")[0]
    line = next(x for x in block.splitlines() if x.startswith("| W4A16 |"))
    assert f" {mean:.2f} |" in line
    assert geomean([2.0, 8.0, math.nan]) == pytest.approx(4)
    assert math.isnan(geomean([math.nan]))


def test_headlines_are_means_over_all_products_or_left_out(tmp_path):
    d = record()
    first, over_bf16, over_peer, _, decoding = headlines(speeds(d, tmp_path))
    assert first.startswith("**NVIDIA H200**, W4A16")
    gains = [
        row_of(d, model, layer, 1, BF16).us / row_of(d, model, layer, 1, W4).us
        for model in MODELS[1:]
        for layer in FUSED
    ]
    mean = math.prod(gains) ** (1 / len(gains))
    assert over_bf16 == f"M = 1: **{mean:.2f}** times as fast as bf16 ({min(gains):.2f} to {max(gains):.2f})"
    assert "the best peer" in over_peer
    w4, bf16 = (next(r for r in d.models if r.key == ("qwen3-8b", "decode", k, 1, 1024)) for k in (W4, BF16))
    assert f"**{bf16.ms / w4.ms:.2f}** times as fast, {w4.floor_ms / w4.ms:.0%} of" in decoding
    row_of(d, "qwen3-14b", "o_proj", 1, W4).us = None
    d.kernels.remove(row_of(d, "qwen3-32b", "qkv_proj", 16, W4))
    assert headlines(speeds(d, tmp_path)) == [first, decoding]


def test_failures_missing_rows_and_notes_are_said(tmp_path):
    d = record()
    failed = row_of(d, "qwen3-8b", "o_proj", 1, Kernel("wna16", 3, 128))
    failed.us = failed.us_p20 = failed.us_p80 = failed.bytes = failed.error = None
    failed.notes = ["wrong: relative error 0.5; not timed"]
    d.kernels.remove(row_of(d, "qwen3-8b", "o_proj", 1, Kernel("binary", 1, 128)))
    d.kernels = [r for r in d.kernels if (r.model, r.layer, r.M) != ("qwen3-14b", "o_proj", 16)]
    i = next(i for i, r in enumerate(d.models) if r.key == ("qwen3-32b", "decode", BF16, 8, 1024))
    d.models[i] = ModelRow(*d.models[i].key[:2], BF16, 8, 1024, notes=["failed: out of memory"])
    d.write(tmp_path / "latency" / "nvidia-h200.json")
    Report(tmp_path).write()
    texts = {p.name: p.read_text() for p in (tmp_path / "tables").iterdir()}
    for name, text in texts.items():
        if not name.endswith(".csv"):
            assert "the GPU was busy: 12" in text, name
            assert "NVIDIA H200" in text
    m1 = texts["latency_nvidia-h200_m1.md"]
    line = next(x for x in m1.splitlines() if x.startswith("| qwen3-8b | o_proj |"))
    assert "failed<sup>a</sup>" in line
    assert line.endswith("| – |")
    assert "<sup>a</sup> wrong: relative error 0.5; not timed" in m1
    tokens = texts["latency_nvidia-h200_tokens.md"]
    assert "mean of 3 of 4 or 11 of 12 products" in tokens
    models = texts["latency_nvidia-h200_models.md"]
    assert "| qwen3-32b | decode | bf16 | 8 | 1024 | failed<sup>a</sup> | – |" in models
    assert "failed: out of memory" in texts["latency_nvidia-h200_models.tex"]


def test_notes_that_differ_in_numbers_share_a_footnote(tmp_path):
    d = record(models=("qwen3-8b",), tokens=(1,))
    for i, r in enumerate(d.kernels[:5]):
        r.notes = [f"unsteady: p20 to p80 is {10 + i} % of the median"]
    d.write(tmp_path / "latency" / "nvidia-h200.json")
    Report(tmp_path).write(figures=False)
    text = (tmp_path / "tables" / "latency_nvidia-h200_m1.md").read_text()
    (line,) = (x for x in text.splitlines() if x.startswith("- <sup>"))
    assert "is 10 to 14 % of" in line


def test_a_record_with_little_in_it_is_shown_as_far_as_it_goes(tmp_path):
    d = record()
    for name, ceilings, kernels in (("nothing", {}, 0), ("no-ceilings", {}, 40), ("one-row", d.ceilings, 1)):
        little = LatencyRecord(d.provenance, ceilings=ceilings, kernels=d.kernels[:kernels])
        little.write(tmp_path / "latency" / f"{name}.json")
    names = {p.name for p in Report(tmp_path).write(tmp_path / "out") + drawn(tmp_path, tmp_path / "out")}
    assert not any("nothing" in n for n in names)
    assert "latency_no-ceilings_m1.md" in names
    assert "latency_no-ceilings_roofline.png" not in names
    assert "latency_one-row_roofline.png" in names
    text = (tmp_path / "out" / "tables" / "latency_no-ceilings_m1.md").read_text()
    assert "nan" not in text


@pytest.mark.parametrize("spoil", ["text", "twice", "field"])
def test_a_damaged_record_is_left_out_with_a_warning(tmp_path, spoil):
    d = record(models=("qwen3-8b",), tokens=(1,))
    path = tmp_path / "latency" / "x.json"
    if spoil == "twice":
        d.kernels.append(d.kernels[0])
    d.write(path)
    if spoil == "field":
        path.write_text(path.read_text().replace('"bits": 16', '"bit": 16'))
    if spoil == "text":
        path.write_text("{")
    with pytest.warns(UserWarning, match="not a whole latency record"):
        assert load(tmp_path) == []
    with pytest.raises(ValueError, match="measure again"):
        LatencyRecord.read(path)


def test_two_machines_have_two_sets(tmp_path):
    for name, gpu in (("nvidia-h200", "NVIDIA H200"), ("nvidia-a100", "NVIDIA A100")):
        record(models=("qwen3-8b",), tokens=(1, 16), gpu=gpu).write(tmp_path / "latency" / f"{name}.json")
    Report(tmp_path).write(figures=False)
    assert "NVIDIA A100" in (tmp_path / "tables" / "latency_nvidia-a100_m1.md").read_text()
    assert "NVIDIA H200" in (tmp_path / "tables" / "latency_nvidia-h200_m1.md").read_text()


def test_names_of_kernels():
    others = [("wna16", 4, 64), ("wna16", 4, -1), ("wna8", 8, -1), ("binary", 1, 128), ("torch_scaled_mm_fp8", 8, 128)]
    names = [label(k) for k in (*KERNELS[:4], *(Kernel(*k) for k in others))]
    assert names[:4] == ["bf16", "torch W4", "torch fp8", "W8A16"]
    assert names[4:] == ["W4A16 g64", "W4A16 row", "W8A8", "BiLLM", "torch fp8 g128"]


# --- agreement


def test_agreement_has_its_own_table(tmp_path):
    store = Store(tmp_path)
    for m in (agreement(), agreement(kernels="NVIDIA H200", error=2e-3), agreement(method="smoothquant", bits=8)):
        store.put(m)
    lost = agreement(bits=3)
    store.put_failure(lost.id, lost.science, ArithmeticError("logits differ by 0.3"), "Traceback ...")
    names = {p.name for p in Report(tmp_path).write(figures=False)}
    assert names == {"agreement.csv", "agreement.md", "agreement.tex"}
    lines = list(csv.DictReader((tmp_path / "tables" / "agreement.csv").open()))
    assert [(x["method"], x["w_bits"], x["kernels"]) for x in lines] == [
        ("gptq", "4", "NVIDIA H200"), ("gptq", "4", "interpreted"), ("gptq", "3", "interpreted"),
        ("smoothquant", "8", "interpreted")]  # fmt: skip
    assert float(lines[0]["agreement/error"]) == 2e-3
    assert lines[2]["agreement/error"] == ""
    text = (tmp_path / "tables" / "agreement.md").read_text()
    assert "| nano-s | GPTQ | 4 | 16 | 128 | 0.002 | 0.004 | 0.006 | 99.0 | bfloat16 | NVIDIA H200 |" in text
    assert "failed: ArithmeticError: logits differ by 0.3" in text
    assert kernel_sheet(frame([], kernels=True), KERNEL_TABLES[0]).csv_rows == []


def test_latency_of_quantized_weights_has_its_own_table(tmp_path):
    m = agreement(method="gptq", bits=4)
    ev = {"name": "latency", "version": 1, "batch": 1, "context": 1024, "dtype": "bfloat16", "gpu": "NVIDIA H200"}
    whole = m.science | {"eval": ev}
    values = {"decode_ms": 1.5, "tokens_per_s": 666.7, "bf16_ms": 3.9, "speedup": 2.6, "floor_share": 0.81}
    metrics = {f"latency/{k}": Metric(v, "unit", 50) for k, v in values.items()}
    Store(tmp_path).put(dataclasses.replace(m, id=digest(whole), science=whole, metrics=metrics))
    names = {p.name for p in Report(tmp_path).write(figures=False)}
    assert names == {f"quantized_latency.{extension}" for extension in ("csv", "md", "tex")}
    text = (tmp_path / "tables" / "quantized_latency.md").read_text()
    assert "| 1.5 | 667 | 3.9 | 2.6 | 81.0 | 1 | 1024 | bfloat16 | NVIDIA H200 |" in text
    assert kernel_sheet(frame([m], kernels=True), KERNEL_TABLES[1]).csv_rows == []


def test_kernels_leave_the_tables_of_quality_alone(tmp_path):
    bits = (4, 3)
    for name in ("with", "without"):
        study(tmp_path / name, models=("nano-s",), bits=bits)
    store = Store(tmp_path / "with")
    for m in (agreement(), agreement(bits=3, kernels="NVIDIA H200"), agreement(method="gptq", bits=7)):
        store.put(m)
        timed = {**m.science, "eval": {"name": "latency", "gpu": "NVIDIA H200", "batch": 1}}
        store.put(type(m)(digest(timed), timed, {"latency/decode_ms": Metric(1.0, "ms", 5)}, 4, 4.2, 10**6, m.layers))
    lost = agreement(bits=2)
    store.put_failure(lost.id, lost.science, ArithmeticError("x"), "Traceback ...")
    made = [Report(tmp_path / n).write(tmp_path / "out" / n) for n in ("with", "without")]
    extra = {p.name for p in made[0]} - {p.name for p in made[1]}
    tables = ("agreement", "quantized_latency")
    assert extra == {f"{table}.{extension}" for table in tables for extension in ("csv", "md", "tex")}
    for p in (p for p in made[1] if p.name != "index.html"):
        other = tmp_path / "out" / "with" / p.relative_to(tmp_path / "out" / "without")
        assert other.read_bytes() == p.read_bytes(), p.name


# --- README


def test_the_pages_say_what_was_measured_or_that_nothing_was(tmp_path):
    def shown() -> str:
        return " ".join(SECTIONS["latency"](tmp_path).split())

    assert shown() == "* No GPU has been measured yet. `python experiments/latency.py` measures one."
    s = speeds(record(), tmp_path)
    text = shown()
    assert text.startswith("* **NVIDIA H200**")
    assert "the GPU was busy" in text
    assert all(" ".join(line.split()) in text for line in headlines(s))
