"""One layer of the lean decoder: four products of any kind, with one launch between two of them.

Where a product takes 8-bit activations that come from a norm or from the MLP's activation, the launch that computes
them also quantizes them; the numbers are the same as when they are quantized afterwards.

Dimension key: B sequences, S tokens of each, D hidden width, d head width, N output and K input channels of a product.
"""

from collections.abc import Callable

from torch import Tensor, nn

from qbench.kernels.fused import add_rms_norm, silu_mul
from qbench.kernels.packed import PackedInteger
from qbench.kernels.quantize import add_rms_norm_quantize, silu_mul_quantize

PRODUCTS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
GAINS = ("input_gain_D", "post_gain_D", "q_gain_d", "k_gain_d")


def dense(w_NK: Tensor) -> nn.Linear:
    """A plain linear with this weight, not copied."""
    N, K = w_NK.shape
    linear = nn.Linear(K, N, bias=False, device="meta")
    linear.weight = nn.Parameter(w_NK, requires_grad=False)
    return linear


class Layer(nn.Module):
    """``products``: modules with ``forward(x [..., K]) -> [..., N]`` by the names of ``PRODUCTS``, with queries, keys
    and values in one of them, and gate and up in another. ``gains``: of the norms, by the names of ``GAINS``."""

    def __init__(self, products: dict[str, nn.Module], gains: dict[str, Tensor]):
        super().__init__()
        for name in PRODUCTS:
            setattr(self, name, products[name])
        for name in GAINS:
            self.register_buffer(name, gains[name])

    def forward(self, x: Tensor, delta: Tensor | None, attend: Callable, eps: float) -> tuple[Tensor, Tensor]:
        """(residual stream before the MLP, what the MLP adds to it), each [B, S, D].

        The input is x + delta, or x where delta is None. ``attend(qkv, q_gain, k_gain)`` is attention, [B, S, H d].
        """
        x, qkv = normed_product(x, delta, self.input_gain_D, eps, self.qkv_proj)
        attended = attend(qkv, self.q_gain_d, self.k_gain_d)
        x, gate_up = normed_product(x, self.o_proj(attended), self.post_gain_D, eps, self.gate_up_proj)
        return x, activated_product(gate_up, self.down_proj)

    @property
    def weight_bytes(self) -> int:
        products = (getattr(self, name) for name in PRODUCTS)
        read = (p.weight.nbytes if isinstance(p, nn.Linear) else p.weight_bytes for p in products)
        return sum(read) + sum(getattr(self, name).nbytes for name in GAINS)


def normed_product(
    x: Tensor, delta: Tensor | None, gain: Tensor, eps: float, product: nn.Module
) -> tuple[Tensor, Tensor]:
    """(r, product(norm(r))) with r = x + delta."""
    if isinstance(product, PackedInteger):
        r, codes, scale = add_rms_norm_quantize(x, delta, gain, eps, product.acts_bits)
        return r, product.multiply_codes(codes, scale, x.dtype).view(*x.shape[:-1], product.N)
    r, normed = add_rms_norm(x, delta, gain, eps)
    return r, product(normed)


def activated_product(gate_up: Tensor, product: nn.Module) -> Tensor:
    """product(silu(gate) * up)."""
    if isinstance(product, PackedInteger):
        codes, scale = silu_mul_quantize(gate_up, product.acts_bits)
        return product.multiply_codes(codes, scale, gate_up.dtype).view(*gate_up.shape[:-1], product.N)
    return product(silu_mul(gate_up))
