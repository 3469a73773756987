"""What calibration remembers of a linear's input: O(K^2) memory however many tokens pass.

Dimension key: K input channels, T tokens.
"""

import torch
from torch import Tensor


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


class Gram(Statistic):
    """``gram_KK`` = mean over tokens of x x^T, and ``mean_abs_K`` = mean |x|. The layer-wise Hessian is twice
    the Gram."""

    def __init__(self, K, device):
        super().__init__(K, device)
        self._sum_KK = torch.zeros(K, K, device=device)
        self._abs_K = torch.zeros(K, device=device)
        self.tokens = 0
        self._factors: dict = {}

    def update(self, x_TK):
        x = x_TK.float()
        self._sum_KK.addmm_(x.T, x)
        self._abs_K += x.abs().sum(0)
        self.tokens += len(x)
        self._factors.clear()

    def rescale(self, s_K):
        self._sum_KK /= s_K[:, None] * s_K
        self._abs_K /= s_K
        self._factors.clear()

    def is_finite(self):
        return bool(torch.isfinite(self._sum_KK.diagonal()).all())

    @property
    def gram_KK(self) -> Tensor:
        return self._sum_KK / self.tokens

    @property
    def mean_abs_K(self) -> Tensor:
        return self._abs_K / self.tokens

    def energy(self, d_NK: Tensor) -> Tensor:
        """mean over tokens of ||d x||^2, one number a row: diag(d G d^T)."""
        return ((d_NK @ self._sum_KK) * d_NK).sum(-1) / self.tokens

    def relative_error(self, q_NK: Tensor, w_NK: Tensor) -> float:
        """||(Q - W) X||_F / ||W X||_F."""
        moved = self.energy(q_NK - w_NK).sum().clamp(min=0)
        return float((moved / self.energy(w_NK).sum().clamp(min=1e-30)).sqrt())

    def inverse_cholesky(self, damp: float, perm_K: Tensor | None = None) -> tuple[Tensor, tuple[str, ...]]:
        """Upper triangular U with (G + damp mean(diag G) I)^-1 = U^T U, and notes; columns in the order ``perm_K``.

        U comes from one Cholesky factorisation of the matrix read backwards: G = R R^T with R upper, U = R^-1.
        Channels that never fired get a 1 on the diagonal. Where the factorisation fails, more damping is tried,
        then float64; each step is a note. The result is kept, for the linears that share this input.

        Raises: ArithmeticError when nothing helps.
        """
        key = (damp, None if perm_K is None else tuple(perm_K.tolist()))
        if key not in self._factors:
            self._factors[key] = self._factor(damp, perm_K)
        return self._factors[key]

    def _factor(self, damp, perm_K):
        G = self.gram_KK
        if not torch.isfinite(G).all():
            raise ArithmeticError("the Gram matrix of the inputs is not finite")
        G = (G + G.T) / 2
        G.diagonal()[G.diagonal() == 0] = 1
        if perm_K is not None:
            G = G[perm_K][:, perm_K]
        mean = G.diagonal().mean()
        notes = []
        for dtype in (torch.float32, torch.float64):
            for factor in (1, 10, 100):
                H = G.to(dtype, copy=True).flip(0, 1)
                H.diagonal().add_(damp * factor * mean)
                L, failed = torch.linalg.cholesky_ex(H)
                if not failed:
                    eye = torch.eye(self.K, dtype=dtype, device=G.device)
                    U = torch.linalg.solve_triangular(L.flip(0, 1), eye, upper=True).float()
                    if torch.isfinite(U).all():
                        return U, tuple(notes)
                notes.append(f"Cholesky failed with damping {damp * factor:g} in {str(dtype).removeprefix('torch.')}")
        raise ArithmeticError(
            f"the {self.K} x {self.K} Gram matrix of {self.tokens} tokens cannot be factorised, "
            f"not with damping {100 * damp:g} in float64; use more calibration tokens or a larger damping"
        )
