"""A linear layer whose weight is quantized."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qbench.grid import ActQuant, QuantWeight


class QuantLinear(nn.Module):
    """y = Q(x) W_hat^T + b: the weight is the dequantized one, in ``dtype``; ``acts`` quantizes x, None leaves it."""

    def __init__(self, weight: QuantWeight, bias: Tensor | None, acts: ActQuant | None, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(weight.dequantize().to(dtype), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.acts = acts

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x if self.acts is None else self.acts(x), self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, acts={self.acts}"
