"""Whether the packed model computes what the dequantized one does: the one that is fast, and the one that is measured.

Both run on the same tokens in a 16-bit dtype. Each linear of the packed model gets what its counterpart reads, so that
errors cannot hide behind each other, and then the logits of the whole are compared. Neither is the truth: dequantized
weights are rounded to the dtype, packed ones are not, and both round their outputs. What such roundings do to logits is
the model's own matter (with 4-bit activations a rounding can become a step of a seventh), so it is measured: noise of
one rounding at every linear. A difference beyond that is a bug of a kernel or of packing, and then nothing is recorded
but the failure.
"""

import copy
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from qbench.costs import Work
from qbench.linear import QuantLinear
from qbench.measure.base import Context, TextMeasure, hidden_states
from qbench.measure.perplexity import batches, float_head, logit_chunks
from qbench.models.checkpoint import DTYPES
from qbench.record import Metric
from qbench.shape import Shape

LAYER_LIMIT = (
    4  # rounding errors of the dtype (its eps) that an output of a linear may differ by, in the root mean square
)
LOGITS_LIMIT = 4  # times what noise of one rounding at every linear does to the logits


@dataclass(frozen=True)
class Agreement(TextMeasure):
    """``agreement/error``, relative difference of all logits; ``agreement/rounding``, what noise of one rounding at
    every linear's output does to them; ``agreement/worst_layer``, the largest difference of a linear's outputs;
    ``agreement/top1``, share of positions with the same most likely token.

    ``dtype``: of the activations where the model itself is float32, which no kernel takes; else the model's own counts.
    """

    name = "agreement"
    runs_packed = True

    dtype: Literal["float16", "bfloat16"] = "bfloat16"

    def data(self, ctx: Context) -> dict:
        if ctx.packed is None:
            raise ValueError("eval=agreement compares two ways to run a quantized model; choose a method, not none")
        check_kernels(ctx.device)
        return super().data(ctx) | {"kernels": kernels_of(ctx.device)}

    @torch.inference_mode()
    def run(self, model: nn.Module, ctx: Context) -> dict[str, Metric]:
        dtype = DTYPES[self.dtype] if model.dtype == torch.float32 else model.dtype
        model = model if model.dtype == dtype else copy.deepcopy(model).to(dtype)  # others measure it after us
        packed = ctx.packed().to(dtype)
        head_VD, ids_BT = float_head(model), self.windows(ctx)
        layers = Comparison(model, packed)
        difference, noise, size, same, count = 0.0, 0.0, 0.0, 0, 0
        for ids in batches(ids_BT, ctx, "agreement", 1):  # few tokens: the kernels' own ways
            with layers:
                p_BTD = hidden_states(model, ids)
            with Rounding(model):
                r_BTD = hidden_states(model, ids)
            q_BTD = hidden_states(packed, ids)
            for (_, p), (_, q), (_, r) in zip(*(logit_chunks(x, head_VD) for x in (p_BTD, q_BTD, r_BTD))):
                difference += (q - p).double().square().sum().item()
                noise += (r - p).double().square().sum().item()
                size += p.double().square().sum().item()
                same += (p.argmax(-1) == q.argmax(-1)).sum().item()
                count += len(p)
        error, rounding, worst = (difference / size) ** 0.5, (noise / size) ** 0.5, layers.worst()
        refuse(error, rounding, worst, dtype)
        return {
            "agreement/error": Metric(error, "relative", count),
            "agreement/rounding": Metric(rounding, "relative", count),
            "agreement/worst_layer": Metric(worst[0], "relative", len(layers.errors)),
            "agreement/top1": Metric(same / count, "fraction", count),
        }

    def work(self, shape: Shape) -> Work:
        return super().work(shape).times(3)  # dequantized, with noise, packed


class Comparison:
    """While entered, every quantized linear of ``model`` that runs has its packed counterpart run on the same input: on
    all of it, and on the first 1, 16 and 64 tokens, since a kernel's ways differ with their number."""

    def __init__(self, model: nn.Module, packed: nn.Module):
        self.pairs = {n: (m, packed.get_submodule(n)) for n, m in model.named_modules() if isinstance(m, QuantLinear)}
        self.errors: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def __enter__(self):
        self.hooks = [m.register_forward_hook(self._hook(name, other)) for name, (m, other) in self.pairs.items()]

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def _hook(self, name: str, other: QuantLinear):
        def compare(_, inputs: tuple[Tensor], y: Tensor) -> None:
            x_MK, y_MN = inputs[0].flatten(0, -2), y.flatten(0, -2)
            for tokens in sorted({t for t in (1, 16, 64) if t < len(x_MK)} | {len(x_MK)}):
                sums = self.errors[f"{name}, {tokens} tokens"]
                sums[0] += (other(x_MK[:tokens]) - y_MN[:tokens]).double().square().sum().item()
                sums[1] += y_MN[:tokens].double().square().sum().item()

        return compare

    def worst(self) -> tuple[float, str]:
        """The largest relative difference and where it is; NaN counts as the largest."""
        relative = {name: (d / s) ** 0.5 if s else d for name, (d, s) in self.errors.items()}
        name = max(relative, key=lambda n: float("inf") if relative[n] != relative[n] else relative[n])
        return relative[name], name


class Rounding:
    """While entered, outputs of quantized linears are multiplied by 1 + eps u, u uniform in -1..1, always the same."""

    def __init__(self, model: nn.Module):
        self.linears = [m for m in model.modules() if isinstance(m, QuantLinear)]

    def __enter__(self):
        self.hooks = [m.register_forward_hook(self._hook(seed)) for seed, m in enumerate(self.linears)]

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def _hook(self, seed: int):
        def disturb(_, inputs: tuple[Tensor], y: Tensor) -> Tensor:
            draw = torch.Generator(y.device).manual_seed(seed)
            u = torch.rand(y.shape, device=y.device, generator=draw) * 2 - 1
            return (y.float() * (1 + torch.finfo(y.dtype).eps * u)).to(y.dtype)

        return disturb


def refuse(error: float, rounding: float, worst: tuple[float, str], dtype: torch.dtype) -> None:
    """ArithmeticError where a difference is beyond the rounding of ``dtype`` and what becomes of it (``rounding``)."""
    eps = torch.finfo(dtype).eps
    if not worst[0] <= LAYER_LIMIT * eps:
        raise ArithmeticError(
            f"packed and dequantized {worst[1]}: outputs differ by {worst[0]:.2e}, more than {LAYER_LIMIT} "
            f"roundings of {dtype} ({LAYER_LIMIT * eps:.2e}): a kernel is wrong, and nothing is recorded"
        )
    if not error <= LOGITS_LIMIT * rounding:
        raise ArithmeticError(
            f"packed and dequantized logits differ by {error:.2e}, where one rounding at every linear changes them by "
            f"{rounding:.2e}: packing is wrong somewhere, and nothing is recorded"
        )


def check_kernels(device: str) -> None:
    """ValueError where no kernel can run."""
    try:
        from qbench.kernels.launch import interpreted
    except ImportError as e:
        raise ValueError("packed weights need Triton: pip install 'qbench[gpu]'") from e
    if not (device.startswith("cuda") or interpreted()):
        raise ValueError(
            f"machine.device={device}: the kernels run on a GPU; set TRITON_INTERPRET=1 to interpret them on the CPU"
        )


def kernels_of(device: str) -> str:
    """What runs the kernels: part of what is claimed."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "interpreted"
