"""Outlier channels for small models: a rescale that keeps the function and makes it hard to quantize.

Large language models grow a few channels whose activations are tens of times larger than the rest; small
models trained for minutes do not. SmoothQuant and AWQ exist because of these channels (arXiv 2211.10438,
section 3; 2306.00978, section 3.1), so without them a small study would show nothing of what they do. This
puts them in after training, in the same way in which SmoothQuant takes them out: with a factor f,

    norm gain_j * f,      columns j of q, k, v (first norm) or gate, up (second) / f
    row j of up_proj * f, column j of down_proj / f       (down reads silu(gate) * up)

for `COUNT` of every 128 channels j, drawn from a seed. f is a power of two, so every product is exact in
bf16 and the model computes what it did before.

Dimension key: K channels of a linear's input.
"""

import torch
from torch import Tensor, nn

from qbench.nano.facts import Draw

FACTOR = 32.0
COUNT = 4
SPAN = 128


def channels(K: int, draw: Draw, count: int = COUNT) -> Tensor:
    """`count` different channel indices of every 128, sorted."""
    if K % SPAN:
        raise ValueError(f"{K} channels do not divide into spans of {SPAN}; outliers need a multiple of it")
    return torch.tensor([start + j for start in range(0, K, SPAN) for j in sorted(draw.sample(range(SPAN), count))])


@torch.no_grad()
def add_outliers(model: nn.Module, seed: int, factor: float = FACTOR, count: int = COUNT) -> None:
    """Rescale a Qwen3 in place; its function stays as it was."""
    draw = Draw(7_000_000 + seed)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            j = channels(norm.weight.numel(), draw, count)
            norm.weight[j] *= factor
            for reader in readers:
                reader.weight[:, j] /= factor
        j = channels(mlp.down_proj.in_features, draw, count)
        mlp.up_proj.weight[j] *= factor
        mlp.down_proj.weight[:, j] /= factor
