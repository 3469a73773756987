"""The packed layers of each kernel, made from a quantized weight, or from random codes where only speed matters.

Dimension key: M tokens, N output channels, K input channels, G groups of K, C blocks of columns.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F

from qbench.grid import ActQuant
from qbench.kernels import binary, dequantize, pack, wna8, wna16
from qbench.kernels.base import Packed
from qbench.weights import QuantWeight, UniformWeight


class PackedUniform(Packed):
    """b-bit codes with one scale and, unless symmetric, one zero per group; 16-bit activations ("wNa16")."""

    kernel = "wna16"
    rows: ClassVar = {"words": 2, "scale_GN": 1, "zero_GN": 1}
    about = ("K", "group")

    def __init__(self, weight: UniformWeight):
        K, G = weight.codes_NK.shape[1], weight.scale_NG.shape[1]
        codes, order = weight.codes_NK, None
        if weight.group_K is not None:  # columns are sorted by group, and so are activations at run time
            order = weight.group_K.long().argsort(stable=True)
            if not torch.equal(weight.group_K.long()[order], torch.arange(K, device=order.device) // (K // G)):
                raise ValueError(f"packing sorts groups of equal size, and these {G} groups of K={K} are not")
            codes = codes[:, order]
        zero = None if weight.zero_NG is None else weight.zero_NG.T
        self._build(pack.pack(codes, weight.bits), weight.scale_NG.T, zero, order, K, -1 if G == 1 else K // G)

    @classmethod
    def random(cls, N, K, bits, group_size=128, symmetric=False, device="cuda", seed=0) -> "PackedUniform":
        """Random codes and zeros; the weights are of about K^-1/2."""
        words, scale, draw = _random_codes(N, K, bits, group_size, device, seed)
        zero = torch.randint(0, 2**bits, scale.shape, dtype=torch.uint8, device=device, generator=draw)
        return cls.restore(words, scale, None if symmetric else zero, None, K, -1 if len(scale) == 1 else group_size)

    def _build(self, words, scale_GN, zero_GN, order_K, K, group):
        super().__init__(words.shape[2], K, words.shape[1])
        self.group = group
        if group != -1:  # kernels read whole chunks, so all groups of the last chunk need a scale
            pad = (0, 0, 0, -(-pack.chunks(K) * pack.CHUNK // group) - len(scale_GN))
            scale_GN, zero_GN = (t if t is None else F.pad(t, pad) for t in (scale_GN, zero_GN))
        zero_GN = None if zero_GN is None else zero_GN.contiguous()
        order_K = None if order_K is None else order_K.int()
        self._keep(words=words, scale_GN=scale_GN.contiguous(), zero_GN=zero_GN, order_K=order_K)

    def _fused(self, x_MK, config):
        x_MK = x_MK if self.order_K is None else x_MK.index_select(1, self.order_K)
        return wna16.linear(x_MK, self.words, self.scale_GN, self.zero_GN, self.group, self.counters, config)

    def dequantize(self, dtype):
        w_NK = dequantize.dequantize(self.words, self.scale_GN, self.zero_GN, self.group, self.K, dtype)
        return w_NK if self.order_K is None else torch.empty_like(w_NK).index_copy_(1, self.order_K.long(), w_NK)


class PackedInteger(Packed):
    """b-bit codes of a symmetric grid; activations rounded to 8 bits or less, one scale per token ("wNa8")."""

    kernel = "wna8"
    rows: ClassVar = {"words": 2, "scale_GN": 1}
    about = ("K", "group", "acts_bits")

    def __init__(self, weight: UniformWeight, acts: ActQuant):
        K, G = weight.codes_NK.shape[1], weight.scale_NG.shape[1]
        if weight.zero_NG is not None or weight.group_K is not None:
            raise ValueError(
                "integer products take symmetric weights in groups of consecutive columns; quantize with "
                "grid.symmetric=true and without moving groups, or leave activations at 16 bits"
            )
        words = wna8.pack_codes(weight.codes_NK, weight.bits)
        self._build(words, weight.scale_NG.T, K, -1 if G == 1 else K // G, acts.bits)

    @classmethod
    def random(cls, N, K, bits, group_size=-1, acts_bits=8, device="cuda", seed=0) -> "PackedInteger":
        """Random codes; the weights are of about K^-1/2."""
        words, scale, _ = _random_codes(N, K, bits, group_size, device, seed)
        return cls.restore(words, scale, K, -1 if len(scale) == 1 else group_size, acts_bits)

    def _build(self, words, scale_GN, K, group, acts_bits):
        wna8.check(K, group)
        super().__init__(words.shape[2], K, words.shape[1])
        self.group, self.acts_bits = group, acts_bits
        self._keep(words=words, scale_GN=scale_GN.contiguous())

    def _fused(self, x_MK, config):
        return wna8.linear(x_MK, self.words, self.scale_GN, self.group, self.acts_bits, self.counters, config)

    def dequantize(self, dtype):
        codes_NK = wna8.unpack_codes(self.words, self.K)
        return UniformWeight(codes_NK, self.scale_GN.T.contiguous(), self.bits).dequantize().to(dtype)


class PackedBinary(Packed):
    """BiLLM's ``BinaryWeight``: two planes of bits, salient columns, eight levels per row and block."""

    kernel = "binary"
    rows: ClassVar = {"words": 2, "levels_C8N": 2}
    about = ("K", "block")

    def __init__(self, weight: QuantWeight):
        K = weight.sign_NK.shape[1]
        check_block(weight.block_size)
        second = torch.where(weight.salient_K, weight.residual_NK, weight.sparse_NK)
        words = torch.cat([pack.pack(plane, 1) for plane in (weight.sign_NK, second)], 1)
        levels = weight.levels_NC42.permute(1, 2, 3, 0).flatten(1, 2)  # C, 8, N
        self._build(words, weight.salient_K, levels, K, weight.block_size)

    @classmethod
    def random(cls, N, K, salient=0.06, device="cuda", seed=0) -> "PackedBinary":
        """Random signs and parts, the share ``salient`` of salient columns, levels of about K^-1/2."""
        words, draw = _random_words(N, K, 2, device, seed)
        mask = torch.rand(K, device=device, generator=draw) < salient
        levels = torch.rand(pack.chunks(K), 8, N, device=device, generator=draw) * K**-0.5
        return cls.restore(words, mask, levels.half(), K, pack.CHUNK)

    def _build(self, words, salient_K, levels_C8N, K, block):
        super().__init__(words.shape[2], K, 1)
        self.block = block
        self._keep(words=words, salient_K=salient_K.to(torch.uint8), levels_C8N=levels_C8N.contiguous())

    def _fused(self, x_MK, config):
        return binary.linear(x_MK, self.words, self.salient_K, self.levels_C8N, self.block, self.counters, config)

    def dequantize(self, dtype):
        return binary.dequantize(self.words, self.salient_K, self.levels_C8N, self.block, self.K, dtype)


