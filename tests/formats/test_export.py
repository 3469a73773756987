"""qbench export: whole folders, refusals before work, a kill, memory, and plain transformers as the judge."""

import json
import multiprocessing
import os
import re
import signal
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from conftest import save_tiny
from fakes import forked
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from qbench import export, signals
from qbench.formats import base, format_of
from qbench.models.checkpoint import NANO, Checkpoint
from qbench.models.quantized import QuantizedFolder
from qbench.plan import footprint
from qbench.plan.sweep import configs

SMALL = ["calib.n=8", "machine.device=cpu", "machine.threads=1"]
IDS = torch.randint(0, 1024, (2, 64), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run("method=rtn", ..., "format=hf") -> (exit code, what it printed), written to ``tmp_path / "out"``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("QBENCH_RESULTS", str(tmp_path / "results"))

    def call(*words, out="out"):
        code = export.main([*SMALL, *words, f"out={out}"])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {key: t for path in sorted(folder.glob("*.safetensors")) for key, t in load_file(path).items()}


def measured_model(tmp_path, words):
    """The model that `qbench run` evaluates, from the weights in the cache."""
    (config,), _ = configs([*SMALL, *words])
    (path,) = (tmp_path / "cache" / "quantized").iterdir()
    return QuantizedFolder(path).load(config.model.open(), config.method.acts, "cpu")


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "billm"])
def test_transformers_computes_the_measured_logits(run, tmp_path, method):
    words = [f"method={method}", "grid.bits=3", "machine.keep_weights=true"]
    code, said = run(*words, "format=hf")
    assert (code, said.splitlines()[-1][:7]) == (0, "nano-s "), said
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    with torch.no_grad():
        assert torch.equal(theirs(IDS).logits, measured_model(tmp_path, words)(IDS).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a")["input_ids"]
    assert not {".out.partial", "hf"} & {path.name for path in tmp_path.iterdir()}


def test_a_symmetric_file_is_read_by_transformers(run, tmp_path):
    words = ["grid.bits=4", "grid.symmetric=true", "machine.keep_weights=true"]
    assert run(*words, "format=compressed-tensors")[0] == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        ours, theirs = measured_model(tmp_path, words)(IDS).logits, theirs(IDS).logits
    assert (ours - theirs).abs().max() < 0.02 * ours.std()  # its weights are rounded to float16, the type of the scale


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["format=gptq", "method=gptq", "format.version=2"], {"qweight", "qzeros", "scales", "g_idx"}),
        (["format=awq", "method=awq"], {"qweight", "qzeros", "scales"}),
        (["format=compressed-tensors", "method=smoothquant", "grid.bits=8"], {"weight", "weight_scale"}),
    ],
    ids=["gptq", "awq", "smoothquant"],
)
def test_a_folder_is_whole(run, tmp_path, words, keys):
    folder = save_tiny(tmp_path / "model", family="qwen2")  # its q, k and v have biases, its head is tied
    AutoTokenizer.from_pretrained(NANO / "nano-s").save_pretrained(folder)
    model = ["model=local", f"model.path={folder}", "calib=nano", "calib.length=64"]
    code, said = run(*model, *words, "machine.keep_weights=true")
    assert code == 0, said
    found = stored(tmp_path / "out")
    assert "lm_head.weight" not in found
    assert {key.rpartition(".")[2] for key in found if "up_proj" in key} == keys
    (quantized,) = (tmp_path / "cache" / "quantized").iterdir()
    block, weights = QuantizedFolder(quantized).read(Checkpoint("local", path=str(folder)).open(), 1, "cpu")
    for name, p in block.module.named_parameters():
        if not p.is_meta:  # norms, into which AWQ and SmoothQuant folded their scales, and biases
            assert torch.equal(found[f"model.layers.1.{name}"], p)
    options = {"version": 2} if "format.version=2" in words else {}
    format = format_of(words[0].removeprefix("format="))(**options)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    for name, weight in weights.items():
        at = f"model.layers.1.{name}"
        tensors = {key.removeprefix(f"{at}."): t for key, t in found.items() if key.startswith(f"{at}.")}
        back = format.read(at, tensors, told)
        assert torch.equal(back.codes_NK, weight.codes_NK)
        assert torch.equal(back.scale_NG, weight.scale_NG)
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(text in card for text in ("| grid.bits |", "with scales and zeros", "Nothing was recorded"))


