"""Packs b-bit codes into int32 words: exactly b bits per weight for b = 1..8, in the order that tensor cores read.

A row is cut into chunks of 128 columns. A chunk of b-bit codes is 4 groups of b words, and a group holds 32 columns. A
matrix instruction spreads a row over four lanes j, and each lane reads ``lanes`` neighbouring columns from a register:
two halves of 16 bits with 16-bit activations, four bytes with 8-bit ones. So lane j of a chunk stores the columns

    k = 4 lanes c + lanes j + l        slice c = 0 .. 32 / lanes - 1,  l = 0 .. lanes - 1

with column l in part l of the word, and ``(word >> shift) & mask`` is the register of an instruction, all its columns
at once. A part of W = 32 / lanes bits has room for W // b whole codes. The remaining W mod b bits of each of the b
words hold the remaining codes, bit by bit: 16 bits are 5 codes of 3 bits and 1 bit, so the 16th code of a group is in
the top bits of its three words. ``pieces`` says where each code is; the kernels and this file read the same table.

Words are stored as [chunks, b, N, 4], so what a program reads, some rows of a chunk, is contiguous. The last chunk is
filled up with zero codes to the next multiple of 128 columns; rows are not padded.

Dimension key: N output channels, K input channels, C chunks of 128 columns.
"""

import torch
import triton
from torch import Tensor

CHUNK = 128


@triton.constexpr_function
def pieces(bits: int, lanes: int, c: int) -> list[tuple[int, int, int, int]]:
    """Where the code of slice ``c`` is in a group's words: (word, first bit in the part, number of bits, first bit in
    the code) per run of bits."""
    width = 32 // lanes
    whole, spare = width // bits, width % bits
    if c < whole * bits:
        return [(c // whole, c % whole * bits, bits, 0)]
    found: list[tuple[int, int, int, int]] = []
    for i in range(bits):
        word, bit = divmod((c - whole * bits) * bits + i, spare)
        if found and found[-1][0] == word:
            found[-1] = (*found[-1][:2], found[-1][2] + 1, found[-1][3])
        else:
            found.append((word, whole * bits + bit, 1, i))
    return found


def chunks(K: int) -> int:
    """Chunks of a row of K columns."""
    return -(-K // CHUNK)


def pack(codes_NK: Tensor, bits: int, lanes: int = 2) -> Tensor:
    """Codes 0..2^bits - 1 (any integer dtype) as int32 words [chunks, bits, N, 4].

    Raises: ValueError for other bits than 1..8, other lanes than 2 or 4, or a code that does not fit.
    """
    if not 1 <= bits <= 8 or lanes not in (2, 4):
        raise ValueError(f"codes are packed with 1 to 8 bits in 2 or 4 lanes, got {bits} bits and {lanes} lanes")
    if codes_NK.numel() and not (int(codes_NK.min()) >= 0 and int(codes_NK.max()) < 2**bits):
        raise ValueError(f"{bits}-bit codes must be 0..{2**bits - 1}, got {int(codes_NK.min())}..{int(codes_NK.max())}")
    N, K = codes_NK.shape
    C, width = chunks(K), 32 // lanes
    padded = torch.nn.functional.pad(codes_NK.to(torch.uint8), (0, C * CHUNK - K))
    slices = padded.view(N, C, width, 4, lanes).permute(2, 1, 0, 3, 4)  # [c, C, N, 4, lanes]
    words = torch.zeros(C, bits, N, 4, dtype=torch.int64, device=codes_NK.device)
    place = torch.arange(lanes, device=codes_NK.device) * width
    for c in range(width):
        for word, at, count, to in pieces(bits, lanes, c):
            part = (slices[c].long() >> to) & (2**count - 1)
            words[:, word] |= (part << (place + at)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def unpack(words: Tensor, K: int, lanes: int = 2) -> Tensor:
    """The codes [N, K], uint8, of ``pack``'s words."""
    C, bits, N, _ = words.shape
    width = 32 // lanes
    codes = torch.zeros(width, C, N, 4, lanes, dtype=torch.uint8, device=words.device)
    place = torch.arange(lanes, device=words.device) * width
    for c in range(width):
        for word, at, count, to in pieces(bits, lanes, c):
            codes[c] |= (((words[:, word, :, :, None] >> (place + at)) & (2**count - 1)) << to).to(torch.uint8)
    return codes.permute(2, 1, 0, 3, 4).reshape(N, C * CHUNK)[:, :K].contiguous()