def check_block(block_size: int) -> None:
    """ValueError where the kernel cannot take BiLLM's blocks of ``block_size`` columns."""
    if block_size % pack.CHUNK:
        raise ValueError(
            f"the kernel takes BiLLM's blocks in multiples of {pack.CHUNK} columns, got block_size={block_size}; "
            f"quantize with method.block_size={pack.CHUNK}"
        )


def _random_words(N, K, bits, device, seed):
    draw = torch.Generator(device).manual_seed(seed)
    shape = (pack.chunks(K), bits, N, 4)
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device=device, generator=draw), draw


def _random_codes(N, K, bits, group_size, device, seed):
    words, draw = _random_words(N, K, bits, device, seed)
    G = 1 if group_size == -1 else K // group_size
    scale = (torch.rand(G, N, device=device, generator=draw) + 0.5) * K**-0.5 / 2 ** (bits - 1)
    return words, scale.half(), draw


def pack_weight(weight: QuantWeight, acts: ActQuant | None) -> Packed:
    """The layer that multiplies with ``weight`` and quantizes activations as ``acts`` says.

    Raises: ValueError for what no kernel takes.
    """
    if weight.kernel == "binary" and acts is None:
        return PackedBinary(weight)
    if weight.kernel == "uniform":
        return PackedUniform(weight) if acts is None else PackedInteger(weight, acts)
    what = type(weight).__name__ + ("" if acts is None else f" with {acts.bits}-bit activations")
    raise ValueError(f"no kernel multiplies a packed {what}; there are kernels for UniformWeight and BinaryWeight")
