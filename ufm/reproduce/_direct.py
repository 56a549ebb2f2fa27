"""Witnesses in numpy: f of layers, its gradient by hand, and its minima by scipy, without any closed form.

f = sum_k pi_k L(z_k, k) + sum_m lam_m/2 |W_m|^2 + lam_H/2 sum_k v_k |h_k|^2 + lam_b/2 |b|^2, pi = n/N and
v = n, Z = W_M ... W_1 H + b 1', or with a ReLU before each layer. The samples of a class share their feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

Function = Callable[[np.ndarray], tuple[float, np.ndarray]]
#: (K, K) logits, one column a class -> (K,) losses, (K, K) gradients
LossOfLogits = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def cross_entropy(Z: np.ndarray, smoothing: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """-sum_j t_j log p_j with the target t = (1 - alpha) e_k + alpha/K."""
    K = len(Z)
    target = (1 - smoothing) * np.eye(K) + smoothing / K
    top = Z.max(axis=0)
    mass = np.exp(Z - top)
    total = mass.sum(axis=0)
    return np.log(total) + top - (target * Z).sum(axis=0), mass / total - target


def squares(Z: np.ndarray, kappa: float = 1.0, beta: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """kappa (z_k - beta)^2 + sum of the other squares."""
    weight = 1 + (kappa - 1) * np.eye(len(Z))
    rest = Z - beta * np.eye(len(Z))
    return (weight * rest**2).sum(axis=0), 2 * weight * rest


class Layers(NamedTuple):
    """A problem: sizes from the features to the logits, a penalty for each factor, the features' first."""

    loss: LossOfLogits
    counts: tuple[float, ...]  # (K,) n
    sizes: tuple[int, ...]  # d, inner widths, K
    lam: tuple[float, ...]  # lam_H, lam_1, ..., lam_M
    lam_b: float | None = None  # None: no bias
    relu: bool = False
    weights: tuple[float, ...] | None = None  # v; None: n

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """H, W_1, ..., W_M."""
        pairs = zip(self.sizes[1:], self.sizes[:-1], strict=True)
        return [(self.sizes[0], len(self.counts)), *pairs]

    def factors(self, x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """H, W_1, ..., W_M and b from one vector."""
        ends = np.cumsum([a * b for a, b in self.shapes])
        parts = np.split(x, ends)
        b = parts[-1] if self.lam_b is not None else np.zeros(self.sizes[-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=False)], b

    @property
    def unknowns(self) -> int:
        """The length of that vector."""
        return sum(a * b for a, b in self.shapes) + (self.sizes[-1] if self.lam_b is not None else 0)

    def f(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """f and its gradient."""
        (H, *Ws), b = self.factors(x)
        n = np.array(self.counts, float)
        v = n if self.weights is None else np.array(self.weights)
        inputs, out = [], H
        for W in Ws:
            inputs.append(np.maximum(out, 0.0) if self.relu else out)
            out = W @ inputs[-1]
        value, G = self.loss(out + b[:, None])
        G = G * (n / n.sum())
        penalties = [float((v * H * H).sum()), *(float((W * W).sum()) for W in Ws)]
        f = float(value @ n / n.sum()) + float(np.dot(self.lam, penalties)) / 2
        slopes, back = [], G
        for m in range(len(Ws) - 1, -1, -1):
            slopes.append(back @ inputs[m].T + self.lam[m + 1] * Ws[m])
            back = Ws[m].T @ back
            if self.relu:
                back = back * (inputs[m] > 0)
        parts = [(back + self.lam[0] * v * H).ravel(), *(s.ravel() for s in reversed(slopes))]
        if self.lam_b is not None:
            f += self.lam_b / 2 * float(b @ b)
            parts.append(G.sum(axis=1) + self.lam_b * b)
        return f, np.concatenate(parts)

    def given(self, *Ws: np.ndarray) -> Function:
        """f as a function of H and b alone, for these layers."""
        middle = np.concatenate([W.ravel() for W in Ws])
        first = self.shapes[0][0] * self.shapes[0][1]

        def inner(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = self.f(np.concatenate([x[:first], middle, x[first:]]))
            return value, np.delete(slope, np.s_[first : first + middle.size])

        return inner

    def logits(self, x: np.ndarray) -> np.ndarray:
        """(K, K), a column for each class."""
        (out, *Ws), b = self.factors(x)
        for W in Ws:
            out = W @ (np.maximum(out, 0.0) if self.relu else out)
        return np.asarray(out + b[:, None])


class Minimum(NamedTuple):
    """Where a search ended."""

    value: float
    x: np.ndarray
    gradient: float  # its largest entry


def descend(f: Function, x: np.ndarray, polish: int = 3) -> Minimum:
    """L-BFGS, then Newton steps whose Hessian is a difference of gradients; zero modes are left alone."""
    options: Any = {"maxiter": 5000, "maxfun": 20_000, "ftol": 1e-16, "gtol": 1e-10, "maxcor": 30}
    x = newton(f, minimize(f, x, jac=True, method="L-BFGS-B", options=options).x, polish)
    value, slope = f(x)
    return Minimum(value, x, float(np.abs(slope).max()))


def newton(f: Function, x: np.ndarray, steps: int = 3) -> np.ndarray:
    """Newton steps as long as they lower the gradient."""
    for _ in range(steps):
        slope = f(x)[1]
        step = np.linalg.lstsq(hessian(f, x), slope, rcond=1e-7)[0]
        if not np.abs(f(x - step)[1]).max() < np.abs(slope).max():
            break
        x = x - step
    return x


def within(f: Function, x: np.ndarray, nonnegative: np.ndarray) -> Minimum:
    """L-BFGS with bounds, then Newton steps in the entries that are not held at zero.

    The gradient is that of the free entries, or how far one of those at zero falls.
    """
    options: Any = {"maxiter": 5000, "maxfun": 20_000, "ftol": 1e-16, "gtol": 1e-10, "maxcor": 30}
    bounds = [(0.0, None) if bound else (None, None) for bound in nonnegative]
    x = np.where(nonnegative, np.abs(x), x)
    x = minimize(f, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    held = nonnegative & (x <= 1e-7) & (f(x)[1] > 0)

    def full(y: np.ndarray) -> np.ndarray:
        z = np.zeros_like(x)
        z[~held] = y
        return z

    def free(y: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = f(full(y))
        return value, slope[~held]

    end = full(newton(free, x[~held]))
    value, slope = f(end)
    falls = np.where(held, np.maximum(-slope, 0.0), np.abs(slope))
    low = max(0.0, -float(end[nonnegative].min()))
    return Minimum(value, end, max(float(falls.max()), low))


def search(f: Function, unknowns: int, starts: Sequence[tuple[int, float]], polish: int = 3) -> Minimum:
    """The lowest of several descents, from N(0, scale^2) for each (seed, scale)."""
    drawn = (scale * np.random.default_rng(seed).normal(size=unknowns) for seed, scale in starts)
    return min((descend(f, x, polish) for x in drawn), key=lambda found: found.value)


def hessian(f: Function, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """By central differences of the gradient."""
    moves = step * np.eye(x.size)
    H = np.stack([f(x + move)[1] - f(x - move)[1] for move in moves]) / (2 * step)
    return np.asarray(H + H.T) / 2
