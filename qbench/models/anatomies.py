"""The stages and steps of the decoder layers of each model type: where quantization happens in them."""

import contextlib

from torch import nn
from transformers import PretrainedConfig

from qbench.models.block import Anatomy, Stage, State


def gated_decoder(config: PretrainedConfig) -> Anatomy:
    """The four stages of a layer with attention, a gated MLP and a norm before each, and the five steps around them,
    in the order of the forward pass.

    o_proj reads the value heads. Under grouped-query attention several query heads share one value head, so v_proj has
    fewer rows than o_proj has columns, and the scale of a single column cannot be folded into it.

    Raises: ValueError for attention that does not reach all earlier tokens, as scoring with shared prefixes assumes.
    """
    window, positions = getattr(config, "sliding_window", None), config.max_position_embeddings
    slides = set(getattr(config, "layer_types", None) or ["sliding_attention"]) != {"full_attention"}
    if slides and window is not None and window < positions:
        raise ValueError(
            f"layers that attend to the last {window} tokens alone (sliding_window) are not supported; for texts that "
            f"are not longer, set max_position_embeddings in the model's config.json from {positions} to {window}"
        )
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    shared = f"v_proj to o_proj not scaled: grouped-query attention, {heads} query heads on {kv} value heads"
    stages = (
        Stage(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
        Stage(("self_attn.o_proj",), None, shared) if kv < heads else Stage(("self_attn.o_proj",), "self_attn.v_proj"),
        Stage(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
        Stage(("mlp.down_proj",), "mlp.up_proj"),
    )
    return Anatomy(stages, (_attention_input, _attention_output, _mlp_input, _mlp_hidden, _output))


def _attention_input(layer: nn.Module, state: State, kwargs: dict) -> State:
    (x,) = state
    return layer.input_layernorm(x), x


def _attention_output(layer: nn.Module, state: State, kwargs: dict) -> State:
    h, x = state
    with _without(layer.self_attn, "o_proj"):
        return layer.self_attn(hidden_states=h, **kwargs)[0], x


def _mlp_input(layer: nn.Module, state: State, kwargs: dict) -> State:
    heads, x = state
    x = x + layer.self_attn.o_proj(heads)
    return layer.post_attention_layernorm(x), x


def _mlp_hidden(layer: nn.Module, state: State, kwargs: dict) -> State:
    h, x = state
    with _without(layer.mlp, "down_proj"):
        return layer.mlp(h), x


def _output(layer: nn.Module, state: State, kwargs: dict) -> State:
    h, x = state
    return (x + layer.mlp.down_proj(h),)


@contextlib.contextmanager
def _without(module: nn.Module, name: str):
    """While entered, the submodule ``name`` returns its input, so ``module`` returns what ``name`` reads."""
    kept = getattr(module, name)
    setattr(module, name, nn.Identity())
    try:
        yield
    finally:
        setattr(module, name, kept)


ANATOMIES = dict.fromkeys(("qwen3", "qwen2", "llama", "mistral"), gated_decoder)  # by config.json's model_type
