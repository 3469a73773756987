"""Packed models against dequantized ones: every method and bit-width, generated text, and refusals."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import BIASED, FAMILIES, save_tiny
from fakes.latency_fakes import FakeClock
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from transformers import AutoModelForCausalLM

from qbench.decoder.model import Decoder
from qbench.files import packaged
from qbench.grid import Grid
from qbench.kernels import configs
from qbench.kernels.packed import PackedBinary, PackedInteger, PackedUniform
from qbench.latency import ceilings
from qbench.linear import QuantLinear
from qbench.measure.agreement import LAYER_LIMIT, compare, kernels_of, refuse
from qbench.methods.awq import AWQ
from qbench.methods.billm import BiLLM
from qbench.methods.gptq import GPTQ
from qbench.methods.rtn import RTN
from qbench.methods.smoothquant import SmoothQuant
from qbench.models.checkpoint import Checkpoint
from qbench.models.quantized import QuantizedFolder
from qbench.quantization import Quantization
from qbench.run import run
from qbench.store import Store
from qbench.stream import quantize

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SYMMETRIC = [Grid(bits, -1, True) for bits in range(1, 9)]
METHODS = {
    **{f"rtn-{bits}": RTN(Grid(bits, 128)) for bits in range(1, 9)},
    **{f"smoothquant-{grid.bits}": SmoothQuant(grid) for grid in SYMMETRIC},
    "rtn-row": RTN(Grid(4, -1, True)),
    "gptq-3": GPTQ(Grid(3, 128)),
    "gptq-order": GPTQ(Grid(3, 64), act_order=True),
    "awq-4-g32": AWQ(Grid(4, 32)),
    "billm": BiLLM(),
}


# kernels read 128 columns at a time: once in all linears, twice in down_proj
SIZES = dict(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, hidden_size=128, intermediate_size=256)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("small"), **SIZES)
    return Checkpoint("small", path=str(folder)).open()


def both(ckpt, method, ids, folder):
    folder = QuantizedFolder(folder)
    quantize(ckpt, method, ids[:4], folder)
    return [folder.load(ckpt, method.acts, DEVICE, path=path) for path in ("dequantized", "packed")]


@pytest.mark.parametrize("name", METHODS)
def test_packed_models_agree(small, ids, tmp_path, name):
    model, packed = both(small, METHODS[name], ids, tmp_path)
    found = compare(model, packed, [ids[4:5, :16].to(DEVICE)])
    assert 0 < found["agreement/rounding"].value < 1
    assert found["agreement/worst_layer"].n == 7 * 2
    kind = PackedInteger if "smooth" in name else PackedBinary if name == "billm" else PackedUniform
    assert all(isinstance(m.packed, kind) for m in packed.modules() if isinstance(m, QuantLinear))


def test_a_packed_model_is_smaller(small, ids, tmp_path):
    _, packed = both(small, GPTQ(Grid(3, 128)), ids, tmp_path / "quantized")
    linears = sum(N * K for N, K in small.linears.values())
    stored = sum(m.packed.weight_bytes for m in packed.modules() if isinstance(m, QuantLinear))
    assert stored == linears * 3 // 8 + linears // 128 * 3


@pytest.mark.parametrize("name", ["rtn-4", "gptq-order", "awq-4-g32", "smoothquant-8", "billm"])
@pytest.mark.parametrize("family", BIASED)
def test_models_with_biases_agree_in_every_form(ids, tmp_path, family, name):
    """Packed, and dequantized in a folder of plain transformers."""
    ckpt = Checkpoint("b", path=str(save_tiny(tmp_path / "model", **FAMILIES[family], **SIZES))).open()
    model, packed = both(ckpt, METHODS[name], ids, tmp_path / "quantized")
    x = ids[4:5, :16].to(DEVICE)
    assert 0 < compare(model, packed, [x])["agreement/rounding"].value < 1
    with torch.no_grad():
        before = packed(x).logits
        if METHODS[name].acts is None:
            model.save_pretrained(tmp_path / "plain")
            plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.bfloat16).to(DEVICE).eval()
            assert torch.equal(plain(x).logits, model(x).logits)
        for linear in (m for m in packed.modules() if isinstance(m, QuantLinear) and m.bias is not None):
            linear.bias.zero_()
        assert not torch.allclose(packed(x).logits, before, rtol=0.1)


def test_a_packed_model_writes_the_same_text(tmp_path):
    ckpt = Checkpoint("nano-s", nano="nano-s", dtype="bfloat16").open()
    prompt = ckpt.tokenizer("The", return_tensors="pt").input_ids
    model, packed = both(ckpt, RTN(Grid(8, 128)), prompt.repeat(4, 8), tmp_path)
    texts = [m.generate(prompt.to(DEVICE), max_new_tokens=2, do_sample=False).tolist() for m in (model, packed)]
    assert texts[0] == texts[1]
    assert len(texts[0][0]) == prompt.shape[1] + 2


# -- the evaluation


@pytest.fixture(scope="module")
def of_nano(tmp_path_factory):
    """A model with random weights that reads nano-s's tokens."""
    tokenizer = Checkpoint("nano-s", nano="nano-s").open().tokenizer
    folder = save_tiny(tmp_path_factory.mktemp("of_nano"), dtype=torch.float32, vocab_size=len(tokenizer), **SIZES)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def configure(tmp_path, of_nano):
    GlobalHydra.instance().clear()
    fixed = [f"machine.results_dir={tmp_path / 'results'}", f"machine.cache_dir={tmp_path / 'cache'}", "calib.n=4"]
    fixed += ["machine.threads=1", "model=local", f"model.path={of_nano}", "home={calib:nano,text:nano}"]
    agreement = ["eval=agreement", "eval.window=8", "eval.limit=1"]

    def make(*overrides, small=True):
        with initialize_config_dir(str(packaged("conf")), version_base="1.3"):
            return compose("config", [*fixed, *(agreement if small else []), *overrides])

    return make


