"""Outlier channels for small models: a rescale that keeps the function and makes it hard to quantize.

In large language models the scales of the channels spread widely: a few channels have activations tens of
times larger than the rest, and the weights that read them are small. Small models trained for minutes have
none of that. SmoothQuant and AWQ exist because of these channels (arXiv 2211.10438, section 3; 2306.00978,
section 3.1), and without them low bits hurt a small model far less than a real one. This puts them in after
training, in the way in which SmoothQuant takes them out. With a factor f for channel j,

    norm gain_j * f,      columns j of q, k, v (first norm) or gate, up (second) / f
    row j of up_proj * f, column j of down_proj / f       (down reads silu(gate) * up)

Of every 128 channels, drawn from a seed, `SPECTRUM` gives 4 the factor 32 and 20 the factor 8. The first give
8-bit activations their trouble; a column that is 8 or 32 times smaller than its group is lost to
round-to-nearest at 3 or 4 bits, which is what a scale or an error-compensating search can win back. Factors
are powers of two, so every product is exact in bf16 and the model computes what it did before.

Dimension key: K channels of a linear's input, J outliers among them.
"""

import torch
from torch import Tensor, nn

from qbench.nano.facts import Draw

SPAN = 128
SPECTRUM = ((32.0, 4), (8.0, 20))  # (factor, channels of every SPAN)


def channels(K: int, draw: Draw, spectrum=SPECTRUM) -> tuple[Tensor, Tensor]:
    """Indices and factors (j_J, f_J) of the outliers among K channels; ValueError unless 128 divides K."""
    if K % SPAN:
        raise ValueError(f"{K} channels do not divide into spans of {SPAN}; outliers need a multiple of it")
    factors = [factor for factor, count in spectrum for _ in range(count)]
    indices = [start + j for start in range(0, K, SPAN) for j in draw.sample(range(SPAN), len(factors))]
    return torch.tensor(indices), torch.tensor(factors * (K // SPAN))


@torch.no_grad()
def add_outliers(model: nn.Module, seed: int, spectrum=SPECTRUM, inverse: bool = False) -> None:
    """Rescale a Qwen3 in place, or undo that (`inverse`); its function stays as it was."""
    draw = Draw(7_000_000 + seed)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            j_J, f_J = _drawn(norm.weight, draw, spectrum, inverse)
            norm.weight[j_J] *= f_J
            for reader in readers:
                reader.weight[:, j_J] /= f_J
        j_J, f_J = _drawn(mlp.up_proj.weight[:, 0], draw, spectrum, inverse)
        mlp.up_proj.weight[j_J] *= f_J[:, None]
        mlp.down_proj.weight[:, j_J] /= f_J


def _drawn(like_K: Tensor, draw: Draw, spectrum, inverse: bool) -> tuple[Tensor, Tensor]:
    j_J, f_J = channels(len(like_K), draw, spectrum)
    f_J = f_J.to(like_K)
    return j_J.to(like_K.device), 1 / f_J if inverse else f_J
