"""A lean Qwen3 decoder for measuring speed, with weights of any kind behind each product.

Query, key and value are one product, gate and up another, so a layer of a decoding step is nine launches: four
products, four kernels of ``qbench.kernels.fused`` and one of ``qbench.kernels.attention``. No part of a step depends on
the host: token, position and cache are on the device, so one CUDA graph holds the step. The decoder computes what
transformers' Qwen3 computes and rounds where that code rounds. The output head is never quantized.

Dimension key: B sequences, S tokens of a prompt, T places of the cache, D hidden width, V vocabulary, H query heads, J
key-value heads, d their width, N output and K input channels of a product.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qbench.decoder.layer import GAINS, PRODUCTS, Layer, dense
from qbench.kernels.attention import MAX_SPLITS, decode_attention
from qbench.kernels.fused import add_rms_norm, rope_cache
from qbench.kernels.packed import fuse
from qbench.linear import QuantLinear
from qbench.shape import Shape


class Decoder(nn.Module):
    """Layers between an embedding and a head. ``allot`` makes the cache, ``prefill`` fills it, ``step`` goes on."""

    def __init__(self, shape: Shape, layers: list[Layer], embed_VD, head_VD, gain_D, rope_theta=1e6, eps=1e-6):
        super().__init__()
        self.shape, self.rope_theta, self.eps = shape, rope_theta, eps
        self.layers = nn.ModuleList(layers)
        self.register_buffer("embed_VD", embed_VD)
        self.register_buffer("head_VD", head_VD)
        self.register_buffer("gain_D", gain_D)

    @classmethod
    def random(
        cls, shape: Shape, linear: Callable[[int, int], nn.Module],
        batch: int, context: int, dtype: torch.dtype, device: str, seed: int = 0,
    ) -> "Decoder":  # fmt: skip
        """Random weights of a real shape, made on the device. ``linear(N, K)`` gives a product with a random weight.

        All layers hold the same numbers, each in memory of its own, so a step reads as many bytes as a trained model's.

        Raises: ValueError for a shape with biases or without norms on queries and keys.
        """
        _refuse(bool(shape.biases), f"biases in {', '.join(shape.biases)}", "the shape of a dense Qwen3")
        _refuse(not shape.qk_norms, "layers without norms on queries and keys", "the shape of a dense Qwen3")
        draw = torch.Generator(device).manual_seed(seed)

        def normal(*size, scale):
            return torch.empty(size, dtype=dtype, device=device).normal_(0, scale, generator=draw)

        sizes = dict(zip(GAINS, (shape.hidden, shape.hidden, shape.head_dim, shape.head_dim)))
        gains = {name: 1 + normal(size, scale=0.1) for name, size in sizes.items()}
        first = Layer({name: linear(N, K) for name, (N, K) in shape.fused.items()}, gains)
        layers = [first] + [copy.deepcopy(first) for _ in range(shape.layers - 1)]
        embed, gain = normal(shape.vocab, shape.hidden, scale=1), 1 + normal(shape.hidden, scale=0.1)
        head = embed if shape.tied else normal(shape.vocab, shape.hidden, scale=shape.hidden**-0.5)
        return cls(shape, layers, embed, head, gain).allot(batch, context)

    @classmethod
    def of(cls, model: nn.Module, batch: int, context: int, linear: Callable[[Tensor], nn.Module] = dense) -> "Decoder":
        """A transformers ``Qwen3ForCausalLM``, in its dtype and on its device; ``linear(w_NK)`` makes each product.

        Packed linears (``QuantLinear``) stay packed; those that read the same tensor become one product.

        Raises: ValueError for what ``check_model`` refuses, and for linears of other classes.
        """
        config = model.config
        check_model(config)
        rope = config.rope_parameters

        def product(*linears):
            if all(isinstance(x, QuantLinear) and x.packed is not None for x in linears):
                return fuse([x.packed for x in linears])
            others = {type(x).__name__ for x in linears if type(x) is not nn.Linear}
            wanted = "the plain model, quantized by `linear`, or a packed one"
            _refuse(bool(others), f"{', '.join(others)} as a linear", wanted)
            return linear(torch.cat([x.weight.data for x in linears]))

        layers = []
        for layer in model.model.layers:
            attn, mlp = layer.self_attn, layer.mlp
            inputs = ((attn.q_proj, attn.k_proj, attn.v_proj), (attn.o_proj,), (mlp.gate_proj, mlp.up_proj))
            products = [product(*linears) for linears in (*inputs, (mlp.down_proj,))]
            norms = (layer.input_layernorm, layer.post_attention_layernorm, attn.q_norm, attn.k_norm)
            gains = dict(zip(GAINS, (norm.weight.data for norm in norms)))
            layers.append(Layer(dict(zip(PRODUCTS, products)), gains))
        ends = (model.model.embed_tokens.weight.data, model.lm_head.weight.data, model.model.norm.weight.data)
        decoder = cls(Shape.of(config), layers, *ends, rope_theta=rope["rope_theta"], eps=config.rms_norm_eps)
        return decoder.allot(batch, context)

    def allot(self, batch: int, context: int) -> "Decoder":
        """Replaces the cache by an empty one of ``context`` places for each of ``batch`` sequences."""
        shape, like = self.shape, self.embed_VD
        self.k_cache_LBTJd = self.v_cache_LBTJd = None  # frees the old cache first
        cache = (shape.layers, batch, context, shape.kv_heads, shape.head_dim)
        self.k_cache_LBTJd = torch.zeros(cache, dtype=like.dtype, device=like.device)
        self.v_cache_LBTJd = torch.zeros_like(self.k_cache_LBTJd)
        self.token_B = torch.zeros(batch, dtype=torch.int64, device=like.device)
        self.position_B = torch.zeros(batch, dtype=torch.int32, device=like.device)
        self.done_BJ = torch.zeros(batch, shape.kv_heads, dtype=torch.int32, device=like.device)
        self.splits = attention_splits(batch * shape.kv_heads, like.device)
        inverse = 1.0 / self.rope_theta ** (torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
        angle = torch.arange(context, dtype=torch.float32)[:, None] * inverse
        self.cos_Th, self.sin_Th = (x.to(like.device, like.dtype) for x in (angle.cos(), angle.sin()))
        return self

    @torch.no_grad()
    def prefill(self, ids_BS: Tensor) -> Tensor:
        """Reads prompts into the cache from its first place on; returns logits [B, V] after the last token of each.

        Sets ``token_B`` to the most likely next tokens. A CUDA graph can hold it. ValueError for what does not fit.
        """
        B, S = ids_BS.shape
        batch, context = self.k_cache_LBTJd.shape[1:3]
        if batch != B or context < S:
            fits = f"the cache takes {batch} prompts of up to {context} tokens"
            raise ValueError(f"{fits}, got {B} of {S}; call allot for others")
        self.position_B.zero_()
        x = self._layers(ids_BS, self._over_prompt)
        self.position_B.fill_(S)
        return self._choose(x[:, -1])

    @torch.no_grad()
    def step(self, advance: int = 1) -> Tensor:
        """Appends ``token_B``, replaces it by the most likely next tokens and returns the logits [B, V].

        Positions move on by ``advance``. A CUDA graph can hold a step. Whether a place is left is not checked.
        """
        logits = self._choose(self._layers(self.token_B[:, None], self._over_cache)[:, -1])
        self.position_B.add_(advance)
        return logits

    def _layers(self, ids_BS, attend):
        x, delta = F.embedding(ids_BS, self.embed_VD), None
        for layer, k_BTJd, v_BTJd in zip(self.layers, self.k_cache_LBTJd, self.v_cache_LBTJd):
            x, delta = layer(x, delta, partial(self._attend, attend, k_BTJd, v_BTJd), self.eps)
        return add_rms_norm(x, delta, self.gain_D, self.eps)[1]

    def _attend(self, attend, k_BTJd, v_BTJd, qkv, q_gain_d, k_gain_d):
        angles = (self.cos_Th, self.sin_Th)
        q_BSHd = rope_cache(qkv, q_gain_d, k_gain_d, *angles, self.position_B, k_BTJd, v_BTJd, self.eps)
        return attend(q_BSHd, k_BTJd, v_BTJd)

    def _over_cache(self, q_BSHd, k_BTJd, v_BTJd):
        y_BHd = decode_attention(q_BSHd[:, 0], k_BTJd, v_BTJd, self.position_B, self.done_BJ, self.splits)
        return y_BHd.flatten(1)[:, None]

    def _over_prompt(self, q_BSHd, k_BTJd, v_BTJd):
        q, k, v = (x[:, : q_BSHd.shape[1]].transpose(1, 2) for x in (q_BSHd, k_BTJd, v_BTJd))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)

    def _choose(self, x_BD):
        logits_BV = F.linear(x_BD, self.head_VD)
        torch.argmax(logits_BV, -1, out=self.token_B)
        return logits_BV

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step reads: layers, last norm, head, and one row of the embedding per sequence."""
        layers = sum(layer.weight_bytes for layer in self.layers)
        return layers + self.gain_D.nbytes + self.head_VD.nbytes + len(self.token_B) * self.embed_VD[0].nbytes


