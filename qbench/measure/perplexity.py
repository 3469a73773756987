"""Token perplexity as the quantization papers define it.

The text is cut into disjoint windows of T tokens without BOS, and the remainder is dropped. In each window the model
predicts T - 1 tokens from those before; perplexity is exp of their mean negative log-likelihood. This follows GPTQ
(arXiv 2210.17323) and its successors except that they keep logits and loss in the model's 16-bit type, about three
digits. Here the output head is applied in float32, to a few thousand positions at a time to save memory.

Dimensions: B windows, T tokens, D model width, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.costs import Work
from qbench.measure.base import Context, TextMeasure, hidden_states, mean_metric
from qbench.progress import Progress
from qbench.record import Metric
from qbench.shape import Shape, sequences_per_pass

CHUNK_FLOATS = 2**25


@dataclass(frozen=True)
class Perplexity(TextMeasure):
    """``{source}/ppl``. Its samples are the windows' mean negative log-likelihoods in nats per token.

    The standard error is the delta method's, ppl * se(mean NLL). A diverged model gives inf; nan is an error.
    ``logits: model`` computes logits and each window's mean loss in the model's own dtype, as the papers' code does.
    """

    name = "perplexity"

    logits: Literal["float32", "model"] = "float32"

    @torch.inference_mode()
    def run(self, model: nn.Module, ctx: Context) -> dict[str, Metric]:
        nlls: list[float] = []
        head_VD = float_head(model) if self.logits == "float32" else None
        for ids_BT in batches(self.windows(ctx), ctx, "perplexity"):
            hidden_BTD, targets_BT = hidden_states(model, ids_BT)[:, :-1], ids_BT[:, 1:]
            if head_VD is None:
                head = model.get_output_embeddings()
                nlls += [F.cross_entropy(head(h_TD), t_T).item() for h_TD, t_T in zip(hidden_BTD, targets_BT)]
                continue
            targets, chunks = targets_BT.flatten(), logit_chunks(hidden_BTD, head_VD)
            losses = [F.cross_entropy(logits, targets[at], reduction="none") for at, logits in chunks]
            nlls += torch.cat(losses).view_as(targets_BT).double().mean(1).tolist()
        return {f"{self.source}/ppl": perplexity(nlls)}

    def work(self, shape: Shape) -> Work:
        work = super().work(shape)
        return work if self.logits == "float32" else replace(work, model=work.model + work.float32, float32=0.0)


def perplexity(nlls: list[float]) -> Metric:
    """exp of the mean of the windows' mean negative log-likelihoods in nats."""
    nll = mean_metric(nlls, "perplexity", higher_is_better=False)
    value = math.exp(nll.value) if nll.value < 700 else nll.value * math.inf
    stderr = value * nll.stderr if nll.stderr is not None and math.isfinite(value) else None
    return replace(nll, value=value, stderr=stderr)


def batches(ids_BT: Tensor, ctx: Context, what: str, size: int | None = None) -> Iterator[Tensor]:
    """``size`` windows at a time, by default ``sequences_per_pass``, on ctx.device; with a progress bar."""
    parts = ids_BT.split(size or sequences_per_pass(ids_BT.shape[1]))
    for part in Progress(parts, desc=what, unit="batches"):
        yield part.to(ctx.device)


def float_head(model: nn.Module) -> Tensor:
    """The output head's weight [V, D] in float32; the head is never quantized in this benchmark."""
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ValueError("the output head has a bias; Qwen3's has none, and a head with a bias is not supported")
    return head.weight.float()


def logit_chunks(hidden_BTD: Tensor, head_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields (positions, their float32 logits) over all B * T positions, a bounded number at a time."""
    hidden = hidden_BTD.flatten(0, 1)
    step = max(1, CHUNK_FLOATS // len(head_VD))
    for at in range(0, len(hidden), step):
        some = slice(at, at + step)
        yield some, F.linear(hidden[some].float(), head_VD)