def test_agreement_is_recorded(configure, tmp_path):
    outcome = run(configure("method=gptq", "grid.bits=3"))
    assert outcome.status == "measured", outcome.message
    (record,) = Store(tmp_path / "results").measurements()
    metrics = {key: m.value for key, m in record.metrics.items()}
    assert 0 < metrics["agreement/worst_layer"] < LAYER_LIMIT * 2**-7
    assert set(metrics) == {f"agreement/{name}" for name in ("error", "rounding", "worst_layer", "top1")}
    assert record.science["eval"]["dtype"] == "bfloat16"
    assert record.science["eval"]["kernels"] == ("interpreted" if DEVICE == "cpu" else torch.cuda.get_device_name())


@pytest.mark.parametrize("kernel", ["wna16", "wna8", "binary"])
def test_logits_are_compared_on_the_kernels_themselves(configure, kernel):
    """And not on weights that a kernel dequantized first, which agree whatever it multiplies."""
    with initialize_config_dir(str(packaged("conf")), version_base="1.3"):
        tokens = compose("config", ["model=nano-s", "eval=agreement"]).eval.window
    for processors in (1, 132):
        assert configs.estimate(kernel, 4096, 4096, tokens, processors)["path"] == "fused"


def test_a_kernel_that_is_wrong_is_not_recorded(configure, tmp_path, monkeypatch):
    def spoiled(self, placement, path="dequantized"):
        model = healthy(self, placement, path)
        if path == "packed":
            model.model.layers[0].mlp.up_proj.packed.words.bitwise_xor_(1 << 15)
        return model

    healthy = Quantization.load
    monkeypatch.setattr(Quantization, "load", spoiled)
    outcome = run(configure("method=rtn", "grid.bits=2", "eval.dtype=float16"))
    assert outcome.status == "failed"
    assert "model.layers.0.mlp.up_proj, " in outcome.message
    assert "a kernel is wrong" in outcome.message
    assert not Store(tmp_path / "results").measurements()
    assert len(list((tmp_path / "results" / "failures").glob("*.json"))) == 1


