import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import BIASED, FAMILIES, save_tiny, tiny_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from experiments import random_weights as shapes
from qbench.methods.rtn import RTN
from qbench.models.anatomies import gated_decoder
from qbench.models.checkpoint import NANO, Checkpoint
from qbench.models.placement import Placement
from qbench.models.quantized import QuantizedFolder
from qbench.stream import quantize


def opened(folder, dtype="float32", **fields):
    return Checkpoint("tiny", path=str(folder), dtype=dtype, **fields).open()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_loading_equals_transformers(tmp_path, ids, dtype, tied, family):
    folder = save_tiny(tmp_path, tie_word_embeddings=tied, **FAMILIES[family])
    ours = opened(folder, dtype).load("cpu")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        assert torch.equal(ours(ids[:2]).logits, theirs(ids[:2]).logits)


def test_a_tied_head_that_is_stored_too_is_no_problem(tmp_path, ids):
    folder = save_tiny(tmp_path / "a")
    model = AutoModelForCausalLM.from_pretrained(folder)
    state = model.state_dict() | {"lm_head.weight": model.lm_head.weight.clone()}
    shutil.rmtree(folder)
    model.config.save_pretrained(folder)
    save_file({k: v.contiguous().clone() for k, v in state.items()}, folder / "model.safetensors")
    ours = opened(folder).load("cpu")
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    rewrite(folder, "model.safetensors", {"lm_head.weight": state["lm_head.weight"] + 1})
    with pytest.raises(ValueError, match=r"ties lm_head.weight to .* both are stored and differ; set tie_word_"):
        opened(folder)


def rewrite(folder, name, tensors):
    """Stores ``tensors`` in the file ``name`` beside, or in place of, what it holds."""
    save_file(load_file(folder / name) | {k: v.clone() for k, v in tensors.items()}, folder / name)


def test_linears_are_all_seven_of_every_layer(tiny):
    linears = opened(tiny).linears
    assert len(linears) == 7 * 3
    assert linears["model.layers.2.self_attn.o_proj"] == (128, 256)
    assert linears["model.layers.0.mlp.down_proj"] == (128, 256)


def test_value_heads_fold_into_o_proj_only_without_grouped_queries():
    shared, own = (gated_decoder(tiny_config(num_key_value_heads=n)).stages for n in (2, 4))
    assert shared[1].fold is None
    assert "grouped-query attention, 4 query heads on 2 value heads" in shared[1].why_no_fold
    assert own[1].fold == "self_attn.v_proj"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("powers", [True, False])
def test_rescaling_keeps_the_function(tmp_path, ids, family, powers):
    """Every stage that folds, MHA so that o_proj is one of them: by powers of two to the bit, else up to rounding."""
    ckpt = opened(save_tiny(tmp_path, num_key_value_heads=4, **FAMILIES[family]))
    model = ckpt.load("cpu")
    with torch.no_grad():
        before, moved = model(ids).logits, 0
        for index in range(3):
            block = ckpt.block(index, "cpu")
            for stage in block.stages:
                w = block[stage.linears[0]].weight
                kept, s_K = w.clone(), torch.rand(w.shape[1]).mul(6).sub(3)
                block.rescale(stage, s_K.round().exp2() if powers else s_K.exp())
                moved += not torch.equal(w, kept)
            model.model.layers[index] = block.module
        after = model(ids).logits
    assert moved == 3 * 4
    assert torch.equal(after, before) == powers
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", BIASED)
def test_a_missing_bias_is_named(tmp_path, family):
    folder = save_tiny(tmp_path, **FAMILIES[family])
    for path in folder.glob("model-*.safetensors"):
        save_file({k: v for k, v in load_file(path).items() if k != "model.layers.1.self_attn.k_proj.bias"}, path)
    with pytest.raises(ValueError, match=r"model.layers.1.self_attn.k_proj.bias is in no file"):
        opened(folder)


