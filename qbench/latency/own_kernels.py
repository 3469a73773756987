"""Our own kernels as contenders, on random packed words; nothing is quantized for them.

The expected weight is unpacked in float64 with plain torch, from the packed format and not by the kernels.

Dimension key: M tokens, N output channels, K input channels.
"""

from collections.abc import Callable
from functools import partial

import torch

from qbench.kernels import configs, pack, wna8
from qbench.kernels.base import Packed
from qbench.kernels.packed import PackedBinary, PackedInteger, PackedUniform
from qbench.latency.products import Contender, Product
from qbench.latency.record import Kernel

GROUP = 128
BITS = (4, 3, 2, 1, 8, 5, 6, 7)


class OwnKernel(Product):
    """A packed weight. ``config`` None: the launch parameters that ``qbench.kernels.configs`` chooses."""

    make: Callable[..., Packed]

    def __init__(self, N, K, device, seed, config=None, **options):
        super().__init__(N, K, device)
        self.packed, self.config = self.make(N, K, device=device, seed=seed, **options), config
        self.weight_bytes = self.packed.weight_bytes

    def multiply(self, x_MK):
        return self.packed(x_MK) if self.config is None else self.packed.multiply(x_MK, self.config)


class Uniform(OwnKernel):
    """w = s (q - z)."""

    make = PackedUniform.random

    def dequantized(self):
        p = self.packed
        columns = p.K if p.group == -1 else p.group
        scale, zero = (t.double().T.repeat_interleave(columns, 1)[:, : p.K] for t in (p.scale_GN, p.zero_GN))
        return scale * (pack.unpack(p.words, p.K).double() - zero)


class Integer(OwnKernel):
    """w = s (q - z) with symmetric codes and one scale per row; the same call quantizes activations to 8 bits."""

    make = PackedInteger.random

    def dequantized(self):
        p = self.packed
        return p.scale_GN.double().T * (wna8.unpack_codes(p.words, p.K).double() - 2 ** (p.bits - 1))

    def seen(self, x_MK):
        scale = (x_MK.float().abs().amax(1, keepdim=True) / 127).clamp(min=1e-8)
        return (x_MK.float() / scale).round().double() * scale


class Binary(OwnKernel):
    """BiLLM: the level of a weight depends on its sign, its part, and whether its column is salient."""

    make = PackedBinary.random

    def dequantized(self):
        p = self.packed
        first, second = (2 * pack.unpack(p.words[:, i : i + 1], p.K).double() - 1 for i in (0, 1))

        def value(part, sign):
            mean, scale = (p.levels_C8N[:, 2 * part + i].T.repeat_interleave(p.block, 1)[:, : p.K] for i in (0, 1))
            return mean + scale * sign

        rest = torch.where(second > 0, value(3, first), value(2, first))
        return torch.where(p.salient_K != 0, value(0, first) + value(1, second), rest)


def contenders() -> list[Contender]:
    """All our kernels; 5, 6 and 7 bits last."""

    def own(kernel, load):
        return Contender(kernel, load, config=partial(_config, kernel.name, kernel.bits))

    return [
        *(own(Kernel("wna16", bits, GROUP), partial(Uniform, bits=bits)) for bits in BITS),
        *(own(Kernel("wna8", bits, -1), partial(Integer, bits=bits)) for bits in (8, 4)),
        own(Kernel("binary", 1, GROUP), Binary),
        Contender(
            Kernel("dequantize_cublas", 4, GROUP),
            partial(Uniform, bits=4, config=configs.DEQUANTIZE),
            note="each product dequantizes the weight to bfloat16, then calls cuBLAS",
            least_tokens=16,
        ),
    ]


def _config(kernel, bits, N, K, M, device):
    return configs.choose(kernel, bits, N, K, M, torch.device(device))
