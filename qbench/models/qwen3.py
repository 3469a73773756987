"""Where quantization happens in a Qwen3 decoder layer (dense models)."""

from transformers import Qwen3Config

from qbench.models.block import Stage


def stages(config: Qwen3Config) -> tuple[Stage, ...]:
    """The four stages, in the order of the forward pass.

    What o_proj reads are the value heads. Under grouped-query attention several query heads share one of
    them, so v_proj has fewer rows than o_proj has columns and no scale of a single column can fold into it.
    """
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    shared = f"v_proj to o_proj not scaled: grouped-query attention, {heads} query heads on {kv} value heads"
    return (
        Stage(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
        Stage(("self_attn.o_proj",), None, shared) if kv < heads else Stage(("self_attn.o_proj",), "self_attn.v_proj"),
        Stage(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
        Stage(("mlp.down_proj",), "mlp.up_proj"),
    )