def test_rescaling_in_bfloat16_leaves_no_wrong_gain(tmp_path):
    """The columns take what the rounded gain really lost, so gain x column differs by one rounding, not two."""
    block = opened(save_tiny(tmp_path), "bfloat16").block(0, "cpu")
    norm, q = block["input_layernorm"].weight, block["self_attn.q_proj"].weight
    before = norm.double() * q.double()
    block.rescale(block.stages[0], torch.rand(128) + 0.7)
    after = block["input_layernorm"].weight.double() * block["self_attn.q_proj"].weight.double()
    assert ((after - before).abs() <= 2**-8 * 1.001 * before.abs()).all()


def test_the_revision_is_the_content(tmp_path, tiny):
    a, b = save_tiny(tmp_path / "a", seed=1), save_tiny(tmp_path / "b", seed=1)
    assert opened(a).revision == opened(b).revision
    assert opened(a).revision != opened(tiny).revision
    assert "path" not in opened(a).science()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "merges.txt", "added_tokens.json"])
def test_the_revision_holds_the_tokenizer(tmp_path, name):
    folder = save_tiny(tmp_path)
    before = opened(folder).revision
    (folder / name).write_text("{}")
    with_it = opened(folder).revision
    (folder / name).write_text("{ }")
    assert len({before, with_it, opened(folder).revision}) == 3


def test_the_revision_holds_weights_in_a_subfolder(tmp_path):
    folder = in_a_subfolder(save_tiny(tmp_path, tie_word_embeddings=False))
    ckpt = opened(folder)
    victim = folder / "sh" / ckpt.files["lm_head.weight"].removeprefix("sh/")
    save_file({k: v + 1 for k, v in load_file(victim).items()}, victim)
    assert opened(folder).revision != ckpt.revision
    assert not torch.equal(opened(folder).load("cpu").lm_head.weight, ckpt.load("cpu").model.embed_tokens.weight)


def in_a_subfolder(folder):
    """The same checkpoint with its weights in sh/."""
    index = folder / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    (folder / "sh").mkdir()
    for name in set(where.values()):
        (folder / name).rename(folder / "sh" / name)
    index.write_text(json.dumps({"weight_map": {key: f"sh/{name}" for key, name in where.items()}}))
    return folder


# --- bad input ---


def test_a_broken_shard_is_named(tmp_path):
    folder = save_tiny(tmp_path)
    victim = sorted(folder.glob("model-*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{victim.name} is truncated or damaged"):
        opened(folder)
    victim.unlink()
    with pytest.raises(FileNotFoundError, match=f"{victim.name} is missing from"):
        opened(folder)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("mistral", dict(sliding_window=256)),
        ("qwen2", dict(use_sliding_window=True, sliding_window=256, max_window_layers=1)),
        ("qwen3", dict(use_sliding_window=True, sliding_window=256, max_window_layers=1)),
    ],
)
def test_windows_that_slide_are_refused(tmp_path, ids, family, fields):
    """Unless no text is longer than the window."""
    folder = save_tiny(tmp_path, family=family, **fields)
    with pytest.raises(ValueError, match=r"last 256 tokens alone .* max_position_embeddings .* from 512 to 256"):
        opened(folder)
    set_config(folder, max_position_embeddings=256)
    ours, theirs = opened(folder).load("cpu"), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(ours(ids.view(4, 256)).logits, theirs(ids.view(4, 256)).logits)


@pytest.fixture
def one_file(tmp_path):
    """A model of one file, with the tokenizer of a nano."""
    folder = save_tiny(tmp_path / "model")
    tensors = {k: v for p in folder.glob("model-*") for k, v in load_file(p).items()}
    for path in folder.glob("model*"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(NANO / "nano-s" / "tokenizer.json", folder)
    shutil.copy(NANO / "nano-s" / "tokenizer_config.json", folder)
    return folder


def set_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 4, "layer_types": None}, r"the tensor model.layers.3.* is in no file"),
        ({"intermediate_size": 512}, r"has shape \(.*\), config.json says"),
        ({"model_type": "gpt2"}, "is a gpt2; supported: qwen3, qwen2, llama, mistral"),
        ({"hidden_size": "wide"}, "config.json is not the configuration of a qwen3"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True}},
            "config.json in .* has a quantization_config, but no linear is quantized",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(one_file, fields, message):
    set_config(one_file, **fields)
    with pytest.raises(ValueError, match=message) as e:
        opened(one_file)
    assert "\n" not in str(e.value)


