"""Beyond the paper: fewer dimensions than the simplex ETF needs, on spheres and with penalties."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

import ufm
from ufm import theory
from ufm.reproduce import _direct as direct
from ufm.reproduce._direct import Layers
from ufm.reproduce._features import on_spheres
from ufm.reproduce._records import Job, Level, Outcome, Table, compared

# --- Jiang et al. 2023: softmax codes on spheres --------------------------------------------------


def codes(level: Level) -> Iterator[Job]:
    """Polygons in the plane, the cross-polytope, and what becomes of the polygon with penalties."""
    for K in (5, 6) if level == "quick" else (4, 5, 6, 7, 8):
        yield Job(f"polygon-K{K}", partial(_polygon, K, 4.0), 0.2)
    for d in (3,) if level == "quick" else (3, 4):
        yield Job(f"cross-polytope-d{d}", partial(_cross_polytope, d, 10.0), 0.3)
    for K in (6,) if level == "quick" else (6, 7):
        yield Job(f"penalties-K{K}", partial(_penalised, K, 0.01), 0.5)


def _ends(K: int, d: int, scale: float, starts: int) -> tuple[float, np.ndarray, np.ndarray]:
    """The lowest value, with its rows and features."""
    found = direct.search(on_spheres(K, d, scale), 2 * K * d, [(seed, 1.0) for seed in range(starts)])
    U = found.x.reshape(2, K, d)
    W, H = U / np.linalg.norm(U, axis=2, keepdims=True)
    return found.value, W, H


def _polygon(K: int, scale: float) -> Outcome:
    lowest, W, H = _ends(K, 2, scale, 5)
    model = ufm.models.spheres(scale=scale)
    best = theory.global_optimum(ufm.Problem.balanced("ce", K=K, d=2, n=1, model=model))
    angles = np.sort(np.arctan2(W[:, 1], W[:, 0]))
    uneven = float(np.ptp(np.diff(np.append(angles, angles[0] + 2 * math.pi))))
    config = {"K": K, "d": 2, "scale": scale, "starts": 5}
    return Outcome(
        (
            compared("angles between neighbours: they differ by", config, uneven, 1e-7),
            compared("features against the rows", config, float(np.abs(W - H).max()), 1e-7),
            compared("f of the polygon, of the theory, against the lowest f found", config,
                     abs(best.objective - lowest), 1e-11),
        )
    )  # fmt: skip


def _cross_polytope(d: int, scale: float) -> Outcome:
    """K = 2d: no two rows at less than a right angle."""
    K = 2 * d
    lowest, W, H = _ends(K, d, scale, 5)
    cosines = (W @ W.T)[~np.eye(K, dtype=bool)]
    closed = math.log1p((K - 2) * math.exp(-scale) + math.exp(-2 * scale))
    config = {"K": K, "d": d, "scale": scale, "starts": 5}
    return Outcome(
        (
            compared("cosines of two rows: the largest is above zero by", config,
                     max(0.0, float(cosines.max())), 1e-7),
            compared("features against the rows", config, float(np.abs(W - H).max()), 1e-7),
            compared("f against log(1 + (K-2) e^-s + e^-2s)", config, abs(lowest - closed), 1e-12, "ours"),
        )
    )  # fmt: skip


def _penalised(K: int, lam: float) -> Outcome:
    """With weight decay and a free bias the regular polygon is a saddle, and a lower point is known."""
    P = Layers(direct.cross_entropy, (1,) * K, (2, K), (lam, lam), 0.0)
    found = direct.search(P.f, P.unknowns, [(seed, 1.0) for seed in range(5)])
    prob = ufm.Problem.balanced("ce", K=K, d=2, n=1, lam_W=lam, lam_H=lam)
    regular = theory.code_optimum(prob, f"polygon {K}")
    lower = theory.code_optimum(prob, f"polygon {K - 1} + point")
    at = np.concatenate(
        [np.asarray(x, float).ravel() for x in (regular.params.H, regular.params.W, regular.b)]
    )
    values = np.linalg.eigvalsh(direct.hessian(P.f, at))
    config = {"K": K, "d": 2, "n": 1, "lam_W": lam, "lam_H": lam, "bias": "free"}
    details = {"negative eigenvalues": int((values < -1e-8).sum()), "smallest": float(values[0])}
    what = "with penalties the regular polygon is no saddle (0: it is one)"
    row = (
        f"{K}",
        f"{regular.objective:.12f}",
        f"{lower.objective:.12f}",
        f"{details['negative eigenvalues']}",
    )
    header = ("K", "regular polygon", "one class at the origin", "negative eigenvalues at the polygon")
    return Outcome(
        (
            compared(what, config, float(not values[0] < -1e-6), 0.0, "ours", details),
            compared("|grad f| at the polygon", config, float(np.abs(P.f(at)[1]).max()), 1e-11, "ours"),
            compared("f of the polygon, of the theory, against f(W, H, b)", config,
                     abs(regular.objective - P.f(at)[0]), 1e-12, "ours"),
            compared("a polygon and one class at the origin against the lowest f found", config,
                     abs(lower.objective - found.value), 1e-11, "ours"),
        ),
        (Table("Two dimensions with weight decay and a free bias", header, (row,)),),
    )  # fmt: skip


# --- what is open ---------------------------------------------------------------------------------

#: K, d; K >= d + 2
_PAIRS = ((5, 2), (6, 3))


def arrangements(level: Level) -> Iterator[Job]:
    """New searches against the record, and the record against the proved bound."""
    for K, d in (
        _PAIRS if level == "quick" else (*_PAIRS, (6, 2), (7, 2), (5, 3), (7, 3), (6, 4), (7, 4), (8, 4))
    ):
        yield Job(f"K{K}-d{d}", partial(_arrangement, K, d, 5 if level == "quick" else 40), 0.4)


def _arrangement(K: int, d: int, starts: int, lam: float = 0.01) -> Outcome:
    known = ufm.landscape.best_known().at(K, d)
    P = Layers(direct.cross_entropy, (1,) * K, (d, K), (lam, lam), 0.0)
    found = direct.search(P.f, P.unknowns, [(seed, 1.0) for seed in range(starts)])
    bound = theory.rank_lower_bound(ufm.Problem.balanced("ce", K=K, d=d, n=1, lam_W=lam, lam_H=lam))
    free = theory.global_optimum(
        ufm.Problem.balanced("ce", K=K, d=K - 1, n=1, lam_W=lam, lam_H=lam)
    ).objective
    at = np.concatenate([np.asarray(x, float).ravel() for x in (known.H, known.W, known.b)])
    value, slope = P.f(at)
    config = {"K": K, "d": d, "n": 1, "lam_W": lam, "lam_H": lam, "bias": "free", "starts": starts}
    row = (f"{K}", f"{d}", known.structure, f"{bound:.9f}", f"{known.objective:.12f}", f"{found.value:.12f}")
    header = ("K", "d", "structure", "no point below", "lowest known", "lowest of new starts")
    return Outcome(
        (
            compared("a new start ends below the record by", config,
                     max(0.0, known.objective - found.value), 1e-10),
            compared("the bound above the lowest value known", config, max(0.0, bound - known.objective),
                     0.0),
            compared("the record's value against f at its point", config, abs(value - known.objective), 1e-11,
                     "ours"),
            compared("|grad f| at its point", config, float(np.abs(slope).max()), 1e-9, "ours"),
            compared("the bound below the optimum of d = K - 1", config, max(0.0, free - bound), 0.0, "ours"),
        ),
        (Table("The lowest arrangements known, free bias", header, (row,)),),
    )  # fmt: skip
