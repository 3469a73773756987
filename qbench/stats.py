"""What calibration remembers of a linear's input: O(K^2) memory however many tokens pass.

A Gram matrix is symmetric, so only blocks on and above its diagonal are computed: 56 % of the multiplications. Whatever
needs the rest asks for ``gram_KK``.

Dimension key: K input channels, N output channels, T tokens.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

PARTS = 8  # a symmetric product is computed in so many block columns


class Statistic:
    """Folds the inputs of a stage, chunk by chunk, into something small."""

    def __init__(self, K: int, device: torch.device | str):
        self.K = K
        self.device = device

    def update(self, x_TK: Tensor) -> None:
        raise TypeError(f"{type(self).__name__} does not say how to take in new inputs")

    def rescale(self, s_K: Tensor) -> None:
        """Makes this the statistic of x / s."""
        raise TypeError(f"{type(self).__name__} does not say how it changes when inputs are rescaled")

    def is_finite(self) -> bool:
        raise TypeError(f"{type(self).__name__} does not say whether its inputs were finite")

    def state(self) -> dict[str, Tensor]:
        """All it remembers, by attribute name; ``restore`` takes it back."""
        raise TypeError(f"{type(self).__name__} does not say what it remembers")

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            setattr(self, name, value.to(self.device))


class AbsMax(Statistic):
    """``absmax_K``: the largest |x| of each channel."""

    def __init__(self, K, device):
        super().__init__(K, device)
        self.absmax_K = torch.zeros(K, device=device)

    def update(self, x_TK):
        self.absmax_K = torch.maximum(self.absmax_K, x_TK.abs().amax(0).float())

    def rescale(self, s_K):
        self.absmax_K /= s_K

    def is_finite(self):
        return bool(torch.isfinite(self.absmax_K).all())

    def state(self):
        return {"absmax_K": self.absmax_K}


class Gram(Statistic):
    """``gram_KK`` = mean over tokens of x x^T, and ``mean_abs_K`` = mean |x|. The layer-wise Hessian is twice
    the Gram."""

    def __init__(self, K, device):
        super().__init__(K, device)
        self._sum_KK = torch.zeros(K, K, device=device)  # only blocks on and above the diagonal until mirrored
        self._abs_K = torch.zeros(K, device=device)
        self._tokens = torch.zeros((), dtype=torch.int64)
        self._mirrored = False
        self._factors: dict = {}

    @property
    def tokens(self) -> int:
        return int(self._tokens)

    def update(self, x_TK):
        x = x_TK.float()
        for start, end in self._parts():
            self._sum_KK[:end, start:end].addmm_(x[:, :end].T, x[:, start:end])
        self._abs_K += x.abs().sum(0)
        self._tokens = self._tokens + len(x)
        self._mirrored = False
        self._factors.clear()

    def rescale(self, s_K):
        self._sum_KK.div_(s_K[:, None]).div_(s_K)
        self._abs_K /= s_K
        self._factors.clear()

    def is_finite(self):
        return bool(torch.isfinite(self._sum_KK.diagonal()).all())

    def state(self):
        return {"_sum_KK": self._sum_KK, "_abs_K": self._abs_K, "_tokens": self._tokens}

    def restore(self, state):
        super().restore(state)
        self._tokens, self._mirrored = self._tokens.cpu(), False
        self._factors.clear()

    @property
    def gram_KK(self) -> Tensor:
        return self._symmetric_sum() / self.tokens

    @property
    def mean_abs_K(self) -> Tensor:
        return self._abs_K / self.tokens

    def diagonal_blocks(self, g: int) -> Tensor:
        """[K / g, g, g]: the Grams of runs of ``g`` channels."""
        G = self.K // g
        return self._symmetric_sum().view(G, g, G, g)[range(G), :, range(G)] / self.tokens

    def energy(self, d_NK: Tensor) -> Tensor:
        """mean over tokens of ||d x||^2, one number a row: diag(d G d^T)."""
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

        m is the mean of the diagonal over channels that fired: with it, U scales with the unit of x. The authors put
        1 in the place of each zero before they take the mean, which is small or large depending on that unit. Here a
        channel that never fired gets the damping alone; it takes part in no other channel's update.
        U comes from one Cholesky factorisation of the matrix read backwards: G = R R^T with R upper, U = R^-1.
        Where the factorisation fails, more damping is tried, then float64; each step is a note. The result is kept,
        for the linears that share this input.

        Raises: ArithmeticError when nothing helps.
        """
        key = (damp, None if perm_K is None else tuple(perm_K.tolist()))
        if key not in self._factors:
            self._factors[key] = self._factor(damp, perm_K)
        return self._factors[key]

    def _factor(self, damp, perm_K):
        if not self.is_finite():
            raise ArithmeticError("the Gram matrix of the inputs is not finite")
        notes = []
        for dtype in (torch.float32, torch.float64):
            for factor in (1, 10, 100):
                H = self._backwards(damp * factor, perm_K, dtype)
                if _inverse_factor_(H):
                    U = H.tril_().flip(0, 1).float()
                    del H  # a matrix of 12,288 channels takes 0.6 GB
                    if torch.isfinite(U).all():
                        return U, tuple(notes)
                notes.append(f"Cholesky failed with damping {damp * factor:g} in {str(dtype).removeprefix('torch.')}")
        raise ArithmeticError(
            f"the {self.K} x {self.K} Gram matrix of {self.tokens} tokens cannot be factorised, "
            f"not with damping {100 * damp:g} in float64; use more calibration tokens or a larger damping"
        )

    def _backwards(self, damp, perm_K, dtype) -> Tensor:
        """The damped Gram with rows and columns reversed, of which Cholesky reads the lower half: our upper one."""
        if perm_K is None:
            H = self._sum_KK.to(dtype).flip(0, 1)
        else:
            back = perm_K.flip(0)
            H = self._symmetric_sum()[back][:, back].to(dtype)
        H /= self.tokens
        diagonal = H.diagonal()
        mean = diagonal.sum() / diagonal.count_nonzero()
        diagonal += damp * mean.nan_to_num(1)  # an input that is always zero: any damping will do
        return H

    def _symmetric_sum(self) -> Tensor:
        if not self._mirrored:
            for start, end in self._parts():
                self._sum_KK[start:end, :start] = self._sum_KK[:start, start:end].T
            self._mirrored = True
        return self._sum_KK

    def _parts(self) -> Iterator[tuple[int, int]]:
        """Block columns, (first, end): of 64 n channels, whose products do not depend on the number of threads."""
        width = 64 * -(-self.K // (64 * PARTS))
        return ((start, min(start + width, self.K)) for start in range(0, self.K, width))


def _inverse_factor_(H: Tensor) -> bool:
    """Puts L^-1, with H = L L^T, into the lower half of H, by halves; False where H is not positive definite.

    Small factorisations and products of 64 n channels do not depend on the number of threads. LAPACK's sums over a
    large matrix do, in the last bit, and GPTQ turns another last bit into other codes.
    """
    n = len(H)
    if n <= 64:
        L, failed = torch.linalg.cholesky_ex(H)
        if not failed:
            H.copy_(torch.linalg.solve_triangular(L, torch.eye(n, dtype=H.dtype, device=H.device), upper=False))
        return not failed
    h = -(-n // 128) * 64
    A, B, C = H[:h, :h], H[h:, :h], H[h:, h:]
    if not _inverse_factor_(A):
        return False
    B.copy_(B @ A.tril_().T)
    C.addmm_(B, B.T, alpha=-1)
    if not _inverse_factor_(C):
        return False
    B.copy_(C.tril_() @ B @ A).neg_()
    return True
