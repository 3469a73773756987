"""Turns packed words into the operand of a matrix instruction, in registers; all kernels share this.

Nothing here moves data between threads. A word [rows, 4] becomes slices of a tile in the layout that the matrix
instruction reads (see ``pack``), so Triton loads words into shared memory asynchronously and reads them once. What
remains of dequantization is one shift and one logical operation per two weights (per four with 8-bit activations).

With 16-bit activations no integer is converted either. With the code in the top bits of the mantissa and the right
exponent, a float16 or bfloat16 number is exactly 2^b + code. The kernel subtracts ``offset`` times the sum of the
activations after the product. Only 8-bit codes do not fit bfloat16's mantissa of 7 bits; they go through float32.
"""

import triton
import triton.language as tl

from qbench.kernels import pack
from qbench.kernels.launch import INTERPRETED, rounded


@triton.constexpr_function
def _count(bits, lanes, c):
    return len(pack.pieces(bits, lanes, c))


@triton.constexpr_function
def _piece(bits, lanes, c, i, field):
    return pack.pieces(bits, lanes, c)[i][field]


@triton.constexpr_function
def _mask(count, to, lanes):
    """``count`` ones from bit ``to`` on, in each part of a word, as a signed number."""
    ones = sum((((1 << count) - 1) << to) << (part * (32 // lanes)) for part in range(lanes))
    return ones - 2**32 if ones >= 2**31 else ones


@triton.constexpr_function
def mantissa(dtype):
    """Bits of the mantissa of float16 or bfloat16."""
    return 7 if dtype == tl.bfloat16 else 10


@triton.constexpr_function
def offset(dtype, bits):
    """What ``tile16`` adds to every code."""
    return 0.0 if bits > mantissa(dtype) else float(2**bits)


@triton.constexpr_function
def _exponent(dtype, bits):
    """The number 2^bits, in both halves of a word."""
    half = (127 + bits) << 7 if dtype == tl.bfloat16 else (15 + bits) << 10
    return half * 65537


@triton.jit
def load_words(ptr, chunk, rows, N, BITS: tl.constexpr, mask):
    """The words of some rows of a chunk: a tuple of BITS tensors [rows, 4]."""
    plane = tl.full([], 4, tl.int64) * N  # words of all rows; all planes together may have more than 2^31
    start = ptr + plane * (chunk * BITS) + (rows[:, None] * 4 + tl.arange(0, 4)[None, :])
    words = ()
    for i in tl.static_range(BITS):
        words = words + (tl.load(start + plane * i, mask=mask[:, None], other=0, eviction_policy="evict_first"),)  # noqa: RUF005
    return words


@triton.constexpr_function
def _and_or(mask):
    return f"lop3.b32 $0, $1, {mask & 0xFFFFFFFF:#x}, $2, 0xEA;"


@triton.jit
def _run(words, found, c: tl.constexpr, i: tl.constexpr, BITS: tl.constexpr, LANES: tl.constexpr, TO: tl.constexpr):
    """``found``, or-ed with the ``i``-th run of bits of slice ``c`` at its place in the code."""
    PLACE: tl.constexpr = _piece(BITS, LANES, c, i, 3) + TO
    RIGHT: tl.constexpr = _piece(BITS, LANES, c, i, 1) - PLACE
    MASK: tl.constexpr = _mask(_piece(BITS, LANES, c, i, 2), PLACE, LANES)
    word = words[_piece(BITS, LANES, c, i, 0)]
    if RIGHT > 0:
        word = word >> RIGHT
    elif RIGHT < 0:
        word = word << (-RIGHT)
    if MASK == -1 or INTERPRETED:
        return (word & MASK) | found
    else:  # one instruction, where Triton 3.6 makes two and LLVM would cut out byte by byte
        asm: tl.constexpr = _and_or(MASK)
        return tl.inline_asm_elementwise(asm, "=r,r,r", [word, found], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def code(words, c: tl.constexpr, BITS: tl.constexpr, LANES: tl.constexpr, TO: tl.constexpr, ALSO: tl.constexpr):
    """The codes of slice ``c``, one per part of a word, their lowest bit at bit TO of the part; or-ed with ALSO."""
    found = tl.full(words[0].shape, ALSO, tl.int32)
    for i in tl.static_range(_count(BITS, LANES, c)):
        found = _run(words, found, c, i, BITS, LANES, TO)
    return found


@triton.jit
def _floats(words, c: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr):
    """Slice ``c`` as two numbers of ``dtype`` per word: [rows, 4, 2]."""
    if mantissa(dtype) < BITS:
        pair = code(words, c, BITS, 2, 0, 0)
        low = ((pair & 0xFFFF) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0  # 2^23 + code, exactly
        high = (((pair >> 16) & 0xFFFF) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
        return tl.join(rounded(low, dtype), rounded(high, dtype))
    else:
        pair = code(words, c, BITS, 2, mantissa(dtype) - BITS, _exponent(dtype, BITS))
        return tl.join(
            pair.to(tl.int16).to(dtype, bitcast=True),
            (pair >> 16).to(tl.int16).to(dtype, bitcast=True),
        )


@triton.jit
def append(a, b):
    """[rows, n] and [rows, n]: [rows, 2 n], without moving data."""
    ROWS: tl.constexpr = a.shape[0]
    WIDTH: tl.constexpr = a.shape[1]
    return tl.reshape(tl.permute(tl.join(a, b), (0, 2, 1)), [ROWS, 2 * WIDTH])


@triton.jit
def tile16(words, first: tl.constexpr, count: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr):
    """Columns 8 first .. 8 (first + count) of a chunk (``count`` a power of two): codes + ``offset``, [rows, 8 count].

    ``words`` are those of ``pack(..., lanes=2)``.
    """
    if count == 1:
        ROWS: tl.constexpr = words[0].shape[0]
        return tl.reshape(_floats(words, first, BITS, dtype), [ROWS, 8])
    else:
        return append(
            tile16(words, first, count // 2, BITS, dtype), tile16(words, first + count // 2, count // 2, BITS, dtype)
        )
