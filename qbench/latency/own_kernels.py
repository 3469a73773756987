"""Our own kernels as contenders, on random packed words; nothing is quantized for them.

The expected weight is unpacked with plain torch, from the packed format and not by the kernels.

Dimension key: M tokens, N output channels, K input channels.
"""

from functools import partial

from qbench.grid import ActQuant
from qbench.kernels import configs, wna8
from qbench.kernels.pack import unpack
from qbench.kernels.packed import PackedBinary, PackedInteger, PackedUniform
from qbench.latency.products import Contender, Product
from qbench.latency.record import Kernel
from qbench.weights import BinaryWeight, UniformWeight

GROUP = 128
RANDOM = {  # ``make(N, K, device=..., seed=...)`` gives a layer of random words
    **{Kernel("wna16", b, GROUP): partial(PackedUniform.random, bits=b) for b in (4, 3, 2, 1, 8, 5, 6, 7)},
    **{Kernel("wna8", b, -1): partial(PackedInteger.random, bits=b) for b in (8, 4)},
    Kernel("binary", 1, GROUP): PackedBinary.random,
}


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
        return ActQuant(self.packed.acts_bits)(x_MK.float()) if isinstance(self.packed, PackedInteger) else x_MK


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
    """All our kernels."""
    note = "each product dequantizes the weight to bfloat16, then calls cuBLAS"
    dense = partial(Own, make=partial(PackedUniform.random, bits=4), config=configs.DEQUANTIZE)
    ours = [
        Contender(kernel, partial(Own, make=make), config=partial(configs.choose, kernel.name, kernel.bits))
        for kernel, make in RANDOM.items()
    ]
    return [*ours, Contender(Kernel("dequantize_cublas", 4, GROUP), dense, note, least_tokens=16)]
