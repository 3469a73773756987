"""Kernels of other libraries, measured beside ours on the same machine in the same run.

Each kernel multiplies the weight that it stores itself, and its error is against that weight. Where a library is
missing, a note of the record says so; where it refuses a shape, the notes of that row do.

Dimension key: M tokens, N output channels, K input channels, G groups of K.
"""

from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
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
    """torch._int_mm: int8 x int8 to int32 by cuBLASLt. It refuses fewer than 17 rows, so it gets at least 32."""

    tolerance = 0.0
    ROWS = 32

    def __init__(self, N, K, device, seed):
        super().__init__(N, K, device)
        self.weight_bytes = N * K
        self.w_NK = self.random(N, seed)

    def random(self, rows, seed):
        """int8 [rows, K], -127..127."""
        draw = torch.Generator(self.device).manual_seed(seed)
        return torch.randint(-127, 128, (rows, self.K), dtype=torch.int8, device=self.device, generator=draw)

    def activations(self, M, seed):
        x_MK = self.random(max(M, self.ROWS), seed)
        x_MK[M:] = 0
        return (x_MK[:M], x_MK)

    def multiply(self, x_MK, padded):
        return torch._int_mm(padded, self.w_NK.T)[: x_MK.shape[0]]

    def traffic(self, M):
        return max(M, self.ROWS) * (self.K + 4 * self.N)


class ScaledMM(Product):
    """torch._scaled_mm: float8 e4m3 on both sides, bfloat16 out.

    ``block`` None: one scale per row of the weight and per token; 128: one scale per 128 x 128 weights and per 128
    channels of a token, as in the official FP8 checkpoints.
    """

    tolerance = 0.02  # Hopper sums products of float8 numbers in fewer than 23 bits

    def __init__(self, N, K, device, seed, block=None):
        super().__init__(N, K, device)
        self.rows, self.columns = (block, block) if block else (1, K)  # that share a scale
        if N % self.rows or K % self.columns:
            raise ValueError(f"blocks of {block} do not divide N={N}, K={K}")
        draw = torch.Generator(device).manual_seed(seed)
        self.w_NK = self.random(N, seed)
        self.scale = torch.rand(N // self.rows, K // self.columns, device=device, generator=draw) * 0.01 * K**-0.5
        self.weight_bytes = N * K + 4 * self.scale.numel()

    def random(self, rows, seed):
        """e4m3 [rows, K] over most of its range, which ends at +-448; larger numbers would become NaN."""
        return normal((rows, self.K), self.device, seed, 100.0).clamp_(-448, 448).to(torch.float8_e4m3fn)

    def activations(self, M, seed):
        draw = torch.Generator(self.device).manual_seed(seed)
        scale_GM = torch.rand(self.K // self.columns, M, device=self.device, generator=draw)
        return self.random(M, seed), scale_GM.view(M, 1) if self.rows == 1 else scale_GM.T

    def multiply(self, x_MK, scale_MG):
        options = dict(out_dtype=torch.bfloat16, use_fast_accum=self.rows == 1)
        return torch._scaled_mm(x_MK, self.w_NK.T, scale_MG, self.scale.T, **options)

    def dequantized(self):
        return self.w_NK.double() * _spread(self.scale.double(), self.rows, self.columns)

    def seen(self, x_MK, scale_MG):
        return x_MK.double() * _spread(scale_MG.double(), 1, self.columns)

    def traffic(self, M):
        return M * (self.K + 4 * (self.K // self.columns) + 2 * self.N)


class Grouped(Product):
    """Random 4-bit codes [N, K] with a bfloat16 scale and zero per 128 columns, as the 4-bit peers store them."""

    tolerance = 0.01  # the peers also round the dequantized weight to bfloat16

    def __init__(self, N, K, device, seed):
        super().__init__(N, K, device)
        if K % GROUP:
            raise ValueError(f"groups of {GROUP} do not divide K={K}")
        draw = torch.Generator(device).manual_seed(seed)
        self.codes_NK = torch.randint(0, 16, (N, K), dtype=torch.uint8, device=device, generator=draw)
        self.scale_NG = (torch.rand(N, K // GROUP, device=device, generator=draw) * K**-0.5 / 4).bfloat16()
        self.weight_bytes = N * K // 2 + 2 * 2 * self.scale_NG.numel()

    def dequantized(self):
        """s (q - 8), to which a subclass may add."""
        return (self.codes_NK.double() - 8) * _spread(self.scale_NG.double(), 1, GROUP)


class TorchInt4(Grouped):
    """torch._weight_int4pack_mm, the tinygemm kernel of gpt-fast: w = s (q - 8) + zero, groups of 128, bfloat16."""

    TILES = 8  # K tiles of 16 columns that are stored together

    def __init__(self, N, K, device, seed):
        super().__init__(N, K, device, seed)
        self.zero_NG = normal(tuple(self.scale_NG.shape), device, seed, K**-0.5)
        pairs = self.codes_NK[:, ::2] << 4 | self.codes_NK[:, 1::2]
        self.packed = torch._convert_weight_to_int4pack(pairs.contiguous(), self.TILES)
        self.meta_GN2 = torch.stack([self.scale_NG.T, self.zero_NG.T], -1).contiguous()

    def multiply(self, x_MK):
        return torch._weight_int4pack_mm(x_MK, self.packed, GROUP, self.meta_GN2)

    def dequantized(self):
        return super().dequantized() + _spread(self.zero_NG.double(), 1, GROUP)


class GemLite(Grouped):
    """gemlite's Triton kernels: w = s (q - 8), groups of 128, bfloat16."""

    def __init__(self, N, K, device, seed):
        from gemlite import DType, GemLiteLinear

        super().__init__(N, K, device, seed)
        sizes, dtypes = dict(in_features=K, out_features=N), dict(input_dtype=DType.BF16, output_dtype=DType.BF16)
        self.layer = GemLiteLinear(4, group_size=GROUP, **sizes, **dtypes)
        zero_NG = torch.full_like(self.scale_NG, 8.0)
        self.layer.pack(self.codes_NK.clone(), self.scale_NG.clone(), zero_NG, None)

    def multiply(self, x_MK):
        return self.layer(x_MK)


def contenders() -> list[Contender]:
    """All peers, installed or not; bfloat16 first."""
    quantized = "activations are quantized beforehand: that step is not in its times"
    padded = f"the int32 product alone, of at least 32 rows; {quantized}"
    cuda = torch.cuda.is_available()
    fp8 = dict(missing=None if cuda else "float8 products need CUDA", note=quantized)
    if cuda and torch.cuda.get_device_capability() < (8, 9):
        major, minor = torch.cuda.get_device_capability()
        fp8["missing"] = f"needs compute capability 8.9, this GPU has {major}.{minor}"
    return [
        Contender(BF16, CublasBf16),
        Contender(Kernel("torch_int4", 4, GROUP), TorchInt4, None if cuda else "torch packs for it on CUDA only"),
        Contender(Kernel("torch_scaled_mm_fp8", 8, -1), ScaledMM, **fp8),
        Contender(Kernel("torch_scaled_mm_fp8", 8, 128), partial(ScaledMM, block=128), **fp8),
        Contender(Kernel("torch_int_mm", 8, -1), IntMM, note=padded),
        Contender(Kernel("gemlite", 4, GROUP), GemLite, None if find_spec("gemlite") else "not installed"),
    ]


def _spread(scale: Tensor, rows: int, columns: int) -> Tensor:
    return scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
