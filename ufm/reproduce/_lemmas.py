"""Lemmas 1, 2, 3, 4, 6 and 9, each as a formula that is evaluated on matrices without a solver."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
from scipy.optimize import least_squares

import ufm
from ufm import losses, theory
from ufm.reproduce import _witness as witness
from ufm.reproduce._records import Instance, Job, Level, Outcome, Table, compared
from ufm.reproduce._theorem_2 import Case, _points
from ufm.reproduce._witness import Shape

#: of identities of small matrices
ROUNDING = 1e-13

# --- Lemma 1: Young's inequality ------------------------------------------------------------------


def young(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> np.ndarray:
    """|a|^p/p + |b|^q/q less |a b|, with 1/p + 1/q = 1, relative to the sum."""
    q = p / (p - 1)
    total = np.abs(a) ** p / p + np.abs(b) ** q / q
    return np.asarray(1 - np.abs(a * b) / total)


def lemma_1(level: Level) -> Iterator[Job]:
    """At random, and where the two powers are equal."""
    yield Job("young", partial(_lemma_1, 10_000 if level == "quick" else 1_000_000), 0.1)


def _lemma_1(count: int) -> Outcome:
    rng = np.random.default_rng(1)
    a, b, p = rng.normal(size=count), rng.normal(size=count), 1 + np.exp(rng.normal(size=count))
    equal = np.abs(a) ** (p - 1)
    config = {"random a, b, p": count, "p": [float(p.min()), float(p.max())]}
    below = max(0.0, -float(young(a, b, p).min()))
    on = float(np.abs(young(a, equal, p)).max())
    off = float(np.abs(young(a, 1.1 * equal, p)).min())
    return Outcome(
        (
            compared("|a b| above |a|^p/p + |b|^q/q, relative", config, below, ROUNDING),
            compared("difference of the two where |a|^p = |b|^q", config, on, ROUNDING),
            compared("no difference although |b| is a tenth larger (0: there is one)", config,
                     float(off < 1e-6), 0.0),
        )
    )  # fmt: skip


# --- Lemma 2: the nuclear norm and the two Frobenius norms ----------------------------------------


def mean_square(W: np.ndarray, H: np.ndarray, alpha: float) -> float:
    """(|W|^2 + alpha |H|^2)/(2 sqrt(alpha))."""
    return float((W * W).sum() + alpha * (H * H).sum()) / (2 * math.sqrt(alpha))


def lemma_2(level: Level) -> Iterator[Job]:
    """Random W and H, also with d < K, and balanced ones."""
    for K, d in ((4, 6), (6, 3)) if level == "quick" else ((3, 3), (4, 6), (6, 3), (10, 12), (12, 5)):
        yield Job(f"K{K}-d{d}", partial(_lemma_2, K, d, 200 if level == "quick" else 5_000), 0.1)


def _lemma_2(K: int, d: int, count: int) -> Outcome:
    rng = np.random.default_rng(K)
    least, defect = math.inf, 0.0
    for _ in range(count):
        alpha = float(np.exp(rng.normal()))
        W, H = rng.normal(size=(K, d)), rng.normal(size=(d, K))
        U, sigma, Vt = np.linalg.svd(W @ H)
        r = min(K, d)
        least = min(least, mean_square(W, H, alpha) / sigma.sum() - 1)
        frame = np.linalg.qr(rng.normal(size=(d, r)))[0].T
        root = np.sqrt(sigma[:r])
        balanced = alpha**0.25 * (U[:, :r] * root) @ frame, alpha**-0.25 * frame.T @ (root[:, None] * Vt[:r])
        defect = max(defect, abs(mean_square(*balanced, alpha) / sigma.sum() - 1))
    config = {"K": K, "d": d, "random W, H, alpha": count}
    return Outcome(
        (
            compared("|W H|_* above (|W|^2 + alpha |H|^2)/(2 sqrt(alpha)), relative", config,
                     max(0.0, -least), ROUNDING),
            compared("difference of the two where W'W = alpha H H'", config, defect, ROUNDING),
        )
    )  # fmt: skip


# --- Lemma 3: eigenvalues of a diagonal matrix plus one of rank one -------------------------------


def lemma_3(level: Level) -> Iterator[Job]:
    """Distinct entries (case 1), and those that deflate (cases 2 and 3)."""
    for m in (5, 8) if level == "quick" else (3, 5, 8, 16):
        yield Job(f"distinct-m{m}", partial(_distinct, m, 50 if level == "quick" else 500), 0.1)
    yield Job("deflated", _deflated, 0.1)


def _eigenvalues(d: np.ndarray, tau: float, z: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh(np.diag(d) + tau * np.outer(z, z))


def loewner(d: np.ndarray, found: np.ndarray, tau: float, z: np.ndarray) -> float:
    """The largest defect of prod_j (d_i - lambda_j) = -tau z_i^2 prod_{j != i} (d_i - d_j), relative."""
    left = np.prod(d[:, None] - found, axis=1)
    apart = d[:, None] - d + np.eye(d.size)
    right = -tau * z**2 * np.prod(apart, axis=1)
    return float(np.max(np.abs(left - right) / np.abs(right)))


def _crossed(d: np.ndarray, found: np.ndarray, tau: float) -> float:
    """How far lambda_1 <= d_1 <= lambda_2 <= ... (tau < 0; the reverse for tau > 0) is violated."""
    d = np.sort(d)
    low, high = (found, d) if tau < 0 else (d, found)
    return float(np.max(np.append(low - high, high[:-1] - low[1:])))


def _distinct(m: int, count: int) -> Outcome:
    rng = np.random.default_rng(m)
    crossed = defect = 0.0
    for i in range(count):
        d = np.cumsum(0.2 + rng.random(m))
        tau, z = float((-1) ** i * np.exp(rng.normal())), 0.2 + rng.random(m)
        found = _eigenvalues(d, tau, z)
        size = 8 * m * np.finfo(float).eps * float(np.abs(found).max())
        crossed = max(crossed, _crossed(d, found, tau) / size)
        defect = max(defect, loewner(d, found, tau, z))
    config = {"m": m, "random D, tau, z": count}
    return Outcome(
        (
            compared("eigenvalues that do not interlace with D, over 8 m eps |D + tau z z'|", config, crossed,
                     1.0),
            compared("prod_j (d_i - lambda_j) against -tau z_i^2 prod_{j != i} (d_i - d_j), relative", config,
                     defect, 1e-10),
        )
    )  # fmt: skip


def _deflated() -> Outcome:
    """A root of the rest meets an entry that deflates, and a triple keeps all its copies."""
    d, z = np.array([1.5, 2.0, 1.0]), np.array([0.0, math.sqrt(0.75), 0.5])
    found = _eigenvalues(d, -1.0, z)
    ties = float((np.diff(found) < 1e-12).sum())
    crossed = max(0.0, _crossed(d, found, -1.0))
    twice, alone = np.array([2.0, 2.0, 1.0]), np.array([0.0, 0.0, 1.0])
    copies = float((np.abs(_eigenvalues(twice, -1.0, alone) - 2.0) < 1e-12).sum())
    config = {"D": d.tolist(), "tau": -1.0, "z": z.tolist(), "eigenvalues": found.tolist()}
    repeated = {"D": twice.tolist(), "tau": -1.0, "z": alone.tolist(), "copies of 2": copies}
    return Outcome(
        (
            compared("eigenvalues that coincide although (12) has them apart", config, ties, 0.0),
            compared("copies of an entry that D has m times, beyond m - 1", repeated, copies - 1, 0.0),
            compared("weak interlacing there", config, crossed, ROUNDING, "ours"),
            compared("copies short of m - 1", repeated, max(0.0, 1 - copies), 0.0, "ours"),
        )
    )


# --- Lemma 4: when the centred diagonal matrix has equal singular values --------------------------


def centred(p: np.ndarray) -> np.ndarray:
    """Z = (I - 11'/K) diag(p)."""
    return np.asarray(np.diag(p) - p / p.size)


def _uneven(p: np.ndarray) -> np.ndarray:
    """Zero exactly where the nonzero singular values are equal: Z Z'Z tr Z'Z - Z tr (Z'Z)^2, and |p| = 1."""
    Z = centred(p)
    square = Z.T @ Z
    return np.append((Z @ square * np.trace(square) - Z * (square**2).sum()).ravel(), p @ p - 1)


def lemma_4(level: Level) -> Iterator[Job]:
    """Random starts end in one of two families; K = 2 shows that K >= 3 is needed."""
    for K in (3, 4) if level == "quick" else (3, 4, 5, 6):
        yield Job(f"K{K}", partial(_lemma_4, K, 30 if level == "quick" else 200), 0.2)
    yield Job("K2", _two_classes, 0.1)


def _lemma_4(K: int, count: int) -> Outcome:
    rng = np.random.default_rng(K)
    same, alone, farthest = 0, 0, 0.0
    for _ in range(count):
        found = least_squares(_uneven, rng.normal(size=K), xtol=1e-15, ftol=1e-15, gtol=1e-15)
        if found.cost > 1e-28:
            continue
        p = np.sort(np.abs(found.x))
        spread, rest = float(np.ptp(p)), float(np.linalg.norm(p[:-1]))
        same, alone = same + (spread < rest), alone + (rest < spread)
        farthest = max(farthest, min(spread, rest))
    config = {"K": K, "starts": count, "all |p_i| equal": same, "one p_i nonzero": alone}
    return Outcome(
        (
            compared("distance of p with equal nonzero singular values to the two families", config, farthest,
                     1e-10),
            compared("families that no start reaches", config, float((same == 0) + (alone == 0)), 0.0,
                     "ours"),
        )
    )  # fmt: skip


def _two_classes() -> Outcome:
    p = np.array([1.0, 0.3])
    what = "K = 2: equal nonzero singular values although p = (1, 0.3), a deviation of"
    at_two = float(np.abs(_uneven(p)[:-1]).max())
    return Outcome((compared(what, {"K": 2, "p": p.tolist()}, at_two, ROUNDING, "ours"),))


# --- Lemma 6: the equation of the features --------------------------------------------------------


def lemma_6(level: Level) -> Iterator[Job]:
    """Each group of K samples at each known critical point."""
    for name in ("ce",) if level == "quick" else ("ce", "ls", "fl"):
        case = Case(name, Shape(4, 6, 2), lam_b=0.05)
        yield Job(case.name, partial(_lemma_6, case), 0.5)


def _lemma_6(case: Case) -> Outcome:
    instances, prob, K = [], case.problem(), case.shape.K
    for point in _points(case):
        W, H, _ = (np.asarray(x) for x in point.params)
        G = witness.logit_gradient(prob, point.params)
        rest = W.T @ G + case.lam_H * H
        size = case.lam_H * float(np.abs(H).max()) + 1e-3
        worst = max(float(np.abs(rest[:, i : i + K]).max()) for i in range(0, prob.N, K))
        config = case.config | {"family": point.family, "index": int(point.index)}
        what = "|W' G_i + lam_H H_i| over groups i, relative"
        instances.append(compared(what, config, worst / size, 1e-9))
    start, away = _points(case)[0].params, case.config | {"critical": False}
    moved = start._replace(W=2 * start.W + 0.1 * np.random.default_rng(1).normal(size=start.W.shape))
    G = witness.logit_gradient(prob, moved)
    slope = np.asarray(moved.W).T @ G + case.lam_H * np.asarray(moved.H)
    what = "elsewhere it is the gradient in H: against a central difference"
    instances.append(compared(what, away, _difference(prob, moved, slope), 1e-7, "ours"))
    return Outcome(tuple(instances))


def _difference(prob: ufm.Problem, params: ufm.Params, slope: np.ndarray) -> float:
    """The derivative of f along a random direction of H, against the inner product with `slope`."""
    direction = np.random.default_rng(0).normal(size=slope.shape)
    sides = (params._replace(H=params.H + t * direction) for t in (1e-5, -1e-5))
    ahead, behind = (witness.objective(prob, side) for side in sides)
    along = float((slope * direction).sum())
    return abs((ahead - behind) / 2e-5 - along) / abs(along)


# --- Lemma 9: where the lower bound is attained ---------------------------------------------------


def lemma_9(level: Level) -> Iterator[Job]:
    """The conditions at the minimiser, and at twice its W and H, which meets them too."""
    shapes = (Shape(4, 6, 2),) if level == "quick" else (Shape(4, 6, 2), Shape(3, 2, 3), Shape(10, 12, 1))
    for name in ("ce", "ls"):
        for shape in shapes:
            yield Job(f"{name}-K{shape.K}-d{shape.d}", partial(_lemma_9, name, shape), 0.5)


def conditions(W: np.ndarray, H: np.ndarray, ratio: float) -> dict[str, float]:
    """How far each condition is missed, relative; `ratio` is sqrt(lam_W/(n lam_H))."""
    K = len(W)
    square = float((W * W).sum()) / K
    angles = W @ W.T - square * K / (K - 1) * (np.eye(K) - 1 / K)
    return {
        "equal norms of the rows of W": float(np.ptp((W * W).sum(axis=1))) / square,
        "h_{k,i} = sqrt(lam_W/(lam_H n)) w^k": float(np.abs(H - ratio * np.resize(W, H.T.shape).T).max()),
        "mean of the features": float(np.abs(H.mean(axis=1)).max()),
        "equal angles": float(np.abs(angles).max()) / square,
    }


def _lemma_9(name: str, shape: Shape) -> Outcome:
    prob = witness.problem(name, shape, 0.3 / shape.K)
    n, lam_W, lam_H = shape.n, float(prob.lam_W), float(prob.lam_H)
    best = theory.global_optimum(prob)
    config = {"loss": name, **shape._asdict(), "lam_W": lam_W, "lam_H": lam_H}
    a, bound = witness.lowest(losses.get(name), shape.K, (shape.K - 1) * math.sqrt(n * lam_W * lam_H))
    instances, rows = [], []
    for factor in (1.0, 2.0):
        params = best.params._replace(W=factor * best.params.W, H=factor * best.params.H)
        W, H = np.asarray(params.W), np.asarray(params.H)
        missed = conditions(W, H, math.sqrt(lam_W / (n * lam_H)))
        f, here = witness.objective(prob, params), config | {"W and H times": factor}
        instances += [_condition(what, here, value, factor) for what, value in missed.items()]
        what = "f less the lower bound at a point that meets every condition"
        instances.append(compared(what, here, abs(f - bound), 1e-11))
        rows.append((name, f"{factor:g}", f"{f:.12f}", f"{bound:.12f}"))
    square = (np.asarray(best.params.W) ** 2).sum(axis=1)
    scale = math.sqrt(n * lam_H / lam_W) * a * (1 - 1 / shape.K)
    what = "|w^k|^2 against sqrt(n lam_H/lam_W) a (K-1)/K, the scale that is missing, relative"
    instances.append(compared(what, config, float(np.abs(square / scale - 1).max()), 1e-10, "ours"))
    header = ("loss", "W and H times", "f", "lower bound")
    return Outcome(tuple(instances), (Table("The conditions do not fix the scale", header, tuple(rows)),))


def _condition(what: str, config: dict[str, object], value: float, factor: float) -> Instance:
    return compared(what, config, value, 1e-11, "paper" if factor == 1.0 else "ours")
