"""Shared fixtures: small random checkpoints in several files, tokenizers, and where real data may lie."""

import gc
import os
import tarfile
from pathlib import Path

gc.disable()  # while the tests and what they need are imported, which leaves no garbage
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    from fakes.interpreter import patch_once_per_launch

    patch_once_per_launch()

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from qbench.measure.base import Context
from qbench.models.anatomies import ANATOMIES
from qbench.models.checkpoint import NANO

DATA = Path(os.environ.get("QBENCH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


FAMILIES = {
    **{family: dict(family=family) for family in ANATOMIES},
    "llama-biases": dict(family="llama", attention_bias=True, mlp_bias=True),
}
BIASED = [name for name in FAMILIES if name in ("qwen2", "llama-biases")]


def tiny_config(family: str = "qwen3", **changes) -> PretrainedConfig:
    shape = dict(hidden_size=128, num_attention_heads=4, num_key_value_heads=2, intermediate_size=256)
    shape |= {} if family == "qwen2" else dict(head_dim=64)
    shape |= dict(num_hidden_layers=3, vocab_size=1024, tie_word_embeddings=True, max_position_embeddings=512)
    return AutoConfig.for_model(family, **shape | changes)


def save_tiny(folder: Path, seed: int = 0, dtype=torch.bfloat16, **changes) -> Path:
    """A random model with a spread of channel sizes and with biases unlike zero, in shards of 200 kB."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(**changes)).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.mul_(torch.rand_like(norm.weight).mul(3).exp())
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_()
    model.to(dtype).save_pretrained(folder, max_shard_size="200KB")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session", params=FAMILIES)
def every_family(request, tmp_path_factory) -> Path:
    """A small model of each supported family in turn."""
    return save_tiny(tmp_path_factory.mktemp(request.param), **FAMILIES[request.param])


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """16 sequences of 64 random tokens."""
    return torch.randint(0, 1024, (16, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def nano_tokenizer():
    return AutoTokenizer.from_pretrained(NANO / "nano-s")


@pytest.fixture(scope="session")
def qwen3_tokenizer(tmp_path_factory):
    if not (archive := DATA / "qwen3_tokenizer.tar.gz").is_file():
        pytest.skip(f"no real data: {archive.name} is not in QBENCH_TEST_DATA or ../shared/data")
    folder = tmp_path_factory.mktemp("tokenizer")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return AutoTokenizer.from_pretrained(folder / "qwen3_tokenizer")


@pytest.fixture(scope="session")
def nano_context(nano_tokenizer, tmp_path_factory) -> Context:
    """What a measurement gets besides the model; it loads no unquantized model."""
    return Context(nano_tokenizer, "cpu", None, tmp_path_factory.mktemp("cache"), "tiny", lambda: None)
