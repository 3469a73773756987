"""What a phase of a run costs: operations, memory traffic and kernel launches, counted before anything runs.

Every method, statistic and measurement says its own ``Work``; ``qbench plan`` adds them up. Norms, rotary embeddings,
softmax and residuals (under 1 % at Qwen3's widths) are left out. ``qbench.plan.footprint`` counts memory.

Dimension key: B sequences, T tokens per sequence, N output channels, K input channels, D hidden width, V vocabulary.
"""

from dataclasses import dataclass, fields

from qbench.shape import Shape

PARTS = 8  # block columns in which qbench.stats computes symmetric products
ROUND_PASSES = 8  # reads and writes of a float32 copy of the weight: range, divide, round, clamp, shift, scale, store
ROUND_LAUNCHES = 30


@dataclass(frozen=True)
class Work:
    """``model``: operations in the model's dtype; ``float32``: operations in float32; ``bytes``: read and written
    element by element; ``launches``: kernels that wait for Python; ``unknown``: what is not counted, in words."""

    model: float = 0.0
    float32: float = 0.0
    bytes: float = 0.0
    launches: float = 0.0
    unknown: tuple[str, ...] = ()

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, n: float) -> "Work":
        return Work(self.model * n, self.float32 * n, self.bytes * n, self.launches * n, self.unknown)

    def seconds(self, machine, dtype: str) -> float:
        """On a ``qbench.plan.machines.Machine``, one operation after another, nothing overlapped."""
        rate = machine.flops32 if dtype == "float32" else machine.flops16
        rated = self.model / rate + self.float32 / machine.flops32
        return rated + self.bytes / machine.bandwidth + self.launches * machine.launch


def pair_flops(shape: Shape, pairs: int) -> int:
    """Attention of that many (query, key) pairs: a product with the key and one with the value, per head and layer."""
    return 4 * shape.layers * shape.heads * shape.head_dim * pairs


def forward_flops(shape: Shape, B: int, T: int) -> int:
    """All layers over B x T tokens, without the head: 2 per weight and token, and attention to itself and before."""
    return 2 * shape.linear_parameters * B * T + pair_flops(shape, B * T * (T + 1) // 2)


def head_flops(shape: Shape, positions: int) -> int:
    """Logits at that many positions: 2 D V each."""
    return 2 * shape.hidden * shape.vocab * positions


def gram_flops(K: int, tokens: int) -> int:
    """X^T X in PARTS block columns, down to the diagonal block of each: K^2 (1 + 1/PARTS) per token."""
    return K * K * (PARTS + 1) * tokens // PARTS


def factor_flops(K: int) -> int:
    """The inverse Cholesky factor by halves: four products of K / 2 are K^3, and the halves add a third of that."""
    return 4 * K**3 // 3


def energy_flops(N: int, K: int) -> int:
    """diag(W G W^T) from the block columns of a symmetric G: N K^2 (1 + 1/PARTS)."""
    return N * K * K * (PARTS + 1) // PARTS


def error_flops(N: int, K: int) -> int:
    """||(Q - W) X|| and ||W X|| by the Gram."""
    return 2 * energy_flops(N, K)


def rounding(N: int, K: int, times: int = 1) -> Work:
    """Rounds an [N, K] weight ``times`` times, element by element in float32."""
    return Work(bytes=4 * ROUND_PASSES * N * K * times, launches=ROUND_LAUNCHES * times)
