"""Beyond the paper: unit vectors, and features that are not negative."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

import ufm
from ufm import theory
from ufm.reproduce import _direct as direct
from ufm.reproduce._direct import Function, Layers, Minimum
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


def on_spheres(K: int, d: int, scale: float) -> Function:
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
    f = on_spheres(K, d, scale)
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


# --- Dang et al. 2024: features that are not negative ---------------------------------------------


def nonnegative(level: Level) -> Iterator[Job]:
    """Without a bias, with one class near its threshold; with a free bias on both sides of half the data."""
    for near in (0.995, 1.005):
        yield Job(f"none-{near:g}", partial(_orthogonal, (7, 2, 4), near), 0.3)
    if level == "full":
        for near in (0.995, 1.005):
            yield Job(f"none-five-{near:g}", partial(_orthogonal, (9, 2, 5, 1, 2), near), 1.0)
    yield Job("free-n5-4-3-3", partial(_half, (5, 4, 3, 3), 0.02), 0.4)
    yield Job("free-n40-1-1-1", partial(_half, (40, 1, 1, 1), 0.02), 0.4)


def _orthant(counts: tuple[int, ...], lam_H: float, lam_W: float, lam_b: float | None) -> Layers:
    K = len(counts)
    return Layers(direct.cross_entropy, counts, (K, K), (lam_H, lam_W), lam_b)


def _lowest(P: Layers, starts: int, mask: np.ndarray | None = None) -> Minimum:
    """Over H >= 0; where there is a mask, of the H that are zero outside it."""
    K = len(P.counts)
    kept = np.ones(P.unknowns, bool)
    kept[: K * K] = True if mask is None else mask.ravel()
    inside = np.arange(P.unknowns)[kept] < K * K

    def f(y: np.ndarray) -> tuple[float, np.ndarray]:
        x = np.zeros(P.unknowns)
        x[kept] = y
        value, slope = P.f(x)
        return value, slope[kept]

    drawn = (np.random.default_rng(seed).normal(size=int(kept.sum())) for seed in range(starts))
    found = min((direct.within(f, y, inside) for y in drawn), key=lambda each: each.value)
    x = np.zeros(P.unknowns)
    x[kept] = found.x
    return found._replace(x=x)


def missing(share: np.ndarray, strength: float) -> np.ndarray:
    """1 - p of the classes, N lam sqrt((K-1)/(K n_k)), from n_k/N and sqrt(N) lam."""
    K = share.size
    return np.asarray(strength * np.sqrt((K - 1) / (K * share)))


def _orthogonal(counts: tuple[int, ...], near: float) -> Outcome:
    K, N, n = len(counts), sum(counts), np.array(counts)
    lam = near * math.sqrt(float(np.sort(n)[1]) * (K - 1) / K) / N  # the second smallest class
    P = _orthant(counts, lam / 2, 2 * lam, None)
    found = _lowest(P, 4)
    (H, W), _ = P.factors(found.x)
    prob = ufm.Problem.from_counts(
        "ce", counts=np.array(counts), d=K, lam_W=2 * lam, lam_H=lam / 2, bias=False, model="nonnegative"
    )
    best, vanish = theory.global_optimum(prob), theory.threshold(prob)
    assert isinstance(vanish, theory.VanishingThresholds)
    claimed = np.sqrt(vanish.counts * (K - 1) / K)
    rest = np.minimum(missing(n / N, lam * math.sqrt(N)), 1 - 1 / K)
    Z = W @ H
    mass = np.exp(Z - Z.max(axis=0))
    missed = 1 - np.diag(mass) / mass.sum(axis=0)
    inner = H.T @ H
    config = {"counts": counts, "lam": lam, "near": near, "bias": "none"}
    return Outcome(
        (
            compared("inner products of the means of different classes", config,
                     float(np.abs(inner - np.diag(np.diag(inner))).max()), 1e-8),
            compared("1 - p of each class against N lam sqrt((K-1)/(K n_k)), at most 1 - 1/K", config,
                     float(np.abs(missed - rest).max()), 1e-8),
            compared("sum of the rows of W", config, float(np.abs(W.sum(axis=0)).max()), 1e-8),
            compared("f* of the theory against a search with bounds", config,
                     abs(best.objective - found.value), 1e-11, "ours"),
            compared("N lam at which classes vanish, of the theory against the formula, relative", config,
                     float(np.abs(vanish.x_vanish / claimed - 1).max()), 1e-12, "ours"),
            compared("the conditions at a bound, at the end of the search", config, found.gradient, 1e-9,
                     "ours"),
        )
    )  # fmt: skip


def _half(counts: tuple[int, ...], lam: float) -> Outcome:
    K = len(counts)
    P = _orthant(counts, lam, lam, 0.0)
    found, frame = _lowest(P, 6), _lowest(P, 1, np.eye(K, dtype=bool))
    (H, _), _ = P.factors(found.x)
    most = max(counts) / sum(counts)
    prob = ufm.Problem.from_counts(
        "ce", counts=np.array(counts), d=K, lam_W=lam, lam_H=lam, model="nonnegative"
    )
    known, lower = theory.orthogonal_frame(prob), frame.value - found.value
    config = {"counts": counts, "lam_W": lam, "lam_H": lam, "bias": "free", "largest class": most}
    details = {"orthogonal frame": frame.value, "f": found.value, "H": H.round(6).tolist()}
    instances = [
        compared("free bias: f of the best orthogonal frame less f at a point that is none", config,
                 lower, 1e-9, "paper", details),
        compared("f of the best orthogonal frame, of the theory, against a search", config,
                 abs(known.objective - frame.value), 1e-11, "ours"),
        compared("its certificate closes although a lower point exists, or the reverse", config,
                 float(known.optimal != (lower < 1e-9)), 0.0, "ours"),
    ]  # fmt: skip
    if most > 0.5:
        at_origin = float(np.abs(H[:, int(np.argmax(counts))]).max())
        what = "a class with more than half of the samples is at the origin"
        instances.append(compared(what, config, at_origin, 1e-7, "ours"))
    row = (f"{list(counts)}", f"{most:.2f}", f"{frame.value:.6f}", f"{found.value:.6f}")
    header = ("counts", "share of the largest class", "best orthogonal frame", "lowest found")
    return Outcome(tuple(instances), (Table("H >= 0 with a free bias, cross-entropy", header, (row,)),))