def test_the_card_has_the_measured_numbers(run, tmp_path):
    words = ["method=rtn", *SMALL, "eval.window=128", "eval.limit=4"]
    done = forked.qbench("run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    id = next((tmp_path / "results" / "measurements").glob("*.json")).stem
    assert run("method=rtn", "format=awq")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Record {id}:" in card
    assert "|ppl   |" in card
    assert not list((tmp_path / "cache" / "quantized").iterdir())  # weights that only the export needed are deleted


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ["format=awq", "grid.bits=5"],
            r"hold model.layers.0.self_attn.q_proj: it has 4 bits .*not Grid\(bits=5",
        ),
        (["format=gptq", "method=billm"], "not a BinaryWeight; use format=hf"),
        (["format=compressed-tensors", "method=gptq", "method.act_order=true"], "method.static_groups=true"),
        (["format=gptq", "format.version=3"], "format.version must be 1 or 2, got 3"),
        (["format=gptq", "format.bits=3"], "format.bits is unknown"),
        (["format=exl3"], "format=exl3 is unknown"),
        (["format=hf", "method=none"], "method=none leaves the model as it is"),
        (["format=hf", "grid.bits=3,4"], "these arguments name 2"),
        (["format=hf", "grid.bits=9"], "grid.bits must be a whole number from 1 to 8"),
    ],
    ids=lambda x: x if isinstance(x, str) else " ".join(x),
)
def test_what_cannot_be_written_is_refused_before_work(run, tmp_path, words, why):
    code, said = run(*words)
    assert code == 1
    assert len(said.splitlines()) == 1
    assert re.search(why, said), said
    assert not (tmp_path / "cache" / "quantized").exists()
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_and_a_small_disk_are_refused(run, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    assert "out=out exists; delete it" in run("format=hf")[1]
    monkeypatch.setattr(footprint, "free", lambda folder: 10**5)
    assert "but the disk has 100,000" in run("format=hf", out="other")[1]
    with pytest.raises(SystemExit, match="2"):
        export.main(["format=hf"])


def test_zeros_that_only_the_weights_tell_leave_nothing(run, tmp_path):
    small = ["method=rtn", "grid.bits=2", "grid.group_size=8"]  # some of these groups have no negative weight
    code, said = run(*small, "format=gptq")
    assert code == 1
    assert "groups have z = 0; use format.version=2" in said
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "results"}
    assert run(*small, "format=gptq", "format.version=2")[0] == 0


def slowly(words):
    """Exports with one tensor per file and a third of a second between two of them."""
    signals.end_by_exception()
    save, base.SHARD = base.save_tensors, 1
    base.save_tensors = lambda *args: (save(*args), time.sleep(0.3))
    sys.exit(export.main(words))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_export_leaves_no_folder_and_starts_again(run, tmp_path, number):
    process = multiprocessing.get_context("fork").Process(
        target=slowly, args=([*SMALL, "method=rtn", "format=hf", "out=out"],)
    )
    process.start()
    while process.is_alive() and not list(tmp_path.glob(".out.partial/*/1.safetensors")):
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == (-9 if number == signal.SIGKILL else 143)
    assert not (tmp_path / "out").exists()
    assert bool(list(tmp_path.glob(".out.partial/*/1.safetensors"))) == (number == signal.SIGKILL)
    code, said = run("method=rtn", "format=hf")
    assert code == 0, said
    assert not (tmp_path / ".out.partial").exists()
    assert stored(tmp_path / "out").keys() == Checkpoint("s", nano="nano-s").open().files.keys()


def test_shards_and_their_index(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "SHARD", 400)
    tensors = {f"t{i}": torch.full((60,), float(i)) for i in range(5)}
    base.save_shards(iter(tensors.items()), tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 240
    assert sorted({*index["weight_map"].values()}) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for key, file in index["weight_map"].items():
        with safe_open(tmp_path / file, framework="pt") as f:
            assert torch.equal(f.get_tensor(key), tensors[key])
            assert f.metadata() == {"format": "pt"}


def test_one_block_is_in_memory_at_a_time(run, tmp_path, monkeypatch):
    """When a block is read, of those before it at most the last is still there."""
    alive, counts, read = weakref.WeakSet(), [], QuantizedFolder.read

    def watched(self, *args):
        counts.append(len(alive))
        block, weights = read(self, *args)
        alive.add(block)
        return block, weights

    monkeypatch.setattr(base, "SHARD", 1)
    monkeypatch.setattr(QuantizedFolder, "read", watched)
    folder = save_tiny(tmp_path / "model", num_hidden_layers=8, tie_word_embeddings=False)
    AutoTokenizer.from_pretrained(NANO / "nano-s").save_pretrained(folder)
    model = ["model=local", f"model.path={folder}", "calib=nano", "calib.length=64"]
    assert run(*model, "method=rtn", "format=hf")[0] == 0
    assert len(counts) >= 8
    assert max(counts) <= 1
    head = stored(folder)["lm_head.weight"]
    assert torch.equal(stored(tmp_path / "out")["lm_head.weight"], head)


def test_a_gguf_file_is_whole(run, tmp_path):
    words = ["method=gptq", "grid.bits=3", "grid.group_size=64", "model.dtype=float32", "machine.keep_weights=true"]
    code, said = run(*words, "format=gguf")
    assert code == 0, said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.gguf", "README.md"}
    ours, config = measured_model(tmp_path, words), AutoConfig.from_pretrained(NANO / "nano-s")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="model.gguf", config=config, dtype=torch.float32
    )
    with torch.no_grad():
        assert torch.equal(theirs(IDS).logits, ours(IDS).logits)


def test_a_model_without_a_place_in_the_format_is_refused(run, tmp_path):
    folder = save_tiny(tmp_path / "model", family="llama")
    AutoTokenizer.from_pretrained(NANO / "nano-s").save_pretrained(folder)
    code, said = run("model=local", f"model.path={folder}", "calib=nano", "eval.source=nano", "format=gguf")
    assert code == 1
    assert "format=gguf writes Qwen3 models with default positions, not llama" in said
    code, said = run("method=fp8", "format=fp8")
    assert code == 1
    assert "format=fp8 cannot hold model.layers.0.self_attn.k_proj: its readers need whole blocks" in said
    assert not (tmp_path / "cache" / "quantized").exists()
