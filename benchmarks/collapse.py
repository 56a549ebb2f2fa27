"""NC1-NC4 of features: `ufm.metrics` against numpy and torch in the common formulation by d x d matrices.

The features have class structure and little scatter, as after training. NC1 = tr(Sigma_W pinv(Sigma_B)) / K
then depends on the cut-off of pinv: Sigma_B has rank K - 1, and rounding errors in the other d - K + 1
directions must not be inverted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import Row, alone, cores, floor, timed


class Data(NamedTuple):
    X: np.ndarray  # (N, d)
    y: np.ndarray  # (N,)
    W: np.ndarray  # (K, d)
    b: np.ndarray  # (K,)


def features(K: int, d: int, N: int, dtype: str) -> Data:
    """Class means apart, scatter of a twentieth of their distance, positive as behind a ReLU on average."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(N) % K)
    means = rng.normal(size=(K, d))
    X = 1 + means[y] + 0.05 * rng.normal(size=(N, d))
    W = means - means.mean(axis=0) + 0.1 * rng.normal(size=(K, d))
    return Data(X.astype(dtype), y, W.astype(dtype), rng.normal(size=K).astype(dtype))


# --- the sides: Data -> (NC1, NC2, NC3, NC4) ------------------------------------------------------


def ours(data: Data) -> Any:
    from ufm import metrics

    return metrics.neural_collapse(*data)[:4]


def streamed(data: Data, batch: int = 2000) -> Any:
    from ufm import metrics

    X, y, W, b = data
    stream = metrics.Stream(*W.shape, dtype=X.dtype)
    parts = [slice(i, i + batch) for i in range(0, len(y), batch)]
    for part in parts:
        stream = stream.update(X[part], y[part])
    agreement = stream.second_pass(W, b)
    for part in parts:
        agreement = agreement.update(X[part])
    return stream.result(W, b, agreement=agreement)[:4]


def with_numpy(data: Data, pinv: Callable[[Any], Any] = np.linalg.pinv) -> Any:
    X, y, W, b = data
    K, N = len(W), len(X)
    means = np.stack([X[y == k].mean(axis=0) for k in range(K)])
    M, D = means - X.mean(axis=0), X - means[y]
    within, between = D.T @ D / N, M.T @ M / K
    etf = (np.eye(K) - 1 / K) / np.sqrt(K - 1)
    gram, dual = W @ W.T, W @ M.T
    distances = (X**2).sum(axis=1)[:, None] - 2 * X @ means.T + (means**2).sum(axis=1)
    return (
        np.trace(within @ pinv(between)) / K,
        np.linalg.norm(gram / np.linalg.norm(gram) - etf),
        np.linalg.norm(dual / np.linalg.norm(dual) - etf),
        (distances.argmin(axis=1) == (X @ W.T + b).argmax(axis=1)).mean(),
    )


def with_scipy(data: Data) -> Any:
    import scipy.linalg

    return with_numpy(data, scipy.linalg.pinv)


def with_torch(data: Data) -> Any:
    import torch

    torch.set_num_threads(cores())
    X, y, W, b = map(torch.as_tensor, data)
    K, N = len(W), len(X)
    means = torch.stack([X[y == k].mean(dim=0) for k in range(K)])
    M, D = means - X.mean(dim=0), X - means[y]
    within, between = D.T @ D / N, M.T @ M / K
    etf = (torch.eye(K, dtype=X.dtype) - 1 / K) / (K - 1) ** 0.5
    gram, dual = W @ W.T, W @ M.T
    return (
        torch.trace(within @ torch.linalg.pinv(between)) / K,
        torch.linalg.norm(gram / torch.linalg.norm(gram) - etf),
        torch.linalg.norm(dual / torch.linalg.norm(dual) - etf),
        (torch.cdist(X, means).argmin(dim=1) == (X @ W.T + b).argmax(dim=1)).double().mean(),
    )


SIDES: dict[str, Callable[[Data], Any]] = {
    "ufm": ours,
    "ufm, streamed": streamed,
    "numpy.linalg.pinv": with_numpy,
    "scipy.linalg.pinv": with_scipy,
    "torch.linalg.pinv": with_torch,
}


# --- the table ------------------------------------------------------------------------------------


def witness(data: Data) -> float:
    """NC1 in float64 without pinv, classes balanced: K - 1 contrasts of the means, orthogonalised by QR."""
    X, y = data.X.astype(np.float64), data.y
    K, N = len(data.W), len(y)
    means = np.stack([X[y == k].mean(axis=0) for k in range(K)])
    contrasts = np.linalg.qr(np.eye(K)[:, : K - 1] - 1 / K)[0]  # orthonormal, orthogonal to 1
    Q, R = np.linalg.qr((contrasts.T @ means).T)
    # Sigma_B = A'A / K with A' = Q R, hence tr(Sigma_W pinv(Sigma_B)) = K |R^-1 Q'D'|^2 / N
    inside = np.linalg.solve(R, ((X - means[y]) @ Q).T)
    return float((inside**2).sum() / N)


def measure(side: str, K: int, d: int, N: int, dtype: str) -> Row:
    """One side, for a process of its own."""
    data = features(K, d, N, dtype)
    run = SIDES[side]
    seconds, values = timed(
        lambda: [float(x) for x in run(data)], warm=side.startswith("ufm"), enough=4.0, most=7
    )
    return {"seconds": seconds, "error of NC1": abs(values[0] / witness(data) - 1)}


def cost(K: int, d: int, N: int, dtype: str) -> tuple[float, float, float]:
    """Operations and bytes that NC1 and NC4 cannot do without: the features are read for their means, and
    again for their products with the axes of the means and with W."""
    size = np.dtype(dtype).itemsize
    return N * d + 2 * N * d * (2 * K - 1), 2 * N * d * size, N * d * size


def rows(quick: bool) -> Iterator[Row]:
    shapes = ((10, 128, 2_000),) if quick else ((10, 512, 10_000), (100, 2048, 20_000))
    for K, d, N in shapes:
        for dtype in ("float32", "float64"):
            shape: Row = {"K": K, "d": d, "N": N, "dtype": dtype}
            for side in SIDES:
                # threads that wait for small tasks beside XLA's cost more than they bring
                threads = 1 if side.startswith("ufm") else cores()
                found = alone("benchmarks.collapse:measure", threads=threads, side=side, **shape)
                least = floor(found["seconds"], *cost(K, d, N, dtype), dtype) if side == "ufm" else {}
                yield {**shape, "side": side} | found | least