def attention_splits(programs: int, device: torch.device) -> int:
    """How many programs share the places of a sequence, so that all programs together fill the device once."""
    if device.type != "cuda":
        return 3  # the interpreter runs one after the other
    return max(1, min(MAX_SPLITS, torch.cuda.get_device_properties(device).multi_processor_count // programs))


def check_model(config) -> None:
    """ValueError for the transformers configuration of anything but a dense Qwen3 with full attention, the default
    rotary positions, no biases, and heads that the kernels can take."""
    rope = config.rope_parameters["rope_type"]
    _refuse(config.model_type != "qwen3", f"decoder layers of {config.model_type}", "a dense Qwen3")
    _refuse(config.attention_bias, "biases in attention", "a model without")
    _refuse(rope != "default", f"rope_type {rope}", "the default one")
    _refuse(set(config.layer_types) != {"full_attention"}, "sliding windows", "full attention")
    _refuse(config.hidden_act != "silu", f"hidden_act {config.hidden_act}", "silu")
    d, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    _refuse(d & (d - 1) > 0 or d < 16, f"head width {d}", "a power of two from 16")
    _refuse(group > 16, f"{group} query heads per key-value head", "at most 16")


def _refuse(wrong: bool, got: str, wanted: str) -> None:
    if wrong:
        raise ValueError(f"the lean decoder has no {got}; give it {wanted}")
