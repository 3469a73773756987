"""A packed weight as a layer, whose buffers are what its kernel reads.

The buffers are its state, so it is saved, loaded and moved like any module. ``.to(dtype)`` does not change them: scales
are float16 for any dtype of activations.

Dimension key: M tokens, N output channels, K input channels.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.kernels import configs, launch, pack


class Packed(nn.Module):
    """y = x W^T with a packed weight; x [..., K] float16 or bfloat16, y [..., N] of the same dtype."""

    kernel: ClassVar[str]
    rows: ClassVar[dict[str, int]]  # which dimension of a buffer counts output channels; other buffers have none
    about: ClassVar[tuple[str, ...]]  # names of ``settings``

    def __init__(self, K: int, bits: int, words: Tensor, **tensors: Tensor | None):
        super().__init__()
        self.N, self.K, self.bits = words.shape[2], K, bits
        for name, tensor in {"words": words, **tensors}.items():
            self.register_buffer(name, tensor)
        self.register_buffer("counters", torch.zeros(-(-self.N // 64), dtype=torch.int32, device=words.device), False)

    @property
    def settings(self) -> dict:
        """What a layer is made of besides its ``stored`` buffers, as its class takes them."""
        return {name: getattr(self, name) for name in self.about}

    def forward(self, x: Tensor) -> Tensor:
        """ValueError for a dtype, device or width that the kernels cannot take."""
        x_MK = launch.check(x, self.K, self.words)
        return self.multiply(x_MK, self.config(len(x_MK))).view(*x.shape[:-1], self.N)

    def config(self, M: int) -> dict:
        """The launch parameters for M tokens."""
        return configs.choose(self.kernel, self.bits, self.N, self.K, M, self.words.device)

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
        """The buffers in the order in which its class takes them."""
        return {name: buffer for name, buffer in self._buffers.items() if name != "counters"}

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight that one pass reads."""
        return sum(b.numel() * b.element_size() for b in self.stored().values() if b is not None)

    def _apply(self, fn, recurse=True):
        def as_stored(tensor: Tensor) -> Tensor:
            return fn(tensor.view(torch.int16)).view(torch.float16) if tensor.dtype == torch.float16 else fn(tensor)

        return super()._apply(as_stored, recurse)


def random_words(N: int, K: int, bits: int, device: str, seed: int) -> tuple[Tensor, torch.Generator]:
    """Words of random codes as ``pack`` makes them, and the generator that drew them."""
    draw = torch.Generator(device).manual_seed(seed)
    shape = (pack.chunks(K), bits, N, 4)
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device=device, generator=draw), draw


def random_codes(N: int, K: int, bits: int, group: int, device: str, seed: int) -> tuple[Tensor, ...]:
    """``random_words`` and scales with which the weights are of about K^-1/2."""
    words, draw = random_words(N, K, bits, device, seed)
    scale = torch.rand(1 if group == -1 else K // group, N, device=device, generator=draw) + 0.5
    return words, (scale * K**-0.5 / 2 ** (bits - 1)).half(), draw
