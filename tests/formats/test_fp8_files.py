"""FP8 files: names, types and config of the official ones, and transformers' loader as the judge."""

import json

import pytest
import torch
from fakes.quantized import same, there_and_back, written
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qbench.formats import format_of
from qbench.grid import ActQuant, Fp8ActQuant
from qbench.methods.fp8 import FP8
from qbench.models.checkpoint import Checkpoint

FORMAT = format_of("fp8")()


def weight_of(N, K, scales="bfloat16"):
    w_NK = torch.randn(N, K, generator=torch.Generator().manual_seed(N))
    return FP8(scales=scales).quantize(w_NK, None, "x")


@pytest.mark.parametrize("acts", [None, Fp8ActQuant()])
@pytest.mark.parametrize("scales", ["bfloat16", "float32"])
def test_a_weight_comes_back(scales, acts):
    weight = weight_of(256, 384, scales)
    assert same(there_and_back(FORMAT, weight, acts), weight)
    found = FORMAT.tensors(weight, acts, torch.bfloat16)
    assert {k: (t.dtype, tuple(t.shape)) for k, t in found.items()} == {
        "weight": (torch.float8_e4m3fn, (256, 384)),
        "weight_scale_inv": (getattr(torch, scales), (2, 3)),
    }


@pytest.mark.parametrize("scales", ["bfloat16", "float32"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_transformers_computes_the_measured_logits(tmp_path, ids, scales, dtype):
    ckpt = Checkpoint("nano-m", nano="nano-m", dtype=dtype).open()
    ours = written(FORMAT, ckpt, FP8(scales=scales), tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert theirs.dtype == ours.dtype
    with torch.no_grad():
        assert torch.equal(theirs(ids[:2]).logits, ours(ids[:2]).logits)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"] == {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    stored = load_file(tmp_path / "out" / "model.safetensors")
    of_linears = [t.nbytes for name, t in stored.items() if name.split(".weight")[0] in ckpt.linears]
    assert sum(of_linears) == sum(FP8(scales=scales).stored_bytes(*shape) for shape in ckpt.linears.values())


def test_what_does_not_fit_is_refused():
    for N, K in ((64, 128), (128, 192)):
        with pytest.raises(ValueError, match=rf"cannot hold a: its readers need whole blocks .* not \[{N}, {K}\]"):
            FORMAT.check({"a": weight_of(N, K).outline()}, None)
    with pytest.raises(ValueError, match="its activations are e4m3 too, not ActQuant"):
        FORMAT.check({"a": weight_of(128, 128)}, ActQuant(8))
    for name in ("gptq", "awq", "compressed-tensors"):
        with pytest.raises(ValueError, match="not a Fp8Weight; use format=fp8"):
            format_of(name)().check({"a": weight_of(128, 128)}, Fp8ActQuant())


@pytest.mark.parametrize(
    ("config", "dtype", "says"),
    [
        ({"weight_block_size": [64, 64]}, torch.float32, r"blocks of \[64, 64\]"),
        ({}, torch.uint8, "scales of torch.uint8"),
    ],
)
def test_other_files_are_not_read(config, dtype, says):
    told = {"quantization_config": {"weight_block_size": [128, 128]} | config}
    tensors = FORMAT.tensors(weight_of(128, 128), None, torch.bfloat16)
    with pytest.raises(ValueError, match=says):
        FORMAT.read("a", tensors | {"weight_scale_inv": tensors["weight_scale_inv"].to(dtype)}, told)


@pytest.mark.parametrize("acts", [None, Fp8ActQuant()])
def test_the_card_says_where_the_numbers_hold(acts):
    (note,) = [n for n in FORMAT.notes({"a": weight_of(128, 128)}, acts) if "measured numbers" in n]
    assert ("do not hold" in note) == (acts is not None)
