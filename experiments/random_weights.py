"""Configurations of the dense Qwen3 models, and checkpoints of these shapes with random weights.

A random model answers nothing, but it streams, quantizes, evaluates and costs what the real one does, so it tests the
whole pipeline without a download. The shapes are those of the models' config.json files on the Hub.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3Config

from qbench.shape import QWEN3


def config(name: str, layers: int | None = None) -> Qwen3Config:
    """The configuration of ``qwen3-<size>`` or ``qwen3-<size>-base``, with ``layers`` decoder layers if given.

    Raises: ValueError for a name that is not a dense Qwen3.
    """
    size = name.lower().removeprefix("qwen3-").removesuffix("-base")
    if size not in QWEN3:
        raise ValueError(f"no dense Qwen3 is called {name!r}; known: {', '.join(f'qwen3-{s}' for s in QWEN3)}")
    shape = QWEN3[size]
    return Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=layers or shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position_embeddings=40960,
        max_window_layers=layers or shape.layers,
        dtype="bfloat16",
    )


def write_random(folder: Path, name: str, layers: int | None = None, dtype=torch.bfloat16, seed: int = 0) -> Path:
    """Writes a sharded checkpoint of the shape ``name`` to ``folder``, one file per block, with one block in memory.

    Weights are normal with standard deviation 1 / sqrt(fan-in); norm gains spread from about 0.4 to 2.5, so that
    channels differ as in trained models. The same seed gives the same bits. No tokenizer is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cfg = config(name, layers)
    cfg.save_pretrained(folder)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(cfg, dtype=dtype)
    draw = torch.Generator().manual_seed(seed)
    shards: dict[str, dict[str, torch.Size]] = {}
    for key, p in skeleton.named_parameters():
        part = key.split(".")[2] if key.startswith("model.layers.") else key.split(".")[-2]
        shards.setdefault(part, {})[key] = p.shape
    where = {}
    for i, (_, shapes) in enumerate(shards.items(), 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file({key: _random(shape, dtype, draw) for key, shape in shapes.items()}, folder / file)
        where |= dict.fromkeys(shapes, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def _random(shape: torch.Size, dtype: torch.dtype, draw: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return (0.3 * torch.randn(shape, generator=draw)).exp().to(dtype)
    return torch.empty(shape).normal_(0, shape[-1] ** -0.5, generator=draw).to(dtype)
