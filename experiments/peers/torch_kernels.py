"""Kernels of PyTorch, measured beside ours on the same machine in the same run.

Each kernel multiplies the weight that it stores itself, and its error is against that weight. Where a kernel refuses a
shape or a machine, the notes of that row say so.

Dimension key: M tokens, N output channels, K input channels, G groups of K.
"""

import torch
from torch.nn import functional as F

from qbench.latency.products import Contender, Product, normal
from qbench.latency.record import BF16, Kernel

GROUP = 128


class CublasBf16(Product):
    """torch.nn.functional.linear in bfloat16."""

    def __init__(self, N, K, device, seed):
        super().__init__(N, K, device)
        self.weight_bytes = 2 * N * K
        self.w_NK = normal((N, K), device, seed, K**-0.5)

    def multiply(self, x_MK):
        return F.linear(x_MK, self.w_NK)


class IntMM(Product):
    """torch._int_mm: int8 x int8 to int32 by cuBLASLt, which refuses fewer than 17 tokens."""

    tolerance = 0.0
    out_bytes = 4

    def __init__(self, N, K, device, seed):
        super().__init__(N, K, device)
        self.weight_bytes = N * K
        (self.w_NK,) = self.activations(N, seed)

    def activations(self, M, seed):
        draw = torch.Generator(self.device).manual_seed(seed)
        return (torch.randint(-127, 128, (M, self.K), dtype=torch.int8, device=self.device, generator=draw),)

    def multiply(self, x_MK):
        return torch._int_mm(x_MK, self.w_NK.T)


class ScaledMM(Product):
    """torch._scaled_mm: float8 e4m3 on both sides with one scale per row of the weight and per token, bfloat16 out."""

    tolerance = 0.02  # Hopper sums products of float8 numbers in fewer than 23 bits

    def __init__(self, N, K, device, seed):
        super().__init__(N, K, device)
        self.w_NK, self.scale_N1 = self.activations(N, seed)
        self.scale_N1 *= 0.01 * K**-0.5
        self.weight_bytes = N * K + 4 * N

    def activations(self, M, seed):
        """e4m3 over most of its range, which ends at +-448 (larger numbers would become NaN), and scales."""
        x_MK = normal((M, self.K), self.device, seed, 100.0).clamp_(-448, 448).to(torch.float8_e4m3fn)
        draw = torch.Generator(self.device).manual_seed(seed)
        return x_MK, torch.rand(M, 1, device=self.device, generator=draw)

    def multiply(self, x_MK, scale_M1):
        options = dict(out_dtype=torch.bfloat16, use_fast_accum=True)
        return torch._scaled_mm(x_MK, self.w_NK.T, scale_M1, self.scale_N1.T, **options)

    def dequantized(self):
        return self.w_NK.double() * self.scale_N1.double()

    def seen(self, x_MK, scale_M1):
        return x_MK.double() * scale_M1.double()


class TorchInt4(Product):
    """torch._weight_int4pack_mm, the tinygemm kernel of gpt-fast: w = s (q - 8) + zero, groups of 128, bfloat16."""

    tolerance = 0.01  # it also rounds the dequantized weight to bfloat16
    TILES = 8  # K tiles of 16 columns that are stored together

    def __init__(self, N, K, device, seed):
        super().__init__(N, K, device)
        if K % GROUP:
            raise ValueError(f"groups of {GROUP} do not divide K={K}")
        draw = torch.Generator(device).manual_seed(seed)
        self.codes_NK = torch.randint(0, 16, (N, K), dtype=torch.uint8, device=device, generator=draw)
        self.scale_NG = (torch.rand(N, K // GROUP, device=device, generator=draw) * K**-0.5 / 4).bfloat16()
        self.zero_NG = normal((N, K // GROUP), device, seed, K**-0.5)
        pairs = self.codes_NK[:, ::2] << 4 | self.codes_NK[:, 1::2]
        self.packed = torch._convert_weight_to_int4pack(pairs.contiguous(), self.TILES)
        self.meta_GN2 = torch.stack([self.scale_NG.T, self.zero_NG.T], -1).contiguous()
        self.weight_bytes = N * K // 2 + self.meta_GN2.nbytes

    def multiply(self, x_MK):
        return torch._weight_int4pack_mm(x_MK, self.packed, GROUP, self.meta_GN2)

    def dequantized(self):
        scale, zero = (t.double().repeat_interleave(GROUP, 1) for t in (self.scale_NG, self.zero_NG))
        return scale * (self.codes_NK.double() - 8) + zero


def contenders() -> list[Contender]:
    """bfloat16 first."""
    note = "activations are quantized beforehand: that step is not in its times"
    return [
        Contender(BF16, CublasBf16),
        Contender(Kernel("torch_int4", 4, GROUP), TorchInt4),
        Contender(Kernel("torch_scaled_mm_fp8", 8, -1), ScaledMM, note),
        Contender(Kernel("torch_int_mm", 8, -1), IntMM, note, least_tokens=32),
    ]
