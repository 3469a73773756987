"""Our own kernels as contenders, on random packed words; nothing is quantized for them.

The expected weight is unpacked with plain torch, from the packed format and not by the kernels.

Dimension key: M tokens, N output channels, K input channels.
"""

from functools import partial

from qbench.kernels import configs, wna8
from qbench.kernels.pack import unpack
from qbench.kernels.packed import PackedBinary, PackedInteger, PackedUniform
from qbench.latency.products import Contender, Product
from qbench.latency.record import Kernel
from qbench.weights import BinaryWeight, UniformWeight

GROUP = 128
BITS = (4, 3, 2, 1, 8, 5, 6, 7)


class Own(Product):
    """A packed weight. ``config`` None: the launch parameters that ``qbench.kernels.configs`` chooses."""

    def __init__(self, N, K, device, seed, make, config=None):
        super().__init__(N, K, device)
        self.packed, self.config = make(N, K, device=device, seed=seed), config
        self.weight_bytes = self.packed.weight_bytes

    def multiply(self, x_MK):
        return self.packed(x_MK) if self.config is None else self.packed.multiply(x_MK, self.config)

    def dequantized(self):
        return unpacked(self.packed).dequantize()

    def seen(self, x_MK):
        if not isinstance(self.packed, PackedInteger):
            return x_MK
        scale = (x_MK.float().abs().amax(1, keepdim=True) / 127).clamp(min=1e-8)
        return (x_MK.float() / scale).round().double() * scale


def unpacked(p: PackedUniform | PackedInteger | PackedBinary) -> UniformWeight | BinaryWeight:
    """The weight that was packed; float32 holds its numbers."""
    if isinstance(p, PackedInteger):
        return UniformWeight(wna8.unpack_codes(p.words, p.K), p.scale_GN.T, p.bits)
    if isinstance(p, PackedUniform):
        return UniformWeight(unpack(p.words, p.K), p.scale_GN.T, p.bits, p.zero_GN.T)
    first, second = (unpack(p.words[:, i : i + 1], p.K).bool() for i in (0, 1))
    levels_NC42 = p.levels_C8N.unflatten(1, (4, 2)).permute(3, 0, 1, 2)
    return BinaryWeight(first, second, p.salient_K.bool(), second, levels_NC42, p.block)


def contenders() -> list[Contender]:
    """All our kernels; 5, 6 and 7 bits last."""

    def own(kernel, make):
        return Contender(kernel, partial(Own, make=make), config=partial(configs.choose, kernel.name, kernel.bits))

    note = "each product dequantizes the weight to bfloat16, then calls cuBLAS"
    dense = partial(Own, make=partial(PackedUniform.random, bits=4), config=configs.DEQUANTIZE)
    return [
        *(own(Kernel("wna16", bits, GROUP), partial(PackedUniform.random, bits=bits)) for bits in BITS),
        *(own(Kernel("wna8", bits, -1), partial(PackedInteger.random, bits=bits)) for bits in (8, 4)),
        own(Kernel("binary", 1, GROUP), PackedBinary.random),
        Contender(Kernel("dequantize_cublas", 4, GROUP), dense, note, least_tokens=16),
    ]
