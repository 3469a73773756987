"""How far the quantized model's predictions are from the unquantized model's, token by token.

At every predicted position of the windows, KL(p || q) = sum_v p_v (log p_v - log q_v) with p the
unquantized model's distribution and q the quantized one's, and whether both name the same token as most
likely. Both need no labels, and both see damage long before accuracy does.

What is kept of the unquantized model is not its logits (0.6 GB a window of 2,048 at Qwen3's vocabulary, and
rounded to 16 bits they bury an 8-bit model's 1e-5 nats) but what its output head reads: the last hidden
states, lossless, a hundred times smaller. The head is never quantized, so p is recomputed from them
exactly, and the divergence of a model from itself is 0. That the head is the same is checked by its hash.

Dimensions: B windows, T tokens, D model width, V vocabulary.
"""

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qbench.costs import Work
from qbench.files import written_whole
from qbench.measure.base import Context, TextMeasure, hidden_states, mean_metric
from qbench.measure.perplexity import batches, float_head, logit_chunks, perplexity
from qbench.record import Metric, digest
from qbench.shape import Shape


@dataclass(frozen=True)
class Divergence(TextMeasure):
    """`{source}/kl` in nats a token and `{source}/top1` agreement; samples are the windows' means.

    The T - 1 positions of a window are those that perplexity scores. With `perplexity`, `{source}/ppl` comes
    from the same forward passes: the number that `Perplexity` gives, at no cost.
    """

    name = "divergence"

    perplexity: bool = False

    def prepare(self, ctx: Context) -> None:
        """Writes the reference's hidden states under ctx.cache_dir/reference, if they are not there."""
        file = self.reference_file(ctx)
        if not _whole(file):
            _write(file, ctx.reference(), self.windows(ctx), ctx)

    @torch.inference_mode()
    def run(self, model: nn.Module, ctx: Context) -> dict[str, Metric]:
        self.prepare(ctx)
        kl, top1, nll = [], [], []
        head_VD = float_head(model)
        with safe_open(self.reference_file(ctx), framework="pt") as reference:
            _check_head(reference.metadata()["head"], head_VD)
            hidden = reference.get_slice("hidden_BTD")
            first = 0
            for ids_BT in batches(self.windows(ctx), ctx, "divergence"):
                p_BTD = hidden[first : first + len(ids_BT)].to(ctx.device)
                q_BTD = hidden_states(model, ids_BT)[:, :-1]
                for outcomes, x_BT in zip((kl, top1, nll), divergences(p_BTD, q_BTD, head_VD, ids_BT[:, 1:])):
                    outcomes += x_BT.double().mean(1).tolist()
                first += len(ids_BT)
        metrics = {
            f"{self.source}/kl": mean_metric(kl, "nats/token", higher_is_better=False),
            f"{self.source}/top1": mean_metric(top1, "fraction", higher_is_better=True),
        }
        return metrics | ({f"{self.source}/ppl": perplexity(nll)} if self.perplexity else {})

    def work(self, shape: Shape) -> Work:
        work = super().work(shape)
        return replace(work, float32=2 * work.float32)  # the head of the quantized and of the unquantized model

    def reference_file(self, ctx: Context) -> Path:
        """Named by all that may change its bits, the device too: its kernels sum in another order."""
        what = replace(self, perplexity=False).science(ctx) | {"model": ctx.model_id, "device": str(ctx.device)}
        return Path(ctx.cache_dir) / "reference" / f"{digest(what)}.safetensors"


def divergences(p_BTD: Tensor, q_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor) -> tuple[Tensor, ...]:
    """KL(p || q) in nats, whether the most likely token is the same, -log q of the target: [B, T] each."""
    kl, same, nll = [], [], []
    for (at, p), (_, q) in zip(logit_chunks(p_BTD, head_VD), logit_chunks(q_BTD, head_VD)):
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        same.append(p.argmax(-1) == q.argmax(-1))
        nll.append(F.nll_loss(log_q, targets_BT.flatten()[at : at + len(q)], reduction="none"))
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return tuple(torch.cat(parts).view(targets_BT.shape) for parts in (kl, same, nll))


@torch.inference_mode()
def _write(file: Path, model: nn.Module, ids_BT: Tensor, ctx: Context) -> None:
    hidden = [hidden_states(model, ids)[:, :-1].cpu() for ids in batches(ids_BT, ctx, "reference")]
    tensors = {"hidden_BTD": torch.cat(hidden).contiguous()}
    if not tensors["hidden_BTD"].isfinite().all():
        raise ValueError("the unquantized model's hidden states are not finite; its checkpoint is damaged")
    with written_whole(file) as temporary:
        save_file(tensors, temporary, metadata={"head": _hash(float_head(model))})


def _whole(file: Path) -> bool:
    """Whether the file is there and readable; a damaged one is computed again."""
    try:
        with safe_open(file, framework="pt") as f:
            return "head" in f.metadata()
    except Exception:
        return False


def _hash(head_VD: Tensor) -> str:
    return sha256(head_VD.cpu().numpy().tobytes()).hexdigest()[:16]


def _check_head(expected: str, head_VD: Tensor) -> None:
    if _hash(head_VD) != expected:
        raise ValueError(
            "the output head differs from the unquantized model's; Divergence compares models that share it, "
            "so a method must leave lm_head (and a tied embedding) alone"
        )
