"""How far the quantized model's predictions are from the unquantized model's, per token.

At every predicted position of the windows: KL(p || q) = sum_v p_v (log p_v - log q_v), where p is the unquantized
model's distribution and q the quantized one's, and whether both have the same most likely token. Neither needs labels,
and both show damage long before accuracy does.

The cache holds the unquantized model's last hidden states. Its logits would take 0.6 GB per window of 2,048 tokens, and
rounded to 16 bits they would hide an 8-bit model's 1e-5 nats. The head is never quantized, so p is recomputed exactly,
and the divergence of a model from itself is 0; a hash checks that the head is the same. Files of others may hold the
head in another 16-bit type: then each model's own is used.

A mean hides that most tokens hardly change and a few change completely, so quantiles over the tokens stand beside it.
``NoiseFloor`` measures the divergence that rounding to 16 bits causes without any quantization.

Dimensions: B windows, T tokens, D model width, V vocabulary.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from qbench.costs import Work
from qbench.measure.base import Context, TextMeasure, hidden_states, mean_metric
from qbench.measure.perplexity import batches, float_head, logit_chunks, perplexity
from qbench.models.checkpoint import DTYPES
from qbench.models.files import metadata, save_tensors
from qbench.record import Metric, digest
from qbench.shape import Shape

QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}  # of the tokens' KL
RESAMPLES = 200


@dataclass(frozen=True)
class Divergence(TextMeasure):
    """``{source}/kl`` in nats per token and ``{source}/top1`` agreement; samples are the windows' means.
    ``{source}/kl_p50``, ``kl_p99`` and ``kl_p99.9``: quantiles of the KL over all tokens.

    The T - 1 positions per window are those that perplexity scores. With ``perplexity``, the same forward passes also
    give ``{source}/ppl``, the number that ``Perplexity`` measures.
    """

    name = "divergence"
    compares = True

    perplexity: bool = False

    def prepare(self, ctx: Context) -> None:
        """Writes the unquantized model's hidden states to ctx.cache_dir/reference, if they are not there."""
        file = self.reference_file(ctx)
        if _whole(file):
            return
        model, parts = ctx.reference(), batches(self.windows(ctx), ctx, "reference")
        with torch.inference_mode():
            hidden_BTD = torch.cat([hidden_states(model, ids_BT)[:, :-1].cpu() for ids_BT in parts])
            if not hidden_BTD.isfinite().all():
                raise ValueError("the unquantized model's hidden states are not finite; its checkpoint is damaged")
            save_tensors({"hidden_BTD": hidden_BTD}, file, {"head": _hash(float_head(model))})

    @torch.inference_mode()
    def run(self, model: nn.Module, ctx: Context) -> dict[str, Metric]:
        self.prepare(ctx)
        parts, head_VD = [], float_head(model)
        with safe_open(self.reference_file(ctx), framework="pt") as reference:
            is_same = _hash(head_VD) == reference.metadata()["head"]
            reference_head_VD = head_VD if is_same or ctx.head is None else ctx.head().float()
            if _hash(reference_head_VD) != reference.metadata()["head"]:
                raise ValueError("the output head differs from the unquantized model's; a method must leave it alone")
            hidden = reference.get_slice("hidden_BTD")
            first = 0
            for ids_BT in batches(self.windows(ctx), ctx, "divergence"):
                p_BTD = hidden[first : first + len(ids_BT)].to(ctx.device)
                q_BTD = hidden_states(model, ids_BT)[:, :-1]
                parts.append(divergences(p_BTD, q_BTD, head_VD, ids_BT[:, 1:], reference_head_VD))
                first += len(ids_BT)
        metrics = _metrics(self.source, parts)
        return metrics | ({f"{self.source}/ppl": perplexity(_window_means(parts, 2))} if self.perplexity else {})

    def work(self, shape: Shape) -> Work:
        work = super().work(shape)
        return replace(work, float32=2 * work.float32)  # the head of the quantized and of the unquantized model

    def reference_file(self, ctx: Context) -> Path:
        """The name covers everything that may change a bit, also the device: its kernels sum in another order."""
        what = replace(self, perplexity=False).science(ctx) | {"model": ctx.model_id, "device": str(ctx.device)}
        return Path(ctx.cache_dir) / "reference" / f"{digest(what)}.safetensors"


