"""What lies in memory and on disk while a model is quantized and evaluated, in bytes.

``peak_*`` is what a run is expected to need; a plan prints it. ``least_*`` is what it certainly needs, because these
tensors exist at the same moment; only that is a reason to refuse a run.
"""

from qbench.methods.base import Method
from qbench.shape import BYTES, Shape, sequences_per_pass

LOGIT_FLOATS = 2**25  # floats of logits that perplexity holds at once


def hidden_bytes(shape: Shape, tokens: int, dtype: str = "bfloat16") -> int:
    """Hidden states of all calibration tokens between two layers."""
    return tokens * shape.hidden * BYTES[dtype]


def waiting_bytes(shape: Shape, tokens: int, dtype: str = "bfloat16") -> int:
    """Hidden states between two stages of a layer: the residual stream and what the widest stage reads."""
    return tokens * (shape.hidden + max(K for K, _, _ in shape.stages)) * BYTES[dtype]


def statistics_bytes(shape: Shape) -> int:
    """The Grams of all stages of all layers, which methods that see the unquantized model share on disk."""
    return shape.layers * sum(gram_bytes(K) for K, _, _ in shape.stages)


def gram_bytes(K: int) -> int:
    """A Gram matrix, float32."""
    return 4 * K * K


def stored_bytes(shape: Shape, method: Method) -> int:
    """Quantized weights as they lie on disk, and norms at 2 bytes; embedding and head stay in the original."""
    norms = shape.layer_parameters - sum(N * K for N, K in shape.linears)
    return shape.layers * (sum(method.stored_bytes(N, K) for N, K in shape.linears) + 2 * norms)


def activation_bytes(shape: Shape, tokens: int, dtype: str = "bfloat16") -> int:
    """One layer's temporaries: residual and normed input, q, k, v and their rotated copies, gate, up and product."""
    attention = 2 * (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return tokens * BYTES[dtype] * (4 * shape.hidden + max(attention, 3 * shape.intermediate))


def peak_quantize(shape: Shape, grams: str, length: int, dtype="bfloat16", resting: int = 0) -> int:
    """Bytes on the device that quantizes: the layer and its dequantized successor; a forward pass with its float32
    input; the Grams (``grams``: "stage", one at a time, or "all" of a layer) and two matrices more while the largest is
    factored; five float32 copies of the largest stage; or the embedding. ``resting``: hidden states that wait there.
    """
    sizes = [gram_bytes(K) for K, _, _ in shape.stages]
    stats = (max(sizes) if grams == "stage" else sum(sizes)) + 2 * max(sizes)
    copies = 5 * 4 * max(sum(names.values()) * K for K, names, _ in shape.stages)
    width = max(K for K, _, _ in shape.stages)
    tokens = sequences_per_pass(length) * length
    flight = activation_bytes(shape, tokens, dtype) + 4 * tokens * width
    layer = 2 * shape.layer_parameters * BYTES[dtype]
    return max(layer + flight + stats + copies, shape.vocab * shape.hidden * BYTES[dtype]) + resting


def least_quantize(shape: Shape, dtype="bfloat16") -> int:
    """One layer, the largest Gram with the one it is factored into, one float32 copy of the largest linear; or the
    embedding."""
    layer = shape.layer_parameters * BYTES[dtype] + 2 * max(gram_bytes(K) for K, _, _ in shape.stages)
    return max(layer + 4 * max(N * K for N, K in shape.linears), shape.vocab * shape.hidden * BYTES[dtype])


def peak_evaluate(shape: Shape, length: int, dtype="bfloat16", float_head: bool = True) -> int:
    """The model, the head once more in float32 (perplexity), a forward pass, three chunks of float32 logits."""
    head = 4 * shape.vocab * shape.hidden if float_head else 0
    tokens = sequences_per_pass(length) * length
    return shape.weight_bytes(dtype) + head + activation_bytes(shape, tokens, dtype) + 3 * 4 * LOGIT_FLOATS
