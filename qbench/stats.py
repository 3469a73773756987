"""Statistics of a linear's input: O(K^2) memory for any number of tokens.

Of a symmetric Gram matrix only blocks on and above the diagonal are computed, 56 % of the multiplications.

Dimension key: K input channels, N output channels, T tokens.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.types import Device

from qbench.costs import PARTS, Work, gram_flops


class Statistic:
    """Gathers what a method needs to know about the inputs of a stage, chunk by chunk."""

    def __init__(self, K: int, device: Device):
        self.K, self.device = K, device

    def update(self, x_TK: Tensor) -> None:
        """Adds a chunk of inputs."""
        raise NotImplementedError(f"{type(self).__name__} does not define update")

    def rescale(self, s_K: Tensor) -> None:
        """Turns this into the statistic of x / s."""
        raise NotImplementedError(f"{type(self).__name__} does not define rescale")

    def is_finite(self) -> bool:
        """Whether all inputs were finite."""
        raise NotImplementedError(f"{type(self).__name__} does not define is_finite")

    def state(self) -> dict[str, Tensor]:
        """{attribute: tensor}, all that ``restore`` needs."""
        raise NotImplementedError(f"{type(self).__name__} does not define state")

    @classmethod
    def work(cls, K: int, tokens: int) -> Work:
        """What ``update`` does with that many tokens; only ``qbench plan`` asks."""
        return Work(unknown=(f"the statistic {cls.__name__}",))

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            setattr(self, name, value.to(self.device))


class AbsMax(Statistic):
    """``absmax_K``: the largest |x| per channel."""

    def __init__(self, K: int, device: Device):
        super().__init__(K, device)
        self.absmax_K = torch.zeros(K, device=device)

    def update(self, x_TK: Tensor) -> None:
        self.absmax_K = torch.maximum(self.absmax_K, x_TK.abs().amax(0).float())

    def rescale(self, s_K: Tensor) -> None:
        self.absmax_K /= s_K

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.absmax_K).all())

    def state(self) -> dict[str, Tensor]:
        return {"absmax_K": self.absmax_K}

    @classmethod
    def work(cls, K: int, tokens: int) -> Work:
        return Work(bytes=6 * K * tokens)  # x is read, |x| written and read, 16 bits each


class Gram(Statistic):
    """``gram_KK``: mean over tokens of x x^T, half the layer-wise Hessian; ``mean_abs_K``: mean of |x|."""

    def __init__(self, K: int, device: Device):
        super().__init__(K, device)
        self._sum_KK = torch.zeros(K, K, device=device)  # only blocks on and above the diagonal until mirrored
        self._abs_K = torch.zeros(K, device=device)
        self._tokens = torch.zeros((), dtype=torch.int64)
        self._mirrored, self._factors = False, dict[tuple, tuple]()

    @property
    def tokens(self) -> int:
        return int(self._tokens)

    def update(self, x_TK: Tensor) -> None:
        x = x_TK.float()
        for start, end in self._parts():
            self._sum_KK[:end, start:end].addmm_(x[:, :end].T, x[:, start:end])
        self._abs_K += x.abs().sum(0)
        self._tokens, self._mirrored = self._tokens + len(x), False
        self._factors.clear()

    def rescale(self, s_K: Tensor) -> None:
        self._sum_KK.div_(s_K[:, None]).div_(s_K)
        self._abs_K /= s_K
        self._factors.clear()

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self._sum_KK.diagonal()).all())

    def state(self) -> dict[str, Tensor]:
        return {"_sum_KK": self._sum_KK, "_abs_K": self._abs_K, "_tokens": self._tokens}

    def restore(self, state: dict[str, Tensor]) -> None:
        super().restore(state)
        self._tokens, self._mirrored = self._tokens.cpu(), False
        self._factors.clear()

    @classmethod
    def work(cls, K: int, tokens: int) -> Work:
        return Work(float32=gram_flops(K, tokens))

    @property
    def gram_KK(self) -> Tensor:
        return self._symmetric_sum() / self.tokens

    @property
    def mean_abs_K(self) -> Tensor:
        return self._abs_K / self.tokens

    def diagonal_blocks(self, g: int) -> Tensor:
        """[K / g, g, g]: one Gram per run of ``g`` channels."""
        G = self.K // g
        return self._symmetric_sum().view(G, g, G, g)[range(G), :, range(G)] / self.tokens

    def energy(self, d_NK: Tensor) -> Tensor:
        """Mean over tokens of (d x)^2 per row of d: diag(d G d^T)."""
        total = torch.zeros(len(d_NK), device=d_NK.device)
        for start, end in self._parts():
            d = d_NK[:, start:end]
            product = d @ self._sum_KK[start:end, start:end]
            if start:
                product.addmm_(d_NK[:, :start], self._sum_KK[:start, start:end], alpha=2)
            total += product.mul_(d).sum(-1)
        return total / self.tokens

    def relative_error(self, q_NK: Tensor, w_NK: Tensor) -> float:
        """||(Q - W) X||_F / ||W X||_F."""
        moved = self.energy(q_NK - w_NK).sum().clamp(min=0)
        return float((moved / self.energy(w_NK).sum().clamp(min=1e-30)).sqrt())

    def inverse_cholesky(self, damp: float, perm_K: Tensor | None = None) -> tuple[Tensor, tuple[str, ...]]:
        """Upper triangular U with (G + damp m I)^-1 = U^T U, and notes; columns in the order ``perm_K``.

        m is the mean of the diagonal over channels that were ever nonzero, so that U scales with the unit of x (GPTQ's
        authors take the mean after they replace each zero by 1). A channel that is always zero gets the damping alone.
        U comes from one Cholesky factorisation of the reversed matrix: G = R R^T with R upper, U = R^-1. Where it
        fails, more damping is tried, then float64; each step is a note. The result is kept for the other linears with
        this input. Raises: ArithmeticError when all attempts fail.
        """
        key = (damp, None if perm_K is None else tuple(perm_K.tolist()))
        if key not in self._factors:
            self._factors[key] = self._factor(damp, perm_K)
        return self._factors[key]

    def _factor(self, damp: float, perm_K: Tensor | None) -> tuple[Tensor, tuple[str, ...]]:
        if not self.is_finite():
            raise ArithmeticError("the Gram matrix of the inputs is not finite")
        notes = []
        for dtype in (torch.float32, torch.float64):
            for factor in (1, 10, 100):
                H = self._backwards(damp * factor, perm_K, dtype)
                if inverse_factor_(H):
                    U = H.tril_().flip(0, 1).float()
                    del H  # a matrix of 12,288 channels takes 0.6 GB
                    if torch.isfinite(U).all():
                        return U, tuple(notes)
                notes.append(f"Cholesky failed with damping {damp * factor:g} in {str(dtype).removeprefix('torch.')}")
        what = f"the {self.K} x {self.K} Gram matrix of {self.tokens} tokens cannot be factorised"
        tried = f"not with damping {100 * damp:g} in float64"
        raise ArithmeticError(f"{what}, {tried}; use more calibration tokens or a larger damping")

    def _backwards(self, damp: float, perm_K: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The damped Gram, rows and columns reversed: Cholesky reads its lower half, which is our upper half."""
        back = None if perm_K is None else perm_K.flip(0)
        H = self._sum_KK.flip(0, 1) if back is None else self._symmetric_sum()[back][:, back]
        H = H.to(dtype).div_(self.tokens)
        diagonal = H.diagonal()
        mean = diagonal.sum() / diagonal.count_nonzero()
        diagonal += damp * mean.nan_to_num(1)  # where all inputs are zero, any damping will do
        return H

    def _symmetric_sum(self) -> Tensor:
        if not self._mirrored:
            for start, end in self._parts():
                self._sum_KK[start:end, :start] = self._sum_KK[:start, start:end].T
            self._mirrored = True
        return self._sum_KK

    def _parts(self) -> Iterator[tuple[int, int]]:
        """(start, end) of block columns of 64 n channels: their products do not depend on the number of threads."""
        width = 64 * -(-self.K // (64 * PARTS))
        return ((start, min(start + width, self.K)) for start in range(0, self.K, width))


def inverse_factor_(H: Tensor) -> bool:
    """Writes L^-1, where H = L L^T, into the lower half of H, by halves; False where H is not positive definite.

    Small factorisations and products of 64 n channels do not depend on the number of threads. LAPACK's sums over a
    large matrix do, in the last bit, and another last bit leads GPTQ to other codes.
    """
    n = len(H)
    if n <= 64:
        L, failed = torch.linalg.cholesky_ex(H)
        if not failed:
            H.copy_(torch.linalg.solve_triangular(L, torch.eye(n, dtype=H.dtype, device=H.device), upper=False))
        return not failed
    h = -(-n // 128) * 64
    A, B, C = H[:h, :h], H[h:, :h], H[h:, h:]
    if not inverse_factor_(A):
        return False
    B.copy_(B @ A.tril_().T)
    C.addmm_(B, B.T, alpha=-1)
    if not inverse_factor_(C):
        return False
    B.copy_(C.tril_() @ B @ A).neg_()
    return True