@dataclass(frozen=True)
class NoiseFloor(TextMeasure):
    """The metrics of ``Divergence`` between the model in float32 and the same model in ``dtype``, a 16-bit type.

    With method=none it is what running the model in 16 bits costs. A difference between two methods that is smaller
    cannot be told from rounding on a machine that computes in 16 bits.
    """

    name = "noise_floor"

    dtype: Literal["bfloat16", "float16"] = "bfloat16"

    @torch.inference_mode()
    def run(self, model: nn.Module, ctx: Context) -> dict[str, Metric]:
        exact, rounded = copy.deepcopy(model).float(), copy.deepcopy(model)
        for p in rounded.parameters():  # not the buffers: models in 16 bits keep their rotary frequencies in float32
            p.data = p.data.to(DTYPES[self.dtype])
        parts, head_VD = [], float_head(model)
        for ids_BT in batches(self.windows(ctx), ctx, "noise floor"):
            p_BTD, q_BTD = (hidden_states(m, ids_BT)[:, :-1] for m in (exact, rounded))
            parts.append(divergences(p_BTD, q_BTD, head_VD, ids_BT[:, 1:]))
        return _metrics(self.source, parts)

    def work(self, shape: Shape) -> Work:
        work = super().work(shape)
        return Work(model=work.model, float32=work.model + 2 * work.float32)


def divergences(
    p_BTD: Tensor, q_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor, p_head_VD: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Three tensors [B, T]: KL(p || q) in nats, whether the most likely token is the same, -log q of the target.
    ``p_head_VD``: the head of p, if it is not that of q."""
    kl, same, nll = [], [], []
    p_head_VD = head_VD if p_head_VD is None else p_head_VD
    for (at, p), (_, q) in zip(logit_chunks(p_BTD, p_head_VD), logit_chunks(q_BTD, head_VD)):
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        same.append(p.argmax(-1) == q.argmax(-1))
        nll.append(F.nll_loss(log_q, targets_BT.flatten()[at], reduction="none"))
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return tuple(torch.cat(parts).view(targets_BT.shape) for parts in (kl, same, nll))


def quantiles(x_BT: np.ndarray, shares: Sequence[float]) -> list[tuple[float, float | None]]:
    """(quantile over all tokens, its standard error) per share.

    A quantile is the smallest outcome that at least this share of the tokens does not exceed. Its error is the spread
    over resampled windows (bootstrap with a fixed seed), as the tokens of one window are not independent; None where
    there is one window or an infinite outcome.
    """

    def take(rows: np.ndarray) -> np.ndarray:
        return np.quantile(x_BT[rows], shares, method="inverted_cdf")

    values, n = take(np.arange(len(x_BT))), len(x_BT)
    if n < 2 or not np.isfinite(x_BT).all():
        return [(float(value), None) for value in values]
    draws = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    return [*zip(values.tolist(), np.std([take(rows) for rows in draws], axis=0, ddof=1).tolist())]


def _metrics(source: str, parts: list[tuple[Tensor, ...]]) -> dict[str, Metric]:
    """``kl``, ``top1`` and the quantiles, from what ``divergences`` gave for each batch."""
    metrics = {
        f"{source}/kl": mean_metric(_window_means(parts, 0), "nats/token", higher_is_better=False),
        f"{source}/top1": mean_metric(_window_means(parts, 1), "fraction", higher_is_better=True),
    }
    kl_BT = torch.cat([part[0].cpu() for part in parts]).numpy()
    for name, (value, stderr) in zip(QUANTILES, quantiles(kl_BT, [*QUANTILES.values()])):
        metrics[f"{source}/kl_{name}"] = Metric(value, "nats/token", len(kl_BT), stderr, higher_is_better=False)
    return metrics


def _window_means(parts: list[tuple[Tensor, ...]], which: int) -> list[float]:
    return [mean for part in parts for mean in part[which].double().mean(1).tolist()]


def _whole(file: Path) -> bool:
    """Whether the file exists and is readable; a damaged one is computed again."""
    try:
        return "head" in metadata(file)
    except Exception:
        return False


def _hash(head_VD: Tensor) -> str:
    return sha256(head_VD.cpu().numpy().tobytes()).hexdigest()[:16]
