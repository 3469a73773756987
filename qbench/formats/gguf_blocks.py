"""Blocks of GGUF files: which type of block holds a weight exactly, and its bytes.

A block has 32 or 256 weights of one row and their float16 scale d, which is ours unchanged; where a group is longer,
each of its blocks repeats it. With v = q - z, Q4_0, Q5_0 and Q8_0 hold d v for v in -8..7, -16..15 and -128..127. Q2_K,
Q4_K and Q5_K hold d u - d_min m, exactly ours with u = q, m = z and d_min = d; Q3_K and Q6_K hold d (u - 4) and
d (u - 32). 8 asymmetric bits fit into none.
Source: gguf, quants.py (dequantize_blocks) and constants.py (GGML_QUANT_SIZES).

Dimension key: N output channels, K input channels, G groups of K, B blocks, k weights of a block.
"""

from functools import reduce
from operator import or_

import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from qbench.formats.base import is_signs
from qbench.weights import UniformWeight

KQUANTS = {(1, False): Type.Q2_K, (2, False): Type.Q2_K, (3, True): Type.Q3_K}
KQUANTS |= {(4, False): Type.Q4_K, (5, False): Type.Q5_K, (6, True): Type.Q6_K}  # by bits and symmetric
OFFSETS = {Type.Q4_0: 8, Type.Q5_0: 16, Type.Q8_0: 128}  # v in -offset .. offset - 1


def type_of(weight: UniformWeight) -> Type | None:
    """The smallest type of blocks that holds ``weight`` exactly; None: there is none."""
    (_, K), (_, G), symmetric = weight.codes_NK.shape, weight.scale_NG.shape, weight.zero_NG is None
    if K // G % 256 == 0 and (weight.bits, symmetric) in KQUANTS:
        return KQUANTS[weight.bits, symmetric]
    most = 1 if is_signs(weight) else 2 ** (weight.bits - 1) - 1 if symmetric else 2**weight.bits - 1
    least = -most - 1 if symmetric and weight.bits > 1 else -most
    return next((type for type, offset in OFFSETS.items() if -offset <= least and most < offset), None)


def packed(weight: UniformWeight) -> Tensor:
    """Its blocks as bytes, uint8 [N, bytes of a row]; also of an outline."""
    type, (N, K), (_, G) = type_of(weight), weight.codes_NK.shape, weight.scale_NG.shape
    size = GGML_QUANT_SIZES[type][0]
    u_Bk = weight.codes_NK.view(-1, size)
    d_B1, z_B1 = (x.repeat_interleave(K // G // size, 1).view(-1, 1) for x in (weight.scale_NG, weight.zeros()))
    if is_signs(weight):  # +-s/2
        u_Bk, d_B1, z_B1 = 2 * u_Bk, d_B1 / 2, torch.ones_like(z_B1)
    if type in OFFSETS:
        u_Bk = (u_Bk - z_B1 + OFFSETS[type]).byte()
    fields = [x.contiguous().view(torch.uint8) for x in _fields(type, u_Bk, d_B1, z_B1.byte())]
    return torch.cat(fields, 1).view(N, -1)


def _fields(type: Type, u_Bk: Tensor, d_B1: Tensor, m_B1: Tensor) -> list[Tensor]:
    """The fields of each block in their order: the codes ``u``, the scale ``d``, and ``m`` as the zero."""

    def all_of(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.uint8, device=u_Bk.device).expand(len(u_Bk), -1)

    match type:
        case Type.Q4_0:
            return [d_B1, joined(u_Bk, 2)]
        case Type.Q5_0:
            high_Bk = (u_Bk >> 4).view(-1, 4, 8).mT.reshape(-1, 32)  # value j in bit j of 32
            return [d_B1, joined(high_Bk, 8), joined(u_Bk & 15, 2)]
        case Type.Q8_0:
            return [d_B1, u_Bk ^ 128]  # v of 8 bits instead of v + 128
        case Type.Q2_K:  # 16 scales of 4 bits beside 16 zeros of 4 bits
            return [(m_B1 << 4 | 1).expand(-1, 16), joined(u_Bk, 4, 2), d_B1, d_B1]
        case Type.Q3_K:  # 16 scales of 6 bits, 33, of which readers subtract 32
            return [joined(u_Bk >> 2, 8), joined(u_Bk & 3, 4, 2), all_of(*[0x11] * 8, *[0xAA] * 4), d_B1]
        case Type.Q6_K:
            return [joined(u_Bk & 15, 2, 2), joined(u_Bk >> 4, 4, 2), all_of(*[1] * 16), d_B1]
    # 8 scales, all 1, and 8 zeros of 6 bits: four scales, four zeros, the low halves of the other four of both. The
    # high halves of these lie above the first four.
    six_B12 = torch.cat([(m_B1 >> 4 << 6 | m_B1).expand(-1, 8), (m_B1 << 4 | 1).expand(-1, 4)], 1)
    six_B12[:, :4] = 1
    if type == Type.Q4_K:
        return [d_B1, d_B1, six_B12, joined(u_Bk, 2, 4)]
    return [d_B1, d_B1, six_B12, joined(u_Bk >> 4, 8), joined(u_Bk & 15, 2, 4)]


def joined(x_Bk: Tensor, n: int, runs: int = 1) -> Tensor:
    """Bytes of ``n`` codes each. A block is ``runs`` runs; the first 1/n of a run lies in the lowest bits of its bytes,
    the second above it, and so on."""
    parts = x_Bk.view(len(x_Bk), runs, n, -1).unbind(2)
    return reduce(or_, (part << 8 // n * i for i, part in enumerate(parts))).flatten(1)
