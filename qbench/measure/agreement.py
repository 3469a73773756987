"""Whether the packed model, whose speed is measured, agrees with the dequantized one, whose accuracy is measured.

Both run on the same tokens in a 16-bit dtype. Each linear of the packed model gets the inputs of its counterpart, so
that errors cannot cancel, and then the logits are compared. Neither model is exact: only dequantized weights are
rounded to the dtype, and both round their outputs. What roundings do to logits depends on the model, so that is
measured too, with noise of one rounding at every linear. A larger difference is a bug and recorded as a failure.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
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

LAYER_LIMIT = 4  # roundings (eps of the dtype) that a linear's outputs may differ by, in the root mean square
LOGITS_LIMIT = 4  # times the effect on logits of noise of one rounding at every linear
FEW_TOKENS = (1, 16, 64)  # kernels take other paths for other numbers of tokens


@dataclass(frozen=True)
class Agreement(TextMeasure):
    """``agreement/error``: relative difference of all logits. ``agreement/rounding``: the same for noise of one
    rounding at every linear's output. ``agreement/worst_layer``: the largest relative difference of a linear's outputs.
    ``agreement/top1``: share of positions with the same most likely token.

    ``dtype``: of the activations where the model itself is float32, which no kernel takes; otherwise the model's own.
    """

    name = "agreement"
    runs_packed = True

    dtype: Literal["float16", "bfloat16"] = "bfloat16"

    def data(self, ctx: Context) -> dict:
        if ctx.packed is None:
            raise ValueError("eval=agreement compares two ways to run a quantized model; choose a method, not none")
        return {"kernels": kernels_of(ctx.device)} | super().data(ctx)

    def run(self, model: nn.Module, ctx: Context) -> dict[str, Metric]:
        dtype = DTYPES[self.dtype] if model.dtype == torch.float32 else model.dtype
        model = model if model.dtype == dtype else copy.deepcopy(model).to(dtype)  # later measurements need it as it is
        ids_BT = self.windows(ctx)
        return compare(model, ctx.packed().to(dtype), batches(ids_BT, ctx, "agreement", 1))  # so few use fused kernels

    def work(self, shape: Shape) -> Work:
        return super().work(shape).times(3)  # dequantized, with noise, packed


@torch.inference_mode()
def compare(model: nn.Module, packed: nn.Module, ids: Iterable[Tensor]) -> dict[str, Metric]:
    """The metrics of ``Agreement`` for two models of the same 16-bit dtype, on batches of token ids [B, T].

    Raises: ArithmeticError where they differ by more than rounding.
    """
    head_VD, layers = float_head(model), LayerErrors(model, packed)
    difference, noise, size, same, count = 0.0, 0.0, 0.0, 0, 0
    for ids_BT in ids:
        p_BTD, r_BTD = (hooked_states(model, ids_BT, hook) for hook in (layers.add, with_noise))
        q_BTD = hidden_states(packed, ids_BT)
        for (_, p), (_, q), (_, r) in zip(*(logit_chunks(x, head_VD) for x in (p_BTD, q_BTD, r_BTD))):
            difference += (q - p).double().square().sum().item()
            noise += (r - p).double().square().sum().item()
            size += p.double().square().sum().item()
            same += (p.argmax(-1) == q.argmax(-1)).sum().item()
            count += len(p)
    error, rounding, worst = (difference / size) ** 0.5, (noise / size) ** 0.5, layers.worst()
    refuse(error, rounding, worst, model.dtype)
    return {
        "agreement/error": Metric(error, "relative", count),
        "agreement/rounding": Metric(rounding, "relative", count),
        "agreement/worst_layer": Metric(worst[0], "relative", len(layers.sums)),
        "agreement/top1": Metric(same / count, "fraction", count),
    }


def hooked_states(model: nn.Module, ids_BT: Tensor, hook: Callable[[int, Tensor, Tensor], Tensor | None]) -> Tensor:
    """``hidden_states``; ``hook(i, input, output)`` runs after the i-th quantized linear and may replace its output."""
    with ExitStack() as hooks:
        for i, (_, linear) in enumerate(quantized_linears(model)):
            hooks.enter_context(linear.register_forward_hook(lambda _, inputs, y, i=i: hook(i, inputs[0], y)))
        return hidden_states(model, ids_BT)


def quantized_linears(model: nn.Module) -> list[tuple[str, QuantLinear]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, QuantLinear)]


def with_noise(i: int, x: Tensor, y: Tensor) -> Tensor:
    """y (1 + eps u), u uniform in -1..1 and the same at every call for linear i."""
    u = torch.rand(y.shape, device=y.device, generator=torch.Generator(y.device).manual_seed(i)) * 2 - 1
    return (y.float() * (1 + torch.finfo(y.dtype).eps * u)).to(y.dtype)


class LayerErrors:
    """Runs packed linears on the inputs of their counterparts, on all tokens and on the first few, and adds up the
    squared differences of the outputs."""

    def __init__(self, model: nn.Module, packed: nn.Module):
        self.packed = [(name, packed.get_submodule(name)) for name, _ in quantized_linears(model)]
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # of squared differences and outputs

    def add(self, i: int, x: Tensor, y: Tensor) -> None:
        (name, linear), x_MK, y_MN = self.packed[i], x.flatten(0, -2), y.flatten(0, -2)
        for tokens in sorted({t for t in FEW_TOKENS if t < len(x_MK)} | {len(x_MK)}):
            sums = self.sums[f"{name}, {tokens} tokens"]
            sums[0] += (linear(x_MK[:tokens]) - y_MN[:tokens]).double().square().sum().item()
            sums[1] += y_MN[:tokens].double().square().sum().item()

    def worst(self) -> tuple[float, str]:
        """The largest relative difference and its place; NaN counts as the largest."""
        relative = [((d / s) ** 0.5 if s else d, name) for name, (d, s) in self.sums.items()]
        return max(relative, key=lambda found: math.inf if math.isnan(found[0]) else found[0])


def refuse(error: float, rounding: float, worst: tuple[float, str], dtype: torch.dtype) -> None:
    """Raises ArithmeticError for differences beyond the rounding of ``dtype`` and its effect on logits."""
    eps = torch.finfo(dtype).eps
    if not worst[0] <= LAYER_LIMIT * eps:
        raise ArithmeticError(
            f"packed and dequantized {worst[1]}: outputs differ by {worst[0]:.2e}, more than {LAYER_LIMIT} "
            f"roundings of {dtype} ({LAYER_LIMIT * eps:.2e}): a kernel is wrong"
        )
    if not error <= LOGITS_LIMIT * rounding:
        raise ArithmeticError(
            f"packed and dequantized logits differ by {error:.2e}, where one rounding at every linear changes them by "
            f"{rounding:.2e}: packing is wrong"
        )


def kernels_of(device: str) -> str:
    """What runs the kernels, which is part of a record's identity; ValueError where no kernel can run."""
    try:
        from qbench.kernels.launch import interpreted
    except ImportError as e:
        raise ValueError("packed weights need Triton: pip install 'qbench[gpu]'") from e
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if not interpreted():
        raise ValueError(f"machine.device={device}: kernels run on a GPU; set TRITON_INTERPRET=1 to interpret them")
    return "interpreted"
