"""Slow, independent versions of the methods' equations in float64, and random problems to compare on."""

import torch

from qbench.stats import Gram


def problem(N=16, K=128, T=600, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(T, K // 4, generator=g) @ torch.randn(K // 4, K, generator=g) / (K // 4) ** 0.5
    x += 0.3 * torch.randn(T, K, generator=g)
    x *= torch.rand(K, generator=g).mul(3).exp()
    return torch.randn(N, K, generator=g) * 0.05, x


def seen(x, kind=Gram):
    stat = kind(x.shape[1], "cpu")
    stat.update(x)
    return stat


def obq(w, gram, grid, perm, damp, static):
    """GPTQ as optimal brain quantization, float64: the remaining Hessian is inverted anew for each column."""
    N, K = w.shape
    g = grid.columns(K)
    W, G = w.double().clone()[:, perm], gram.double()[perm][:, perm]
    H = G + damp * G.diagonal().mean() * torch.eye(K)
    codes = torch.zeros(N, K)
    for i in range(K):
        if static or g == K:
            start = perm[i] // g * g
            scale, zero = grid.fit(w[:, start : start + g])
        elif i % g == 0:
            scale, zero = grid.fit(W[:, i : i + g].float())
        codes[:, i] = grid.encode(W[:, i].float(), scale, zero)
        Hinv = torch.linalg.inv(H[i:, i:])
        error = (W[:, i] - grid.decode(codes[:, i], scale, zero).double()) / Hinv[0, 0]
        W[:, i:] -= error[:, None] * Hinv[0]
    return codes[:, torch.argsort(perm)].to(torch.uint8)


def binarized(x, passes=1):
    """The sum of ``passes`` binarizations of each row, every one of what those before it left over."""
    total = torch.zeros_like(x)
    for _ in range(passes if x.shape[1] else 0):
        mean = (x - total).mean(1, keepdim=True)
        centred = x - total - mean
        total = total + mean + torch.where(centred >= 0, 1.0, -1.0) * centred.abs().mean(1, keepdim=True)
    return total


def salient_columns(x, most, rest_passes=2):
    """Columns of x [N, k], ranked by their sums: so many that both parts, binarized twice, have the least error."""
    order = sorted(range(x.shape[1]), key=lambda j: -x[:, j].abs().sum().item())
    errors = {}
    for count in range(1, most + 1):
        parts = (x[:, order[:count]], 2), (x[:, order[count:]], rest_passes)
        errors[count] = sum((part - binarized(part, passes)).square().sum().item() for part, passes in parts)
    return sorted(order[: min(errors, key=errors.get)])


def sparse_part(x, rest, zeros):
    """Of the columns ``rest`` of x the entries from p on, p of 81 quantiles of their magnitudes and ``zeros`` zeros."""
    sizes = torch.cat([x[:, rest].abs().flatten(), torch.zeros(zeros)]).sort().values.tolist()
    errors = {}
    for step in range(81):
        at = (0.1 + 0.01 * step) * (len(sizes) - 1)
        low = min(int(at), len(sizes) - 2)
        p, error = sizes[low] + (at - low) * (sizes[low + 1] - sizes[low]), 0.0
        for row in x[:, rest]:
            for part in (row[row.abs() < p], row[row.abs() >= p]):
                error += (part - binarized(part[None])).square().sum().item()
        errors.setdefault(p, error)
    return x.abs() >= min(errors, key=errors.get)


def half_binarized(values):
    """One binarization of a list, with mean and scale in float16."""
    if not values:
        return []
    mean = torch.tensor(sum(values) / len(values)).half().item()
    scale = torch.tensor(sum(abs(v - mean) for v in values) / len(values)).half().item()
    return [mean + scale if v >= mean else mean - scale for v in values]


def billm(w, gram, method):
    """BiLLM, its last step weight by weight."""
    N, K = w.shape
    H = gram.double() + method.damp * gram.double().diagonal().mean() * torch.eye(K)
    Hinv = torch.linalg.inv(H)
    U = torch.linalg.cholesky(Hinv, upper=True)
    inverse = U.diagonal() if method.salience == "cholesky" else Hinv.diagonal()
    W, out = w.double().clone(), torch.zeros(N, K).double()
    for i1 in range(0, K, method.block_size):
        cols = list(range(i1, min(i1 + method.block_size, K)))
        block, metric = W[:, cols], W[:, cols] ** 2 / inverse[cols] ** 2
        salient = salient_columns(metric, method.max_salient)
        rest = [j for j in range(len(cols)) if j not in salient]
        on_weights = method.split_on == "weights"
        sparse = sparse_part(block if on_weights else metric, rest, 0 if on_weights else N * len(salient))
        for n in range(N):
            for part in ([j for j in rest if not sparse[n, j]], [j for j in rest if sparse[n, j]], salient):
                values = block[n, part].tolist()
                done = half_binarized(values)
                if part is salient:
                    left = half_binarized([v - d for v, d in zip(values, done)])
                    done = [d + r for d, r in zip(done, left)]
                out[n, [cols[j] for j in part]] = torch.tensor(done).double()
        E = (block - out[:, cols]) / U.diagonal()[cols]
        W[:, cols[-1] + 1 :] -= E @ U[cols][:, cols[-1] + 1 :]
    return out


def weight_only_bytes(M, N, K, bits, group=128, symmetric=False):
    """b-bit weights, 16-bit activations: codes in rows filled up to 128 columns, a float16 scale and, unless symmetric,
    a one-byte zero per group (-1: per row), inputs and outputs. M = 0: what is read of the weight alone."""
    filled = -(-K // 128) * 128
    groups = 1 if group in (-1, K) else max(K // group, filled // group)  # the added columns have scales too
    return N * filled * bits // 8 + N * groups * (2 if symmetric else 3) + 2 * M * (K + N)


def integer_bytes(M, N, K, bits):
    """b-bit weights with a scale per row, 8-bit activations, which stay in the cache between two launches."""
    return weight_only_bytes(M, N, K, bits, group=-1, symmetric=True)


def binary_weight_bytes(M, N, K):
    """BiLLM: two planes of bits, a byte per column, eight float16 levels per row and block of 128 columns."""
    blocks = -(-K // 128)
    return N * blocks * 128 * 2 // 8 + K + 16 * N * blocks + 2 * M * (K + N)
