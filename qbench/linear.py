"""A linear layer whose weight is quantized."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qbench.grid import ActQuant
from qbench.weights import QuantWeight


class QuantLinear(nn.Module):
    """y = Q(x) W_hat^T + b, where ``acts`` quantizes x; None leaves x as it is.

    ``path`` "dequantized": the weight is W_hat in ``dtype``, on any device; accuracy is measured on this path.
    "packed": the weight is stored at its own bit-width and a kernel of ``qbench.kernels`` multiplies, on a GPU or in
    Triton's interpreter; activations are float16 or bfloat16. Both compute the same, up to the dtype's rounding.

    Raises: ValueError for a weight or activations that no kernel takes.
    """

    def __init__(
        self,
        weight: QuantWeight,
        bias: Tensor | None,
        acts: ActQuant | None,
        dtype: torch.dtype,
        path: Literal["dequantized", "packed"] = "dequantized",
    ):
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.acts, self.packed = acts, None
        if path == "packed":
            from qbench.kernels.packed import pack_weight  # needs Triton, which the other path does not

            self.packed = pack_weight(weight, acts)
        elif path == "dequantized":
            self.weight = nn.Parameter(weight.dequantize().to(dtype), requires_grad=False)
        else:
            raise ValueError(f'path must be "dequantized" or "packed", got {path!r}')

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            y = self.packed(x)  # the kernel quantizes activations
            return y if self.bias is None else y + self.bias
        return F.linear(x if self.acts is None else self.acts(x), self.weight, self.bias)

    def extra_repr(self) -> str:
        size = "" if self.packed is not None else f"{self.weight.shape[1]}, {self.weight.shape[0]}, "
        return f"{size}acts={self.acts}"
