"""Packed weights as layers: what is stored is what the kernels read.

A ``Packed`` is made from a quantized weight, or from random codes of a shape where only speed is asked for. Its buffers
are its state, so it is saved, loaded and moved as any module; ``.to(dtype)`` leaves them as they are, since scales are
float16 whatever the activations are.

Dimension key: M tokens, N output channels, K input channels, G groups of K, C blocks of columns.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.grid import ActQuant
from qbench.kernels import binary, configs, dequantize, launch, pack, wna8, wna16
from qbench.weights import QuantWeight, UniformWeight


class Packed(nn.Module):
    """y = x W^T with a packed weight; x [..., K] float16 or bfloat16, y [..., N] of the same dtype."""

    kernel: ClassVar[str]
    rows: ClassVar[dict[str, int]]  # the dimension of a buffer that counts output channels; others have none

    def __init__(self, N: int, K: int, bits: int):
        super().__init__()
        self.N, self.K, self.bits = N, K, bits

    @classmethod
    def restore(cls, *state, **settings) -> "Packed":
        """A layer from the buffers and ``settings`` of another, in the order in which its class names them."""
        self = cls.__new__(cls)
        self._build(*state, **settings)
        return self

    @property
    def settings(self) -> dict:
        """What ``restore`` needs beside the buffers."""
        raise NotImplementedError

    def _keep(self, **tensors: Tensor | None) -> None:
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        device = tensors["words"].device
        self.register_buffer("counters", torch.zeros(-(-self.N // 64), dtype=torch.int32, device=device), False)

    def forward(self, x: Tensor) -> Tensor:
        """ValueError for a dtype, device or width that the kernels cannot take."""
        x_MK = launch.check(x, self.K, self.words)
        config = configs.choose(self.kernel, self.bits, self.N, self.K, len(x_MK), x.device)
        return self.multiply(x_MK, config).view(*x.shape[:-1], self.N)

    def multiply(self, x_MK: Tensor, config: dict) -> Tensor:
        """y [M, N] with a configuration of ``configs``."""
        if config["path"] == "dequantize":
            return F.linear(x_MK, self.dequantize(x_MK.dtype))
        return self._fused(x_MK, config)

    def _fused(self, x_MK: Tensor, config: dict) -> Tensor:
        raise NotImplementedError

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, K], computed in float32 and rounded to ``dtype``."""
        raise NotImplementedError

    def stored(self) -> dict[str, Tensor | None]:
        """The buffers in the order of ``restore``."""
        return {name: buffer for name, buffer in self._buffers.items() if name != "counters"}

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight that one pass reads."""
        return sum(b.numel() * b.element_size() for b in self.stored().values() if b is not None)

    def extra_repr(self) -> str:
        return f"{self.K}, {self.N}, bits={self.bits}, bytes={self.weight_bytes}"

    def _apply(self, fn, recurse=True):
        def as_stored(tensor: Tensor) -> Tensor:
            return fn(tensor.view(torch.int16)).view(torch.float16) if tensor.dtype == torch.float16 else fn(tensor)

        return super()._apply(as_stored, recurse)


class PackedUniform(Packed):
    """b-bit codes with a scale and perhaps a zero a group; activations as they come ("wNa16")."""

    kernel = "wna16"
    rows: ClassVar = {"words": 2, "scale_GN": 1, "zero_GN": 1}

    def __init__(self, weight: UniformWeight):
        K = weight.codes_NK.shape[1]
        codes, order = weight.codes_NK, None
        G = weight.scale_NG.shape[1]
        if weight.group_K is not None:  # columns sorted by group; activations follow at run time
            order = weight.group_K.long().argsort(stable=True)
            if not torch.equal(weight.group_K.long()[order], torch.arange(K, device=order.device) // (K // G)):
                raise ValueError(f"groups that move must be equally large to be packed, these {G} of K={K} are not")
            codes = codes[:, order]
        zero = None if weight.zero_NG is None else weight.zero_NG.T
        self._build(pack.pack(codes, weight.bits), weight.scale_NG.T, zero, order, K, -1 if G == 1 else K // G)

    @classmethod
    def random(cls, N, K, bits, group_size=128, symmetric=False, device="cuda", seed=0) -> "PackedUniform":
        """Random codes, scales of about K^-1/2 over the range of codes."""
        G = 1 if group_size == -1 else K // group_size
        words, draw = _random_words(N, K, bits, device, seed)
        scale = (torch.rand(G, N, device=device, generator=draw) + 0.5) * K**-0.5 / 2 ** (bits - 1)
        zero = torch.randint(0, 2**bits, (G, N), dtype=torch.uint8, device=device, generator=draw)
        return cls.restore(words, scale.half(), None if symmetric else zero, None, K, -1 if G == 1 else group_size)

    def _build(self, words, scale_GN, zero_GN, order_K, K, group):
        super().__init__(words.shape[2], K, words.shape[1])
        self.group = group
        if group != -1:  # kernels read whole chunks, so the groups of the last chunk are all there
            pad = (0, 0, 0, -(-pack.chunks(K) * pack.CHUNK // group) - len(scale_GN))
            scale_GN, zero_GN = (t if t is None else F.pad(t, pad) for t in (scale_GN, zero_GN))
        zero_GN = None if zero_GN is None else zero_GN.contiguous()
        order_K = None if order_K is None else order_K.int()
        self._keep(words=words, scale_GN=scale_GN.contiguous(), zero_GN=zero_GN, order_K=order_K)

    @property
    def settings(self):
        return {"K": self.K, "group": self.group}

    def _fused(self, x_MK, config):
        x_MK = x_MK if self.order_K is None else x_MK.index_select(1, self.order_K)
        return wna16.linear(x_MK, self.words, self.scale_GN, self.zero_GN, self.group, self.counters, config)

    def dequantize(self, dtype):
        w_NK = dequantize.dequantize(self.words, self.scale_GN, self.zero_GN, self.group, self.K, dtype)
        return w_NK if self.order_K is None else torch.empty_like(w_NK).index_copy_(1, self.order_K.long(), w_NK)


class PackedInteger(Packed):
    """b-bit codes of a symmetric grid; activations rounded to 8 bits or less, a scale a token ("wNa8")."""

    kernel = "wna8"
    rows: ClassVar = {"words": 2, "scale_GN": 1}

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
        """Random codes, scales of about K^-1/2 over the range of codes."""
        G = 1 if group_size == -1 else K // group_size
        words, draw = _random_words(N, K, bits, device, seed)
        scale = (torch.rand(G, N, device=device, generator=draw) + 0.5) * K**-0.5 / 2 ** (bits - 1)
        return cls.restore(words, scale.half(), K, -1 if G == 1 else group_size, acts_bits)

    def _build(self, words, scale_GN, K, group, acts_bits):
        wna8.check(K, group)
        super().__init__(words.shape[2], K, words.shape[1])
        self.group, self.acts_bits = group, acts_bits
        self._keep(words=words, scale_GN=scale_GN.contiguous())

    @property
    def settings(self):
        return {"K": self.K, "group": self.group, "acts_bits": self.acts_bits}

    def _fused(self, x_MK, config):
        return wna8.linear(x_MK, self.words, self.scale_GN, self.group, self.acts_bits, self.counters, config)

    def dequantize(self, dtype):
        codes_NK = wna8.unpack_codes(self.words, self.K)
        return UniformWeight(codes_NK, self.scale_GN.T.contiguous(), self.bits).dequantize().to(dtype)


class PackedBinary(Packed):
    """BiLLM's ``BinaryWeight``: two planes of bits, salient columns, eight levels a row and block."""

    kernel = "binary"
    rows: ClassVar = {"words": 2, "levels_C8N": 2}

    def __init__(self, weight: QuantWeight):
        K = weight.sign_NK.shape[1]
        check_block(weight.block_size)
        second = torch.where(weight.salient_K, weight.residual_NK, weight.sparse_NK)
        words = torch.cat([pack.pack(plane, 1) for plane in (weight.sign_NK, second)], 1)
        levels = weight.levels_NC42.permute(1, 2, 3, 0).flatten(1, 2)  # C, 8, N
        self._build(words, weight.salient_K, levels, K, weight.block_size)

    @classmethod
    def random(cls, N, K, salient=0.06, device="cuda", seed=0) -> "PackedBinary":
        """Random signs and parts, a share of salient columns, levels of about K^-1/2."""
        words, draw = _random_words(N, K, 2, device, seed)
        mask = torch.rand(K, device=device, generator=draw) < salient
        levels = torch.rand(pack.chunks(K), 8, N, device=device, generator=draw) * K**-0.5
        return cls.restore(words, mask, levels.half(), K, pack.CHUNK)

    def _build(self, words, salient_K, levels_C8N, K, block):
        super().__init__(words.shape[2], K, 1)
        self.block = block
        self._keep(words=words, salient_K=salient_K.to(torch.uint8), levels_C8N=levels_C8N.contiguous())

    @property
    def settings(self):
        return {"K": self.K, "block": self.block}

    def _fused(self, x_MK, config):
        return binary.linear(x_MK, self.words, self.salient_K, self.levels_C8N, self.block, self.counters, config)

    def dequantize(self, dtype):
        return binary.dequantize(self.words, self.salient_K, self.levels_C8N, self.block, self.K, dtype)


def check_block(block_size: int) -> None:
    """ValueError where the kernel cannot take BiLLM's blocks of so many columns."""
    if block_size % pack.CHUNK:
        raise ValueError(
            f"the kernel takes BiLLM's blocks in multiples of {pack.CHUNK} columns, got block_size={block_size}; "
            f"quantize with method.block_size={pack.CHUNK}"
        )


def _random_words(N, K, bits, device, seed):
    draw = torch.Generator(device).manual_seed(seed)
    shape = (pack.chunks(K), bits, N, 4)
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device=device, generator=draw), draw


def pack_weight(weight: QuantWeight, acts: ActQuant | None) -> Packed:
    """The layer that multiplies with ``weight`` and quantizes activations as ``acts`` says.

    Raises: ValueError for what no kernel takes, with what it would take.
    """
    if weight.kernel == "binary" and acts is None:
        return PackedBinary(weight)
    if weight.kernel == "uniform":
        return PackedUniform(weight) if acts is None else PackedInteger(weight, acts)
    what = type(weight).__name__ + ("" if acts is None else f" with {acts.bits}-bit activations")
    raise ValueError(f"no kernel multiplies a packed {what}; there are kernels for UniformWeight and BinaryWeight")