@pytest.mark.parametrize("method", ["gptq", "billm"])
def test_latency_is_of_the_quantized_weights(configure, tmp_path, monkeypatch, method):
    steps, decoders, decoder_of = [], [], Decoder.of

    class Told(FakeClock):
        def graph(self, fn):
            steps.append(fn)
            return fn

        def time(self, replay, runs):
            return [(250.0 if len(steps) == 2 else 1000.0)] * runs  # the copy, then the packed step, then bfloat16

    monkeypatch.setattr("qbench.measure.decode_speed.clock_of", lambda device: Told())
    monkeypatch.setattr("qbench.measure.decode_speed.TOKENS", 4)
    monkeypatch.setattr(Decoder, "of", lambda *args: decoders.append(decoder_of(*args)) or decoders[-1])
    monkeypatch.setattr(ceilings, "copy_bandwidth", partial(ceilings.copy_bandwidth, copy_bytes=1 << 10))
    outcome = run(configure(f"method={method}", "grid.bits=4", "eval=latency", "eval.context=12", small=False))
    assert outcome.status == "measured", outcome.message
    metrics = {key.removeprefix("latency/"): m.value for key, m in outcome.metrics.items()}
    assert metrics["decode_ms"] == 0.25
    assert metrics["bf16_ms"] == 1.0
    assert metrics["speedup"] == 4.0
    assert metrics["tokens_per_s"] == 4000
    (decoder,) = decoders
    kinds = {type(m).__name__ for layer in decoder.layers for m in (layer.qkv_proj, layer.o_proj, layer.down_proj)}
    assert (kinds <= {"PackedUniform", "PackedBinary", "Unfused"} and "PackedUniform" in kinds) or method == "billm"
    assert metrics["weight_bytes"] == decoder.weight_bytes


def test_latency_needs_a_gpu_and_a_qwen3(configure, tmp_path):
    if DEVICE == "cpu":
        assert "times kernels on a GPU" in run(configure("method=rtn", "eval=latency", small=False)).message
    assert "choose a method, not none" in run(configure("method=none", "eval=latency", small=False)).message
    llama = save_tiny(tmp_path / "llama", family="llama", hidden_size=128, intermediate_size=384)
    outcome = run(configure("method=rtn", "eval=latency", f"model.path={llama}", small=False))
    assert "the lean decoder has no decoder layers of llama; give it a dense Qwen3" in outcome.message
    outcome = run(configure("method=rtn", "eval=latency", "eval.batch=0", small=False))
    assert "eval.batch must be a whole number of at least 1, got 0" in outcome.message


def test_what_cannot_be_compared_is_refused_before_work(configure, monkeypatch):
    assert "choose a method, not none" in run(configure("method=none")).message
    assert "eval.dtype must be float16 or bfloat16" in run(configure("method=rtn", "eval.dtype=float32")).message
    outcome = run(configure("method=smoothquant", "method.grid.group_size=32"))
    assert outcome.status == "refused"
    assert "groups of a multiple of 128 columns, got groups of 32" in outcome.message
    outcome = run(configure("method=billm", "method.block_size=64", "method.max_salient=20"))
    assert outcome.status == "refused"
    assert "got block_size=64" in outcome.message
    monkeypatch.setattr("qbench.kernels.launch.interpreted", lambda: False)
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1"):
        kernels_of("cpu")


def test_not_a_number_is_never_an_agreement():
    with pytest.raises(ArithmeticError, match="a kernel is wrong"):
        refuse(0.0, 0.1, (float("nan"), "q_proj"), torch.bfloat16)
    with pytest.raises(ArithmeticError, match="packing is wrong"):
        refuse(float("nan"), 0.1, (0.0, "q_proj"), torch.bfloat16)
    with pytest.raises(ArithmeticError, match="where one rounding at every linear changes them by"):
        refuse(0.05, 0.01, (0.001, "q_proj"), torch.bfloat16)


def test_the_command_interprets_kernels_where_there_is_no_gpu(of_nano, tmp_path):
    if DEVICE == "cuda":
        pytest.skip("this machine has a GPU")
    import os

    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "qbench.cli", "run", "model=local", f"model.path={of_nano}", "method=rtn"]
    command += ["home={calib:nano,text:nano}", "eval=agreement", "eval.window=4", "eval.limit=1"]
    command += [f"machine.results_dir={tmp_path}", f"machine.cache_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "measurements").glob("*.json"))) == 1
