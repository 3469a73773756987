"""The shape of a decoder, the sizes of released models, and what one linear layer costs in operations and bytes.

Everything is plain arithmetic, so it needs no torch, and a test compares each count with the real modules. A matrix
product of [M, K] with [K, N] takes 2 M K N operations.

Dimension key: M rows of activations, N output channels, K input channels, D hidden width.
"""

from dataclasses import dataclass, replace

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PASS_TOKENS = 2048  # enough to keep a GPU busy
QKV = ("q_proj", "k_proj", "v_proj")


def sequences_per_pass(length: int) -> int:
    """Sequences of ``length`` tokens in one forward pass: as many as PASS_TOKENS hold, at least one.

    No setting of a machine changes it, because products of another size sum in another order, and the last bit of a
    calibration moves the codes of GPTQ.
    """
    return max(1, PASS_TOKENS // length)


@dataclass(frozen=True)
class Shape:
    """A dense decoder with grouped-query attention and a gated MLP.

    ``qk_norms``: each head's queries and keys are normed, as in Qwen3. ``biases``: the linears that have one.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    positions: int = 40_960  # tokens of the longest sequence
    qk_norms: bool = True
    biases: tuple[str, ...] = ()

    @classmethod
    def of(cls, config) -> "Shape":
        """From the transformers configuration of a model type in ``qbench.models.anatomies``."""
        biases = QKV if config.model_type == "qwen2" else ()
        biases += (*QKV, "o_proj") if getattr(config, "attention_bias", False) else ()
        biases += ("gate_proj", "up_proj", "down_proj") if getattr(config, "mlp_bias", False) else ()
        return cls(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
            vocab=config.vocab_size,
            tied=config.tie_word_embeddings,
            positions=config.max_position_embeddings,
            qk_norms=config.model_type == "qwen3",
            biases=biases,
        )

    @property
    def stages(self) -> tuple[tuple[int, dict[str, int], bool], ...]:
        """(K, {linear: N}, whether a scale folds into what comes before) for linears that read the same tensor."""
        D, query, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            (D, dict(zip(QKV, (query, kv, kv))), True),
            (query, {"o_proj": D}, self.heads == self.kv_heads),
            (D, {"gate_proj": self.intermediate, "up_proj": self.intermediate}, True),
            (self.intermediate, {"down_proj": D}, True),
        )

    @property
    def fused(self) -> dict[str, tuple[int, int]]:
        """(N, K) of one layer's products as a decoder runs them: linears that read one tensor are one product."""
        names = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
        return {name: (sum(linears.values()), K) for name, (K, linears, _) in zip(names, self.stages)}

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(N, K) of the linears of one layer."""
        return [(N, K) for K, names, _ in self.stages for N in names.values()]

    @property
    def linear_parameters(self) -> int:
        """Weights that get quantized, in all layers."""
        return self.layers * sum(N * K for N, K in self.linears)

    @property
    def layer_parameters(self) -> int:
        """One layer: its linears, norms and biases."""
        biases = sum(N for _, names, _ in self.stages for name, N in names.items() if name in self.biases)
        norms = 2 * self.hidden + 2 * self.head_dim * self.qk_norms
        return sum(N * K for N, K in self.linears) + norms + biases

    @property
    def parameters(self) -> int:
        """layers + embedding (+ head, if it is not the embedding) + the last norm."""
        return self.layers * self.layer_parameters + (2 - self.tied) * self.vocab * self.hidden + self.hidden

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token in all layers, 16 bits each."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2

    def weight_bytes(self, dtype: str = "bfloat16") -> int:
        """Of the whole model, on the Hub and in memory; the Hub's file may hold a tied head once more."""
        return self.parameters * BYTES[dtype]


def _qwen3(hidden, intermediate, layers, heads, tied):
    return Shape(hidden, intermediate, layers, heads, kv_heads=8, head_dim=128, vocab=151936, tied=tied)


QWEN3 = {
    "0.6b": _qwen3(1024, 3072, 28, 16, True),
    "1.7b": _qwen3(2048, 6144, 28, 16, True),
    "4b": _qwen3(2560, 9728, 36, 32, True),
    "8b": _qwen3(4096, 12288, 36, 32, False),
    "14b": _qwen3(5120, 17408, 40, 40, False),
    "32b": _qwen3(5120, 25600, 64, 64, False),
}

QWEN2_5_7B = Shape(
    3584, 18944, 28, heads=28, kv_heads=4, head_dim=128, vocab=152064, tied=False,
    positions=131_072, qk_norms=False, biases=QKV,
)  # fmt: skip
SMOLLM2_135M = Shape(
    576, 1536, 30, heads=9, kv_heads=3, head_dim=64, vocab=49152, tied=True, positions=8192, qk_norms=False
)
RELEASED = {  # by the name of the model choice
    **{f"qwen3-{size}": shape for size, shape in QWEN3.items()},
    **{f"qwen3-{size}-base": replace(shape, positions=32_768) for size, shape in QWEN3.items()},
    "smollm2-135m": SMOLLM2_135M,
    "qwen2.5-7b": QWEN2_5_7B,
    "qwen2.5-7b-instruct": replace(QWEN2_5_7B, positions=32_768),
}


# -- one linear: operations, and bytes that its product has to move


def linear_flops(M: int, N: int, K: int) -> int:
    """[M, K] times [K, N]: a multiplication and an addition for each of M N K terms."""
    return 2 * M * N * K
