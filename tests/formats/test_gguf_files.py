"""GGUF files: every block dequantized by the package gguf, whole files loaded by transformers."""

import copy

import gguf
import pytest
import torch
from conftest import save_tiny
from fakes.quantized import there_and_back, weight_of, written
from tokenizers import Regex, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from qbench.formats import format_of
from qbench.formats.gguf import describe
from qbench.grid import ActQuant, Grid
from qbench.methods.rtn import RTN
from qbench.models.checkpoint import Checkpoint
from qbench.weights import FloatWeight, UniformWeight

FORMAT = format_of("gguf")()
ASYMMETRIC = {1: "Q4_0", 2: "Q4_0", 3: "Q4_0", 4: "Q5_0", 5: "Q8_0", 6: "Q8_0", 7: "Q8_0"}
SYMMETRIC = {1: "Q4_0", 2: "Q4_0", 3: "Q4_0", 4: "Q4_0", 5: "Q5_0", 6: "Q8_0", 7: "Q8_0", 8: "Q8_0"}
LONG = {  # groups of 256 and multiples
    False: ASYMMETRIC | {1: "Q2_K", 2: "Q2_K", 4: "Q4_K", 5: "Q5_K"},
    True: SYMMETRIC | {3: "Q3_K", 6: "Q6_K"},
}
BYTES = {"Q4_0": 18 / 32, "Q5_0": 22 / 32, "Q8_0": 34 / 32, "Q2_K": 84 / 256, "Q3_K": 110 / 256}
BYTES |= {"Q4_K": 144 / 256, "Q5_K": 176 / 256, "Q6_K": 210 / 256}


@pytest.mark.parametrize(("K", "group_size"), [(320, 32), (256, 128), (96, -1), (512, 256), (768, -1)])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_gguf_dequantizes_the_same_numbers(bits, symmetric, K, group_size):
    weight = weight_of(bits, symmetric, group_size, 5, K, zero_free=False)
    is_long = (K if group_size == -1 else group_size) % 256 == 0
    expected = (LONG[symmetric] if is_long else SYMMETRIC if symmetric else ASYMMETRIC).get(bits)
    if expected is None:
        with pytest.raises(ValueError, match=r"format=gguf cannot hold a: .* asymmetric bits reach 255; use format=hf"):
            FORMAT.check({"a": weight.outline()}, None)
        return
    assert FORMAT.config({"a": weight.outline()}, None) == {"types": {"a": expected}}
    stored = FORMAT.tensors(weight, None, torch.bfloat16)["weight"]
    assert stored.shape == (5, K * BYTES[expected])
    found = gguf.quants.dequantize(stored.numpy(), gguf.GGMLQuantizationType[expected])
    assert torch.equal(torch.from_numpy(found), weight.dequantize())
    assert torch.equal(there_and_back(FORMAT, weight).dequantize(), weight.dequantize())


@pytest.mark.parametrize("bits", [2, 4, 5])
def test_every_code_and_zero_fits_into_a_block(bits):
    """All zeros of the grid, each with all codes."""
    codes_NK = torch.arange(256).remainder(2**bits).byte().repeat(2**bits, 1)
    zero_NG = torch.arange(2**bits).byte()[:, None]
    weight = UniformWeight(codes_NK, torch.rand(2**bits, 1).half(), bits, zero_NG)
    assert torch.equal(there_and_back(FORMAT, weight).dequantize(), weight.dequantize())


