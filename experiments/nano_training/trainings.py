"""The settings of the shipped models, all in one place: shape, tokens, learning rate, seed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """Shape and schedule of a model: `tokens` in all, `first_tokens` of them on the first wave of people."""

    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    layers: int
    first_tokens: int
    tokens: int
    lr: float
    batch: int = 16
    window: int = 256
    weight_decay: float = 0.1
    warmup: int = 100
    decay: float = 0.2
    clip: float = 1.0
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps that the token budget gives, at least one."""
        return max(1, self.tokens // (self.batch * self.window))


TRAININGS = {
    "s": Training(
        hidden=128,
        heads=2,
        kv_heads=1,
        intermediate=256,
        layers=2,
        first_tokens=1_500_000,
        tokens=4_100_000,
        lr=3e-3,
    ),
    "m": Training(
        hidden=256,
        heads=4,
        kv_heads=2,
        intermediate=512,
        layers=2,
        first_tokens=1_500_000,
        tokens=2_457_600,
        lr=2e-3,
    ),
    "l": Training(
        hidden=384,
        heads=6,
        kv_heads=2,
        intermediate=896,
        layers=4,
        first_tokens=4_096_000,
        tokens=6_225_920,
        lr=1.5e-3,
    ),
}
