"""The bit stream that GPTQ, compressed-tensors and MLX files share: code i of a row takes the bits i b to (i + 1) b - 1
of 32-bit words, lowest bit first; a code may lie in two words. AWQ's words are the same after columns are permuted.

Dimension key: R rows, C codes of a row, W words of a row.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

LOW = 2**32 - 1  # the lower 32 bits


def pack(codes_RC: Tensor, bits: int) -> Tensor:
    """Codes 0..2^bits - 1, uint8, as int32 words [R, ceil(C bits / 32)]; unused bits are zero."""
    R, C = codes_RC.shape
    codes = pad(codes_RC, (0, -C % 32)).view(R, -1, 32)  # 32 codes are ``bits`` words
    words = torch.zeros(*codes.shape[:2], bits + 1, dtype=torch.int64, device=codes.device)
    for i in range(32):
        word, at = divmod(i * bits, 32)
        wide = codes[..., i].long() << at
        words[..., word] |= wide & LOW
        words[..., word + 1] |= wide >> 32
    signed = (words[..., :bits] ^ 2**31) - 2**31
    return signed.int().view(R, -1)[:, : -(-C * bits // 32)].contiguous()


def unpack(words_RW: Tensor, bits: int, C: int) -> Tensor:
    """The codes [R, C], uint8, of ``pack``'s words."""
    R, W = words_RW.shape
    words = pad(words_RW.long() & LOW, (0, -W % bits)).view(R, -1, bits)
    words = pad(words, (0, 1))
    codes = torch.empty(*words.shape[:2], 32, dtype=torch.uint8, device=words.device)
    for i in range(32):
        word, at = divmod(i * bits, 32)
        wide = words[..., word] | words[..., word + 1] << 32
        codes[..., i] = (wide >> at) & (2**bits - 1)
    return codes.view(R, -1)[:, :C].contiguous()
