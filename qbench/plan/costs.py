"""Floating-point operations and memory traffic of forward passes and of the methods.

Plain arithmetic on ``qbench.shape.Shape``. What is small beside the products (norms, rotary embeddings, softmax,
residuals: under 1 % at Qwen3's widths) is left out. ``qbench.plan.footprint`` counts memory.

Dimension key: B sequences, T tokens per sequence, N output channels, K input channels, D hidden width, V vocabulary.
"""

from qbench.shape import Shape

# -- operations of a forward pass and of evaluation


def attention_flops(shape: Shape, B: int, T: int, past: int = 0, causal: bool = True) -> int:
    """QK^T and its product with V.

    A query sees ``past`` cached tokens and, if ``causal``, itself and those before; else all T (what a kernel does that
    computes the masked half too).
    """
    return pair_flops(shape, B * (T * past + (T * (T + 1) // 2 if causal else T * T)))


def pair_flops(shape: Shape, pairs: int) -> int:
    """Attention of so many (query, key) pairs: one product with the key, one with the value, all heads and layers."""
    return 4 * shape.layers * shape.heads * shape.head_dim * pairs


def forward_flops(shape: Shape, B: int, T: int, past: int = 0, causal: bool = True) -> int:
    """All layers over B x T tokens, without the head: 2 a weight and token, and attention."""
    return 2 * shape.linear_parameters * B * T + attention_flops(shape, B, T, past, causal)


def head_flops(shape: Shape, positions: int) -> int:
    """Logits at so many positions: 2 D V each."""
    return 2 * shape.hidden * shape.vocab * positions


# -- operations of the methods, for one linear [N, K] or one Gram [K, K]


PARTS = 8  # block columns in which qbench.stats computes symmetric products


def gram_flops(K: int, tokens: int, parts: int = PARTS) -> int:
    """X^T X in ``parts`` block columns, down to the diagonal block of each: K^2 (1 + 1/parts) a token.

    One part is the whole product, 2 K^2; with K parts only one triangle is computed, K (K + 1).
    """
    return K * K * (parts + 1) * tokens // parts


def factor_flops(K: int) -> int:
    """The inverse of the Cholesky factor by halves: four products of K / 2 are K^3, the halves a third of it."""
    return 4 * K**3 // 3


def energy_flops(N: int, K: int, parts: int = PARTS) -> int:
    """diag(W G W^T) from the same block columns of a symmetric G: N K^2 (1 + 1/parts)."""
    return N * K * K * (parts + 1) // parts


def columns_flops(N: int, K: int) -> int:
    """GPTQ's error feedback: column i changes the K - 1 - i columns after it in N rows, 2 each: N K (K - 1).

    Lazy updates of later blocks do the same operations in larger products.
    """
    return N * K * (K - 1)


def error_flops(N: int, K: int) -> int:
    """||(Q - W) X|| and ||W X|| by the Gram."""
    return 2 * energy_flops(N, K)


def scale_search_flops(N: int, K: int, n_scale: int) -> int:
    """AWQ with the Gram: the energy of the error for each exponent."""
    return n_scale * energy_flops(N, K)


def clip_search_flops(N: int, K: int, group: int, n_clip: int) -> int:
    """AWQ: for each range the product of every group with its block of the Gram, [N, g] x [g, g]."""
    return 2 * N * K * group * n_clip


def block_columns_flops(N: int, K: int, block: int = 128) -> int:
    """BiLLM's error feedback, from a block of columns to all columns after it: 2 N block (K - i2) a block."""
    return sum(2 * N * (min(i + block, K) - i) * (K - min(i + block, K)) for i in range(0, K, block))


ROUND_PASSES = 8  # reads and writes of a float32 copy of the weight: range, divide, round, clamp, shift, scale, store
SALIENT_PASSES, SPLIT_PASSES = 25, 41  # the same for one candidate of BiLLM's two searches
SALIENT_LAUNCHES, SPLIT_LAUNCHES = 29, 44  # and the operations that do it


def round_bytes(N: int, K: int, times: int = 1) -> int:
    """Memory traffic of rounding an [N, K] weight ``times`` times, element by element in float32."""
    return 4 * ROUND_PASSES * N * K * times


def binary_search_bytes(N: int, K: int, max_salient: int = 49, splits: int = 81) -> int:
    """Memory traffic of BiLLM's searches, element by element in float32."""
    return 4 * N * K * (max_salient * SALIENT_PASSES + splits * SPLIT_PASSES)
