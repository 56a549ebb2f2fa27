"""Beyond the paper: unit vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

import ufm
from ufm import theory
from ufm.reproduce import _direct as direct
from ufm.reproduce._direct import Function, Minimum
from ufm.reproduce._records import Job, Level, Outcome, Table, compared

# --- Yaras et al. 2022: rows and features of norm one ---------------------------------------------

#: degrees: a strict local minimum of K = 3, d = 2, scale 10, from a search
_ROWS = (0.0, 358.4, 51.8)
_FEATURES = (230.1, 269.5, 115.5)


def spheres(level: Level) -> Iterator[Job]:
    """Random starts for d >= K; a strict minimum above the optimum for d = K - 1."""
    cases = (
        ((3, 3, 1.0), (4, 5, 4.0))
        if level == "quick"
        else ((3, 3, 1.0), (3, 4, 10.0), (4, 5, 4.0), (6, 6, 2.0))
    )
    for K, d, scale in cases:
        yield Job(
            f"K{K}-d{d}-scale{scale:g}", partial(_unit, K, d, scale, 4 if level == "quick" else 20), 0.3
        )
    yield Job("K3-d2-scale10", _spurious, 0.1)


def _on_spheres(K: int, d: int, scale: float) -> Function:
    """The mean cross-entropy of scale <w_k, h_j> in vectors of any length, which are normalised."""

    def f(x: np.ndarray) -> tuple[float, np.ndarray]:
        V = x.reshape(2, K, d)
        lengths = np.linalg.norm(V, axis=2, keepdims=True)
        W, H = U = V / lengths
        value, G = direct.cross_entropy(scale * W @ H.T)
        slope = scale / K * np.stack([G @ H, G.T @ W])
        tangent = slope - (slope * U).sum(axis=2, keepdims=True) * U
        return float(value.mean()), (tangent / lengths).ravel()

    return f


def _unit(K: int, d: int, scale: float, starts: int) -> Outcome:
    f = _on_spheres(K, d, scale)
    model = ufm.models.spheres(scale=scale)
    best = theory.global_optimum(ufm.Problem.balanced("ce", K=K, d=d, n=1, model=model))
    ends = [direct.search(f, 2 * K * d, [(seed, 1.0)]) for seed in range(starts)]
    lowest = min(ends, key=lambda found: found.value)
    U = lowest.x.reshape(2, K, d)
    W, H = U / np.linalg.norm(U, axis=2, keepdims=True)
    frame = float(np.abs(W @ W.T - (K * np.eye(K) - 1) / (K - 1)).max())
    config = {"K": K, "d": d, "scale": scale, "starts": starts}
    above = float(sum(found.value > best.objective + 1e-9 for found in ends))
    closed = math.log1p((K - 1) * math.exp(-scale * K / (K - 1)))
    return Outcome(
        (
            compared("starts that end above the optimum", config, above, 0.0),
            compared("f* of the theory against the lowest f found", config,
                     abs(best.objective - lowest.value), 1e-12),
            compared("rows against a simplex ETF", config, frame, 1e-7),
            compared("features against the rows", config, float(np.abs(W - H).max()), 1e-7),
            compared("f* of the theory against log(1 + (K-1) exp(-s K/(K-1)))", config,
                     abs(best.objective - closed), 1e-13, "ours"),
        )
    )  # fmt: skip


def _in_angles(scale: float) -> Function:
    """The same for d = 2, in the angles of the rows and of the features."""

    def f(x: np.ndarray) -> tuple[float, np.ndarray]:
        rows, features = x.reshape(2, -1)
        apart = rows[:, None] - features
        value, G = direct.cross_entropy(scale * np.cos(apart))
        slope = -scale / rows.size * G * np.sin(apart)
        return float(value.mean()), np.concatenate([slope.sum(axis=1), -slope.sum(axis=0)])

    return f


def _spurious(scale: float = 10.0) -> Outcome:
    f, K = _in_angles(scale), len(_ROWS)
    found: Minimum = direct.descend(f, np.radians([*_ROWS, *_FEATURES]))
    best = theory.global_optimum(
        ufm.Problem.balanced("ce", K=K, d=2, n=1, model=ufm.models.spheres(scale=scale))
    )
    values = np.linalg.eigvalsh(direct.hessian(f, found.x))
    zeros, negative = int((np.abs(values) < 1e-6).sum()), int((values < -1e-6).sum())
    above, degrees = found.value - best.objective, np.degrees(found.x - found.x[0]) % 360
    config = {"K": K, "d": 2, "scale": scale, "degrees": degrees.round(4).tolist()}
    details = {"f above the optimum": above, "eigenvalues": values.tolist()}
    instances = (
        compared("d = K - 1: the point is not above the optimum (0: it is)", config,
                 float(not above > 1e-3), 0.0, "ours", details),
        compared("largest entry of the gradient there", config, found.gradient, 1e-12, "ours"),
        compared("negative eigenvalues, and zero ones beside the rotation", config,
                 float(negative + abs(zeros - 1)), 0.0, "ours"),
    )  # fmt: skip
    row = (
        ", ".join(f"{x:.1f}" for x in degrees[:K]),
        ", ".join(f"{x:.1f}" for x in degrees[K:]),
        f"{above:.6f}",
    )
    header = ("rows, degrees", "features, degrees", "f above the optimum")
    return Outcome(instances, (Table("A strict local minimum, K = 3, d = 2, scale 10", header, (row,)),))