TYPES = {"F8_E4M3": torch.float8_e4m3fn, "F64": torch.float64, "I8": torch.int8, "BOOL": torch.bool}
STRAYS = ("self_attn.q_proj.bias", "self_attn.q_proj.weight_scale_inv", "mlp.up_proj.lora_A")


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [("norm.weight", dtype, f"is stored as {kind}, not as F32, F16, BF16") for kind, dtype in TYPES.items()]
    + [(f"layers.1.{name}", torch.float32, "which this model has no place for") for name in STRAYS],
)
def test_tensors_that_cannot_be_read_are_refused(one_file, name, dtype, message):
    rewrite(one_file, "model.safetensors", {f"model.{name}": torch.ones(128).to(dtype)})
    with pytest.raises(ValueError, match=f"model.{name},? {message}"):
        opened(one_file)


INDICES = {name: f"names {name}, which is outside its folder" for name in ("../x", "/x", "sh/../../x")}
NO_MAPS = ("{}", "[]", "{", '{"weight_map": {}}', '{"weight_map": {"model.norm.weight": 3}}')


@pytest.mark.parametrize(
    ("text", "message"),
    [(json.dumps({"weight_map": {"model.norm.weight": name}}), message) for name, message in INDICES.items()]
    + [(text, r"index.json (has no weight_map|is not a JSON object).*download it again") for text in NO_MAPS],
)
def test_a_damaged_index_is_named(tmp_path, text, message):
    folder = save_tiny(tmp_path)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        opened(folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_config_is_named(one_file, text):
    (one_file / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json is not a JSON object"):
        opened(one_file)


def test_no_code_of_a_checkpoint_runs(one_file, monkeypatch):
    """transformers asks on the terminal; the type is refused before it is asked."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    set_config(one_file, model_type="other", auto_map={"AutoConfig": "code.Config"})
    (one_file / "code.py").write_text("raise SystemExit")
    with pytest.raises(ValueError, match="is a other; supported: qwen3"):
        opened(one_file)


@pytest.mark.parametrize("gone", [["tokenizer.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_no_tokenizer_is_invented(one_file, gone):
    for name in gone:
        (one_file / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer in .*: it needs a tokenizer.json"):
        opened(one_file).tokenizer  # noqa: B018


def test_a_tokenizer_of_old_style_files_is_read(one_file):
    model = json.loads((one_file / "tokenizer.json").read_text())["model"]
    for path in one_file.glob("tokenizer*"):
        path.unlink()
    (one_file / "vocab.json").write_text(json.dumps(model["vocab"]))
    (one_file / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    assert len(opened(one_file).tokenizer("The cat sat on the mat").input_ids) > 3


def test_a_tokenizer_that_does_not_fit_is_named(one_file):
    (one_file / "tokenizer.json").write_text("{not json")
    with pytest.raises(ValueError, match=r"cannot read the tokenizer in .*download it again") as e:
        opened(one_file).tokenizer  # noqa: B018
    assert "\n" not in str(e.value)
    large = json.loads((NANO / "nano-s" / "tokenizer.json").read_text())
    large["added_tokens"].append(large["added_tokens"][0] | {"id": 1024, "content": "<|more|>"})
    (one_file / "tokenizer.json").write_text(json.dumps(large))
    with pytest.raises(ValueError, match=r"has 1025 tokens, the model embeddings for 1024"):
        opened(one_file).tokenizer  # noqa: B018


def test_no_folder_no_config_no_choice(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        opened(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no folder Qwen/Qwen3-0.6B; .* model.repo=Qwen/Qwen3-0.6B"):
        opened("Qwen/Qwen3-0.6B")
    with pytest.raises(FileNotFoundError, match=r"no config.json in"):
        opened(tmp_path)
    with pytest.raises(ValueError, match="set one of repo, path, nano and gguf"):
        Checkpoint("x")
    with pytest.raises(ValueError, match=r"model.dtype must be float32, bfloat16 or float16, got 'int8'"):
        Checkpoint("x", path="y", dtype="int8")


def test_the_hub_out_of_reach_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"model=local model.path=FOLDER, or try model=nano-s"):
        Checkpoint("x", repo="Qwen/Qwen3-0.6B").open()


# --- a model that does not fit one device ---


def test_layers_go_where_there_is_room():
    place = Placement("cuda", {"cuda:0": 10, "cuda:1": 4, "cpu": 3})
    gib = 2**30
    assert place.layers(2 * gib, 8, 3 * gib) == ["cuda:0"] * 3 + ["cuda:1"] * 2 + ["cpu"] + ["disk"] * 2
    assert Placement("cpu").layers(2 * gib, 3, gib) == ["cpu"] * 3
    assert Placement("cuda:1", {"cpu": 3}).layers(2 * gib, 3, gib) == ["cpu", "disk", "disk"]


@pytest.mark.parametrize("memory", [{"gpu": 3}, {"cpu": -1}, {"cpu": "much"}])
def test_a_placement_is_checked(memory):
    with pytest.raises(ValueError, match=r"machine.max_memory"):
        Placement("cpu", memory)


def test_a_model_larger_than_its_memory_gives_the_same_logits(tiny, ids, tmp_path):
    """One layer in memory, two on disk, unquantized and quantized."""
    ckpt = Checkpoint("tiny", path=str(tiny), dtype="float32").open()
    layer = sum(p.numel() for p in ckpt.skeleton.model.layers[0].parameters()) * 4
    rest = ckpt.parameters() * 4 - 3 * layer
    small = Placement("cpu", {"cpu": (rest + 1.5 * layer) / 2**30}, tmp_path / "offload")
    folder = QuantizedFolder(tmp_path / "quantized")
    quantize(ckpt, RTN(), ids, folder)
    pairs = [(ckpt.load("cpu"), ckpt.load("cpu", placement=small))]
    pairs += [(folder.load(ckpt, None, "cpu"), folder.load(ckpt, None, "cpu", small))]
    for whole, spread in pairs:
        assert [next(l.parameters()).is_meta for l in spread.model.layers] == [False, True, True]
        with torch.inference_mode():
            torch.testing.assert_close(whole(ids).logits, spread(ids).logits, rtol=1e-4, atol=1e-5)
            cached = [m(ids[:, :40], use_cache=True).past_key_values for m in (whole, spread)]
            a, b = (m(ids[:, 40:], past_key_values=c).logits for m, c in zip((whole, spread), cached))
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# --- the real shapes ---


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b-base", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b-base", 8_190_735_360),
        ("qwen3-14b", 14_768_307_200),
        ("qwen3-32b", 32_762_123_264),
    ],
)
def test_the_shapes_are_the_real_ones(name, parameters):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shapes.config(name))
    assert sum(p.numel() for p in model.parameters()) == parameters
    with pytest.raises(ValueError, match=r"no dense Qwen3 is called 'qwen3-7b'; known: qwen3-0.6b"):
        shapes.config("qwen3-7b")


def test_a_random_checkpoint_has_a_file_a_block_and_the_same_bits(tmp_path, monkeypatch):
    small = replace(shapes.QWEN3["0.6b"], hidden=128, intermediate=256, vocab=512)
    monkeypatch.setitem(shapes.QWEN3, "0.6b", small)
    a, b = (shapes.write_random(tmp_path / x, "qwen3-0.6b", layers=3) for x in "ab")
    assert len(list(a.glob("*.safetensors"))) == 5  # embedding, three blocks, the last norm
    assert all((a / p.name).read_bytes() == p.read_bytes() for p in b.glob("*.safetensors"))
    ckpt = Checkpoint("random", path=str(a)).open()
    assert ckpt.config.num_hidden_layers == 3
    assert torch.isfinite(ckpt.load("cpu")(torch.arange(20)[None]).logits).all()
