"""The products to time, the most important first, so that the record is useful whenever the time runs out.

Dimension key: M tokens, N output channels, K input channels.
"""

from collections.abc import Iterable

from qbench.latency.jobs import Job
from qbench.latency.products import Contender
from qbench.shape import Shape


def layers(shape: Shape) -> dict[str, tuple[int, int]]:
    """(N, K) of one layer's products: fused as a decoder runs them, and the gate alone, which papers usually quote."""
    return shape.fused | {"gate_proj": (shape.intermediate, shape.hidden)}


def make_jobs(contenders: Iterable[Contender], models: dict[str, Shape], tokens: Iterable[int]) -> list[Job]:
    """All jobs by rank; within a rank by model, layer and contender, so that each weight is made once."""
    contenders, tokens = list(contenders), list(tokens)
    found = [
        Job(contender, model, layer, N, K, M)
        for model, shape in models.items()
        for layer, (N, K) in layers(shape).items()
        for contender in contenders
        for M in tokens
        if contender.least_tokens <= M
    ]
    return sorted(found, key=lambda job: job.rank)  # stable
