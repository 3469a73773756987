"""Checkpoints that others quantized come in as what they are: bit for bit, with what was read in the record."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import save_tiny
from fakes.released import awq, awq_config, gptq, gptq_config, release, set_config
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file

from qbench.files import packaged
from qbench.formats import format_of
from qbench.formats.base import Part, Source
from qbench.grid import ActQuant, Fp8ActQuant, Grid
from qbench.measure.divergence import Divergence
from qbench.methods.fp8 import FP8
from qbench.models.checkpoint import NANO, Checkpoint
from qbench.models.quantized import StoredBlocks
from qbench.report.quality.frame import frame
from qbench.report.quality.rows import make_rows
from qbench.run import Run, run
from qbench.store import Store
from qbench.weights import round_to_nearest

GPTQ4 = (Grid(4, 64, True), gptq, gptq_config(4))
RELEASES = {
    "gptq-int4": GPTQ4,
    "gptq-int8": (Grid(8, 64, True), gptq, gptq_config(8)),
    "gptq-rows": (Grid(4, -1, True), gptq, gptq_config(4, group_size=-1, format="gptq")),
    "gptq-v2": (Grid(2, 64), partial(gptq, v2=True), gptq_config(2, sym=False, checkpoint_format="gptq_v2")),
    "awq": (Grid(4, 64), awq, awq_config()),
}
Q0, DOWN1 = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def opened(folder, **fields):
    return Checkpoint("theirs", path=str(folder), dtype="float32", **fields).open()


def weights_in(ckpt) -> dict:
    blocks, found = StoredBlocks(ckpt.prequantized), {}
    for index in range(ckpt.config.num_hidden_layers):
        _, weights = blocks.read(ckpt, index, "cpu")
        found |= {f"model.layers.{index}.{name}": weight for name, weight in weights.items()}
    return found


def same(mine, theirs) -> bool:
    a, b = mine.state(), theirs.state()
    is_alike = mine.settings() == theirs.settings() and a.keys() == b.keys()
    return is_alike and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", RELEASES)
def test_codes_scales_and_zeros_are_those_of_the_file(tmp_path, name):
    grid, tensors, told = RELEASES[name]
    stored = release(tmp_path / "a", grid, tensors, told)
    found = weights_in(opened(tmp_path / "a"))
    assert len(found) == 14
    assert all(same(found[key], weight) for key, weight in stored.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_computes_with_these_numbers(tmp_path, dtype):
    """Against the unquantized model with each weight replaced by what the file says."""
    stored = release(tmp_path / "a", *RELEASES["awq"])
    ckpt = Checkpoint("theirs", path=str(tmp_path / "a"), dtype=dtype).open()
    model = StoredBlocks(ckpt.prequantized).load(ckpt, None, "cpu")
    expected, ids = Checkpoint("plain", nano="nano-s", dtype=dtype).open().load("cpu"), torch.arange(40)[None]
    for name, weight in stored.items():
        expected.get_submodule(name).weight.data = weight.dequantize().to(expected.dtype)
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, expected(ids).logits)


def test_biases_and_shards(tmp_path):
    source = save_tiny(tmp_path / "qwen2", family="qwen2")
    stored = release(tmp_path / "a", *GPTQ4, source=source)
    ckpt = opened(tmp_path / "a")
    assert all(same(weight, stored[key]) for key, weight in weights_in(ckpt).items())
    model = StoredBlocks(ckpt.prequantized).load(ckpt, None, "cpu")
    plain = Checkpoint("plain", path=str(source), dtype="float32").open().load("cpu")
    assert torch.equal(model.model.layers[2].self_attn.k_proj.bias, plain.model.layers[2].self_attn.k_proj.bias)


def test_only_the_tensors_of_one_block_are_read(tmp_path, monkeypatch):
    release(tmp_path / "a", *GPTQ4)
    ckpt, read = opened(tmp_path / "a"), []
    plain = ckpt.tensor
    monkeypatch.setattr(ckpt, "tensor", lambda key, device: read.append(key) or plain(key, device))
    StoredBlocks(ckpt.prequantized).read(ckpt, 1, "cpu")
    assert len(read) == 7 * 4 + 4
    assert all(key.startswith("model.layers.1.") for key in read)


def test_moving_groups_come_in(tmp_path):
    moved_K = torch.randperm(128, generator=torch.Generator().manual_seed(0)).int() // 64

    def tensors(weight):
        found = gptq(weight)
        return found | ({"g_idx": moved_K.clone()} if len(found["g_idx"]) == 128 else {})

    release(tmp_path / "a", GPTQ4[0], tensors, gptq_config(4, desc_act=True))
    ckpt = opened(tmp_path / "a")
    found = weights_in(ckpt)
    assert torch.equal(found[Q0].group_K, moved_K.short())
    assert found[DOWN1].group_K is None
    assert ckpt.outlines[Q0].stored_bits == found[Q0].stored_bits > found[DOWN1].stored_bits


def test_linears_that_are_left_in_floats_are_no_quantized_ones(tmp_path):
    """The headers say which they are, so a pattern in config.json is never interpreted."""
    told = gptq_config(4, dynamic={"-:(.*a){50}": {}}, modules_to_not_convert=["down_proj"])
    release(tmp_path / "a", *GPTQ4[:2], told, keep=(Q0, DOWN1))
    ckpt = opened(tmp_path / "a")
    assert len(weights_in(ckpt)) == 12
    assert ckpt.prequantized.science()["unquantized_linears"] == 2
    model = StoredBlocks(ckpt.prequantized).load(ckpt, None, "cpu")
    plain = Checkpoint("plain", nano="nano-s", dtype="float32").open().load("cpu")
    for name in (Q0, DOWN1):
        assert torch.equal(model.get_submodule(name).weight, plain.get_submodule(name).weight)


def test_scales_in_another_type_are_the_same_numbers_or_refused(tmp_path):
    def tensors(weight):
        found = gptq(weight)
        return found | {"scales": found["scales"].bfloat16().half().bfloat16()}

    release(tmp_path / "a", GPTQ4[0], tensors, GPTQ4[2])
    assert weights_in(opened(tmp_path / "a"))[Q0].scale_NG.dtype == torch.float16
    change(tmp_path / "a", {f"{Q0}.scales": torch.full((2, 128), 1e-7).bfloat16()})
    with pytest.raises(ValueError, match=rf"a scale of {Q0} in .* is not a float16 number"):
        weights_in(opened(tmp_path / "a"))


# --- what we export comes in again ---

EXPORTS = {
    "gptq": ("gptq", {}, Grid(4, 64, True), None),
    "gptq-2": ("gptq", {"version": 2}, Grid(3, 64), None),
    "awq": ("awq", {}, Grid(4, 64), None),
    "ct-3": ("compressed-tensors", {}, Grid(3, 64), None),
    "ct-1": ("compressed-tensors", {}, Grid(1, -1, True), None),
    "ct-w8a8": ("compressed-tensors", {}, Grid(8, -1, True), ActQuant(8)),
}


def export(folder: Path, name: str) -> dict:
    format, options, grid, acts = EXPORTS[name]
    tensors, folder = load_file(NANO / "nano-s" / "model.safetensors"), Path(folder)
    weights = {key.removesuffix(".weight"): round_to_nearest(tensors.pop(key), grid)
               for key in list(tensors) if key.endswith("_proj.weight")}  # fmt: skip
    outlines = {key: weight.outline() for key, weight in weights.items()}
    folder.mkdir()
    parts = [Part(tensors, weights)]
    format_of(format)(**options).write(
        Source(NANO / "nano-s", lambda: iter(parts), outlines, acts, torch.float32), folder
    )
    return weights


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_comes_in_again(tmp_path, name):
    weights = export(tmp_path / "a", name)
    ckpt = opened(tmp_path / "a")
    found = weights_in(ckpt)
    assert all(same(found[key], weight) for key, weight in weights.items())
    assert ckpt.prequantized.stored.acts == EXPORTS[name][3]


# --- refused before weights are read ---


def change(folder, tensors: dict, drop: tuple[str, ...] = ()) -> None:
    path = folder / "model.safetensors"
    state = load_file(path) | tensors
    save_file({key: t for key, t in state.items() if key not in drop}, path)


CT = {"config_groups": {"g": {"targets": ["Linear"], "input_activations": None,
      "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64,
                  "dynamic": False}}}, "format": "pack-quantized"}  # fmt: skip


def ct_config(**changes) -> dict:
    told = json.loads(json.dumps(CT)) | {"quant_method": "compressed-tensors"}
    for key, value in changes.items():
        part = told["config_groups"]["g"]
        (told if key in ("transform_config", "config_groups") else part if key in part else part["weights"])[key] = (
            value
        )
    return told


FP8_CONFIG = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
CONFIGS = [
    (FP8_CONFIG | {"activation_scheme": "static"}, "it says {'activation_scheme': 'static'}; supported"),
    (FP8_CONFIG | {"weight_block_size": None}, "it says {'weight_block_size': None}"),
    (FP8_CONFIG | {"scale_fmt": "ue8m0"}, "it says {'scale_fmt': 'ue8m0'}"),
    (FP8_CONFIG | {"fmt": "float"}, "it says {'fmt': 'float'}"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method bitsandbytes is not supported"),
    ({"bits": 4}, "quant_method None is not supported"),
    ({"quant_method": ["gptq"]}, r"quant_method \['gptq'\] is not supported"),
    (gptq_config(4, checkpoint_format="marlin"), "checkpoint_format marlin is not supported; supported: gptq, gptq_v2"),
    (gptq_config(4, checkpoint_format="gptq_p"), "checkpoint_format gptq_p is not supported"),
    (gptq_config("4"), "grid.bits must be a whole number from 1 to 8, got '4'"),
    (gptq_config(5), "it has 2, 3, 4 or 8 bits, not 5"),
    (gptq_config(4, group_size=0), "grid.group_size must be -1 or a whole number of at least 1, got 0"),
    (gptq_config(4, group_size=96), "group_size 96 does not divide K=128"),
    (gptq_config(4, sym=None), "grid.symmetric must be true or false, got null"),
    ({"quant_method": "gptq", "bits": 4}, "damaged .KeyError: 'group_size'"),
    (awq_config(version="gemv"), r"\(version, zero_point\) is \('gemv', True\); supported: \('gemm', True\)"),
    (awq_config(zero_point=False), r"\(version, zero_point\) is \('gemm', False\)"),
    (awq_config(bits=8), "it has 4 bits and a zero per group"),
    (awq_config(version=2), "damaged .AttributeError"),
    (ct_config(type="float"), "weights of g are {'type': 'float'}; supported"),
    (ct_config(dynamic=True), "weights of g are {'dynamic': True}"),
    (ct_config(input_activations={"num_bits": 8, "type": "float"}), "input_activations of g are"),
    (ct_config(targets=["re:.*q_proj"]), "targets of g are Linear or names of linears, not re:"),
    (ct_config(targets=[Q0]), "no config group says how model.layers.0.* is stored"),
    (ct_config(transform_config={"hadamard": 1}), "transform_config is not supported"),
    (ct_config(config_groups=[1]), "damaged .AttributeError"),
]  # fmt: skip


@pytest.fixture
def theirs(tmp_path) -> Path:
    release(tmp_path / "a", *GPTQ4)
    return tmp_path / "a"


@pytest.mark.parametrize(("told", "message"), CONFIGS, ids=str)
def test_a_quantization_config_that_is_not_understood_is_refused(theirs, told, message):
    set_config(theirs, quantization_config=told)
    with pytest.raises(ValueError, match=rf"cannot read the quantized model in .*{message}.*unquantized checkpoint"):
        opened(theirs)


TENSORS = {
    "missing": ({}, f"{Q0}.g_idx", f"the tensor {Q0}.g_idx is in no file"),
    "stray": ({"lm_head.qweight": torch.zeros(2, 2).int()}, "", "holds lm_head.qweight, which this model has no place"),
    "both": ({f"{Q0}.weight": torch.zeros(128, 128)}, "", f"holds {Q0}.g_idx, which this model has no place"),
    "dtype": ({f"{Q0}.qweight": torch.zeros(16, 128).long()}, "", f"{Q0}.qweight is stored as I64, not as I32"),
    "shape": (
        {f"{Q0}.qweight": torch.zeros(32, 128).int()},
        "",
        rf"{Q0}.qweight has shape \(32, 128\), .* \(16, 128\)",
    ),
    "groups": ({f"{Q0}.scales": torch.ones(1, 128).half()}, "", rf"{Q0}.scales has shape \(1, 128\)"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit_are_refused(theirs, name):
    tensors, drop, message = TENSORS[name]
    change(theirs, tensors, (drop,))
    with pytest.raises(ValueError, match=message):
        opened(theirs)


NUMBERS = {
    "other zeros than sym says": ({"qzeros": torch.zeros(2, 16).int()}, "qzeros in .* holds other numbers than gptq"),
    "groups beyond the scales": ({"g_idx": torch.full((128,), 2).int()}, "g_idx in .* names groups that are not among"),
    "groups below zero": ({"g_idx": -torch.ones(128).int()}, "names groups that are not among the 2 of its scales"),
    "a group number of 17 bits": (
        {"g_idx": (torch.arange(128) // 64 + 2**16).int()},
        "g_idx in .* holds other numbers",
    ),
    "not a number": ({"scales": torch.full((2, 128), torch.nan).half()}, "NaN or inf in model.layers.0"),
    "infinite": ({"scales": torch.full((2, 128), torch.inf).half()}, "NaN or inf in model.layers.0"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_the_configuration_does_not_allow_are_refused(theirs, name):
    tensors, message = NUMBERS[name]
    change(theirs, {f"{Q0}.{key}": t for key, t in tensors.items()})
    with pytest.raises(ValueError, match=message):
        weights_in(opened(theirs))


def test_a_zero_that_version_1_does_not_hold_is_refused(tmp_path):
    """Readers disagree on what 15 + 1 is in 4 bits."""

    def tensors(weight):
        found = gptq(weight)
        return found | {"qzeros": torch.full_like(found["qzeros"], -1)}

    release(tmp_path / "a", Grid(4, 64), tensors, gptq_config(4, sym=False))
    with pytest.raises(ValueError, match=r"cannot hold model.layers.0.*: version 1 stores z - 1, and .* have z = 0"):
        weights_in(opened(tmp_path / "a"))


@pytest.mark.parametrize("scales", [torch.bfloat16, torch.float32])
def test_fp8_comes_in_with_its_activations(tmp_path, scales):
    source, fp8 = save_tiny(tmp_path / "tiny"), FP8(scales=str(scales).removeprefix("torch."))

    def tensors(weight):
        return {"weight": weight.codes_NK, "weight_scale_inv": weight.scale_nk}

    stored = release(tmp_path / "a", lambda w: fp8.quantize(w, None, ""), tensors, FP8_CONFIG, source=source)
    ckpt = opened(tmp_path / "a")
    assert ckpt.prequantized.words == "fp8 W8A8"
    found = weights_in(ckpt)
    for name, weight in stored.items():
        assert found[name].scale_nk.dtype == scales
        assert torch.equal(found[name].dequantize(), weight.dequantize())
    model = StoredBlocks(ckpt.prequantized).load(ckpt, ckpt.prequantized.stored.acts, "cpu")
    assert model.model.layers[0].self_attn.q_proj.acts == Fp8ActQuant()
    change(tmp_path / "a", {f"{Q0}.weight": torch.full((256, 128), torch.nan).to(torch.float8_e4m3fn)})
    with pytest.raises(ValueError, match=f"NaN or inf in {Q0}"):
        weights_in(opened(tmp_path / "a"))


def test_version_1_called_version_2_is_found_out(theirs):
    set_config(theirs, quantization_config=gptq_config(4, checkpoint_format="gptq_v2"))
    with pytest.raises(ValueError, match=r"qzeros in .* holds other numbers than gptq .* may be wrong: .*gptq_v2"):
        weights_in(opened(theirs))


def test_a_truncated_file_is_named(theirs):
    path = theirs / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model.safetensors is truncated or damaged"):
        opened(theirs)


@pytest.mark.parametrize("text", ['{"a":' * 100_000, '"gptq"', "[4]"])
def test_hostile_json_is_refused(theirs, text):
    config = json.dumps({"model_type": "qwen3", "quantization_config": 0}).replace(": 0}", f": {text}")
    (theirs / "config.json").write_text(config + "}" * (text[-1] != ":"))
    with pytest.raises(ValueError, match=r"config.json"):
        opened(theirs)


def test_no_class_that_a_checkpoint_names_is_made(theirs):
    told = gptq_config(4, _target_="os.system", meta={"_target_": "os.system"})
    set_config(theirs, quantization_config=told, auto_map={"AutoConfig": "code.Config"})
    (theirs / "code.py").write_text("raise SystemExit")
    assert len(weights_in(opened(theirs))) == 14


# --- runs ---

NANO_HOME = ["home.text=nano", "home.tasks=[nano_world]", "home.num_fewshot=0", "calib=nano", "calib.n=2"]


@pytest.fixture
def configure(tmp_path):
    fixed = ["model.dtype=float32", "eval.limit=2", "eval.window=64", "machine.device=cpu", "machine.threads=1"]
    fixed += [f"machine.results_dir={tmp_path / 'results'}", f"machine.cache_dir={tmp_path / 'cache'}"]

    def make(*overrides, folder=None):
        local = ["model=local", f"model.path={folder}", "model.name=theirs", *NANO_HOME]
        with initialize_config_dir(str(packaged("conf")), version_base="1.3"):
            return compose("config", [*(local if folder else []), *fixed, *overrides])

    return make


BASE = f"++model.base={NANO / 'nano-s'}"


def test_an_exported_cell_measures_the_same_and_says_what_it_is(configure, tmp_path):
    """Perplexity and divergence of our rounding, and of the file of the same weights."""
    export(tmp_path / "a", "awq")
    ours = run(configure("method=rtn", "grid.group_size=64", "eval=kl", "++eval.perplexity=true"))
    cell = configure("method=none", "eval=kl", "++eval.perplexity=true", BASE, folder=tmp_path / "a")
    theirs = run(cell)
    assert theirs.status == "measured", theirs.message
    assert theirs.metrics == ours.metrics
    assert theirs.metrics["nano/kl"].value > 0.01
    assert theirs.cell == "theirs as stored (awq W4A16)"
    assert run(cell).status == "present"
    mine, other = sorted(Store(tmp_path / "results").measurements(), key=lambda m: m.science["model"]["name"])
    told = {"quant_method": "awq", "format": "gemm", "bits": 4, "group_size": 64, "symmetric": False}
    assert other.science["model"]["quantized"] == told
    assert other.science["eval"]["base"]["revision"] == Checkpoint("x", path=str(NANO / "nano-s")).open().revision
    assert (other.nominal_bits, other.stored_bits) == (mine.nominal_bits, mine.stored_bits) == (4, 4.3125)
    assert other.model_bytes == mine.model_bytes
    rows = make_rows(frame([mine, other]), ["nano/kl"])
    shown = {(row.model, row.name): (row.bits, row.group_size, row.variant) for row in rows}
    assert shown == {("nano-s", "RTN"): (4, 64, ""), ("theirs", "awq by others"): (4, 64, "")}


def test_what_a_quantized_model_cannot_do_is_refused(configure, theirs, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "execute", lambda self: pytest.fail("work started"))
    refused = {
        ("method=gptq",): "model theirs is quantized already (gptq W4A16); use method=none",
        ("method=none", "eval=kl"): "model theirs is quantized already; to compare it with the unquantized model",
        (
            "method=none",
            "eval=kl",
            f"++model.base={theirs}",
        ): f"model.base={theirs} is quantized itself; name the model",
        ("method=none", "eval=kl", f"++model.base={NANO / 'nano-m'}"): "has other linears or another vocabulary",
    }
    for overrides, message in refused.items():
        outcome = run(configure(*overrides, folder=theirs))
        assert outcome.status == "refused"
        assert message in outcome.message


def test_packed_weights_agree(configure, theirs):
    outcome = run(configure("method=none", "eval=agreement", "eval.limit=1", "eval.window=16", folder=theirs))
    assert outcome.status == "measured", outcome.message


def test_a_base_with_a_head_of_its_own(tmp_path, nano_context):
    """A file whose head was rounded to another type: the divergence is that of the two models' own logits."""
    source = save_tiny(tmp_path / "tiny", tie_word_embeddings=False, vocab_size=1024)
    release(tmp_path / "a", *GPTQ4, source=source)
    state = load_file(tmp_path / "a" / "model.safetensors")
    change(tmp_path / "a", {"lm_head.weight": state["lm_head.weight"].float() * 1.01})
    base, ckpt = opened(source), opened(tmp_path / "a")
    plain, model = base.load("cpu"), StoredBlocks(ckpt.prequantized).load(ckpt, None, "cpu")
    ctx = replace(nano_context, cache_dir=tmp_path, reference=lambda: plain, head=lambda: base.head("cpu"))
    measure = Divergence(source="nano", window=32, limit=2)
    with torch.inference_mode():
        p, q = (m(measure.windows(ctx)).logits[:, :-1].double().log_softmax(-1) for m in (plain, model))
    found = measure.run(model, ctx)["nano/kl"].value
    assert found == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
    with pytest.raises(ValueError, match="the output head differs"):
        measure.run(model, replace(ctx, head=None))
