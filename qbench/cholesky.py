"""A Cholesky factorisation with the same bits for every number of threads."""

import torch
from torch import Tensor


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