@pytest.mark.parametrize(
    ("grid", "dtype", "types"),
    [
        (Grid(4, 128), "float32", {"Q5_0"}),
        (Grid(3, 64), "bfloat16", {"Q4_0"}),
        (Grid(2, -1), "float32", {"Q2_K"}),
        (Grid(6, -1, True), "bfloat16", {"Q6_K"}),
    ],
    ids=str,
)
def test_transformers_computes_the_measured_logits(tmp_path, ids, grid, dtype, types):
    ckpt = Checkpoint("nano-m", nano="nano-m", dtype=dtype).open()
    ours, path = written(FORMAT, ckpt, RTN(grid), tmp_path / "out"), tmp_path / "out" / "model.gguf"
    assert [p.name for p in path.parent.iterdir()] == ["model.gguf"]
    config = AutoConfig.from_pretrained(ckpt.folder)  # transformers reads no head_dim from the file
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, config=config, dtype=ours.dtype)
    with torch.no_grad():
        assert torch.equal(theirs(ids[:2]).logits, ours(ids[:2]).logits)
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert len(stored) == len(dict(ours.named_parameters()))
    assert {t.tensor_type.name for name, t in stored.items() if "attn_q.weight" in name} == types
    assert stored["output_norm.weight"].tensor_type.name == "F32"
    sizes = {name: stored[name].n_bytes for name in ("blk.0.ffn_up.weight", "blk.1.attn_k.weight")}
    outline = RTN(grid).outline
    assert sizes["blk.0.ffn_up.weight"] == FORMAT.size(outline(512, 256), None, ours.dtype)
    assert sizes["blk.1.attn_k.weight"] == FORMAT.size(outline(128, 256), None, ours.dtype)


def fields_of(folder, path):
    """What ``describe`` tells of the checkpoint in ``folder``, written to a file and read again."""
    writer = gguf.GGUFWriter(path, "qwen3")
    describe(writer, folder)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_the_file_describes_the_model_and_its_tokenizer(tmp_path):
    ckpt = Checkpoint("nano-s", nano="nano-s").open()
    told = fields_of(ckpt.folder, tmp_path / "x.gguf")
    shape = {"embedding_length": 128, "feed_forward_length": 256, "block_count": 2, "context_length": 1024}
    shape |= {"attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 64}
    assert {name: told[f"qwen3.{name}"] for name in shape} == shape
    vocabulary = ckpt.tokenizer.get_vocab()
    assert told["tokenizer.ggml.tokens"] == sorted(vocabulary, key=vocabulary.get)
    assert told["tokenizer.ggml.pre"] == "default"
    assert told["tokenizer.ggml.eos_token_id"] == ckpt.tokenizer.eos_token_id
    assert "tokenizer.ggml.bos_token_id" not in told


def test_qwens_tokenizer_is_the_same_out_of_the_file(tmp_path, nano_tokenizer):
    """A small vocabulary cut as Qwen's; ids without a token, up to the embedding's rows, have a name."""
    folder, tokenizer = save_tiny(tmp_path / "model", vocab_size=1100), copy.deepcopy(nano_tokenizer)
    cut = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, spell])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(folder)
    told = fields_of(folder, tmp_path / "x.gguf")
    assert told["tokenizer.ggml.pre"] == "qwen2"
    tokens, types = told["tokenizer.ggml.tokens"], told["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 1100
    assert [tokens[i] for i in (0, 1024, 1099)] == ["<|endoftext|>", "<|im_start|>", "[PAD1099]"]
    assert [types[i] for i in (0, 1, 1024, 1099)] == [
        gguf.TokenType[t] for t in ("CONTROL", "NORMAL", "CONTROL", "UNUSED")
    ]
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    for text in ("The town of 1234 traders is, as they'll say, far away.", "ab<|im_start|>user\n  x = 1\n\n"):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_other_models_are_refused(tmp_path, family):
    with pytest.raises(ValueError, match=f"writes Qwen3 models with default positions, not {family} with default"):
        FORMAT.check_model(save_tiny(tmp_path / family, family=family))


def test_what_no_block_holds_is_refused():
    moved = UniformWeight(**weight_of(4, False, 64, 8, 128).state(), bits=4, group_K=torch.zeros(128).short())
    tiny = UniformWeight(torch.zeros(4, 64).byte(), torch.full((4, 1), 2.0**-24).half(), 1)
    cases = [
        (weight_of(4, False, 16, 8, 128), None, "blocks are 32 columns of one group, not 16; use a group_size that"),
        (weight_of(8, True, -1, 8, 128), ActQuant(8), "does not say how activations are quantized"),
        (FloatWeight(torch.zeros(8, 128)), None, "not a FloatWeight; use format=hf"),
        (moved, None, "groups are neighbouring columns"),
        (tiny, None, "too small to be halved"),
    ]
    for weight, acts, says in cases:
        with pytest.raises(ValueError, match=says):
            FORMAT.check({"a": weight}, acts)
