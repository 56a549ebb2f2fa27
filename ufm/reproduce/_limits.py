"""Beyond the paper: minority collapse as the ratio of counts grows, and the limit of vanishing penalties."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
from scipy.optimize import brentq

import ufm
from ufm import theory
from ufm.figures import Curve
from ufm.reproduce import _direct as direct
from ufm.reproduce._direct import Layers
from ufm.reproduce._records import Instance, Job, Level, Outcome, Table, compared

# --- Fang et al. 2021: minority collapse in the layer-peeled model --------------------------------


def collapse(level: Level) -> Iterator[Job]:
    """The exact ratio for several sizes, and the model itself on both sides of it."""
    cases = (
        ((2, 2, 1.0), (3, 7, 5.0))
        if level == "quick"
        else ((2, 2, 1.0), (3, 7, 5.0), (7, 3, 5.0), (5, 5, 4.0))
    )
    for K_A, K_B, product in cases:
        yield Job(f"K{K_A}+{K_B}-E{product:g}", partial(_ratio, K_A, K_B, product), 0.2)
    yield Job("curve", _curve, 0.1)
    yield Job("sides-K2+2", partial(_sides, 2, 2, 1.0), 0.6)


def _together(Z: np.ndarray, many: int) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy whose last row stands for `many` equal ones, which share its length."""
    rows = np.append(np.ones(len(Z) - 1), 1 / math.sqrt(many))[:, None]
    copies = np.append(np.ones(len(Z) - 1), many)[:, None]
    logits = rows * Z
    top = logits.max(axis=0)
    mass = copies * np.exp(logits - top)
    total = mass.sum(axis=0)
    target = np.eye(len(Z))
    return np.log(total) + top - (target * logits).sum(axis=0), rows * (mass / total - target)


def _ratio(K_A: int, K_B: int, product: float) -> Outcome:
    """At R_0 and the multiplier n_B/N, with the minority as one class: ||Z||_* is K sqrt(E_W E_H)."""
    found = theory.collapse_ratio(K_A, K_B, E_W=1.0, E_H=product)
    R, K = found.ratio, K_A + K_B
    N, mu = K_A * R + K_B, 1.0 / (K_A * R + K_B)
    counts = (*(R,) * K_A, float(K_B))
    weights = (*(1.0,) * K_A, float(K_B))
    P = Layers(partial(_together, many=K_B), counts, (K_A + 1, K_A + 1), (mu, mu), weights=weights)
    solved = direct.search(P.f, P.unknowns, [(0, 0.5)])
    (H, W), _ = P.factors(solved.x)
    norm = (float((W * W).sum()) + float((np.array(weights) * H * H).sum())) / 2
    config = {"K_A": K_A, "K_B": K_B, "E_W E_H": product, "R_0": R, "n_B/N": 1 / N}
    what = "||Z||_* where the minority is about to separate against K sqrt(E_W E_H), relative"
    apart = abs(norm / (K * math.sqrt(product)) - 1)
    row = (
        f"{K_A}",
        f"{K_B}",
        f"{math.sqrt(product):.4f}",
        f"{R:.7f}",
        f"{found.majority:.6f}",
        f"{found.minority:.6f}",
    )
    header = ("K_A", "K_B", "sqrt(E_W E_H)", "R_0", "majority to minority", "minority to majority")
    return Outcome(
        (
            compared(what, config, apart, 1e-9, "ours"),
            compared("|grad f| there", config, solved.gradient, 1e-11, "ours"),
        ),
        (Table("The ratio at which minority collapse begins", header, (row,)),),
    )


def _curve() -> Outcome:
    """The ratio as the constraints become weaker, for three pairs of groups."""
    sizes = np.linspace(0.5, 2.2, 30)
    curves = []
    for K_A, K_B in ((5, 5), (3, 7), (7, 3)):
        ratios = [theory.collapse_ratio(K_A, K_B, E_W=float(e), E_H=float(e)).ratio for e in sizes]
        curves.append(Curve("ratio", f"{K_A} + {K_B} classes", sizes.tolist(), ratios))
    return Outcome((), curves=tuple(curves))


def _sides(K_A: int, K_B: int, product: float) -> Outcome:
    """The model with norm constraints, through the multiplier that meets them, near R_0."""
    R_0 = theory.collapse_ratio(K_A, K_B, E_W=1.0, E_H=product).ratio
    instances = []
    for side in (0.98, 1.02, 4.0):
        W = _constrained(K_A, K_B, side * R_0, (K_A + K_B) * math.sqrt(product))
        minority = W[K_A:]
        apart = float(np.linalg.norm(minority - minority.mean(axis=0)) / np.linalg.norm(minority))
        config = {"K_A": K_A, "K_B": K_B, "E_W E_H": product, "R": side * R_0, "R/R_0": side}
        if side > 1:
            what = "distance of the minority's classifiers from each other, relative"
            instances.append(compared(what, config, apart, 1e-6))
        else:
            what = "below R_0 the minority's classifiers coincide (0: they do not)"
            instances.append(compared(what, config, float(apart < 1e-2), 0.0, "ours"))
    return Outcome(tuple(instances))


def _constrained(K_A: int, K_B: int, R: float, size: float) -> np.ndarray:
    """W where ||Z||_* = size."""
    counts, K = (*(R,) * K_A, *(1.0,) * K_B), K_A + K_B
    found: dict[float, np.ndarray] = {}

    def excess(log_mu: float) -> float:
        mu = math.exp(log_mu)
        P = Layers(direct.cross_entropy, counts, (K, K), (mu, mu), weights=(1.0,) * K)
        x = direct.search(P.f, P.unknowns, [(0, 0.5)]).x
        (H, W), _ = P.factors(x)
        found[log_mu] = W
        return (float((W * W).sum()) + float((H * H).sum())) / 2 - size

    center = -math.log(K_A * R + K_B)  # log n_B/N
    root = brentq(excess, center - 1.0, center + 3.0, xtol=1e-8)
    excess(root)
    return found[root]


# --- Thrampoulidis et al. 2022: the limit of vanishing penalties ----------------------------------


def vanishing(level: Level) -> Iterator[Job]:
    """Without a bias, where the limit is the matrix of the paper, and with a free one, where it is not."""
    cases = ((6, 6, 1, 1), (5, 5, 5, 2, 2))
    for counts in cases[:1] if level == "quick" else cases:
        for bias in (False, True):
            regime = "free" if bias else "none"
            yield Job(f"n{'-'.join(map(str, counts))}-{regime}", partial(_vanishing, counts, bias), 0.5)


def _vanishing(counts: tuple[int, ...], bias: bool) -> Outcome:
    K, N, n = len(counts), sum(counts), np.array(counts, float)
    centred = np.eye(K) - 1 / K
    limit = centred - np.outer(centred @ n / N, np.ones(K)) if bias else centred
    prob = ufm.Problem.from_counts("ce", counts=np.array(counts), d=K, lam_W=2.0, lam_H=0.5, bias=bias)
    config: dict[str, object] = {"counts": counts, "bias": "free" if bias else "none"}
    known = theory.vanishing_penalties(prob)
    xs = (1e-6, 1e-9, 1e-12)
    optima = [theory.global_optimum(prob.replace(lam_W=2 * x / N, lam_H=x / N / 2)) for x in xs]
    angles = [_angle(best.logits - best.b[:, None], centred) for best in optima]
    details = {"x": list(xs), "angles": angles}
    margins = np.diag(optima[0].logits) - optima[0].logits
    off = ~np.eye(K, dtype=bool)
    rest = float(np.abs((margins - known.margins(xs[0]))[off]).max())
    return Outcome(
        (
            compared("distance of the direction of the logits from I - 11'/K as x = N lam vanishes", config,
                     _extrapolated(xs, angles), 1e-2, "paper", details),
            compared("limit of the theory against P or P (I - pi 1')", config,
                     float(np.abs(known.direction - limit).max()), 1e-13, "ours"),
            compared("offsets of the theory against a matrix root", config,
                     float(np.abs(known.offsets - _offsets(limit, n))[off].max()), 1e-9, "ours"),
            _remainder(config, rest, xs[0]),
            compared("f* of the theory against a search, x = 0.01", config, _searched(prob, counts, 0.01),
                     1e-11, "ours"),
        )
    )  # fmt: skip


def _remainder(config: dict[str, object], rest: float, x: float) -> Instance:
    """What the offsets leave of the margins: of the order 1/log(1/x), but small with a free bias."""
    what = "margins at x = 1e-6 against log(1/x) and the offsets"
    if config["bias"] == "free":
        return compared(what, config, rest, 1e-4, "ours")
    return compared(f"{what}, times log(1/x)", config, rest * math.log(1 / x), 2.0, "ours")


def _angle(A: np.ndarray, B: np.ndarray) -> float:
    return float(np.linalg.norm(A / np.linalg.norm(A) - B / np.linalg.norm(B)))


def _extrapolated(xs: tuple[float, ...], angles: list[float]) -> float:
    """To x = 0, by the parabola in 1/log(1/x)."""
    return abs(float(np.polyfit(-1 / np.log(xs), angles, len(xs) - 1)[-1]))


def _offsets(limit: np.ndarray, n: np.ndarray) -> np.ndarray:
    """log(sqrt(n_k)/|F_jk|), with the polar factor F = (M M')^(-1/2) M of M = limit D^(1/2)."""
    M = limit * np.sqrt(n)
    values, Q = np.linalg.eigh(M @ M.T)
    keep = values > 1e-12 * values[-1]
    F = (Q[:, keep] / np.sqrt(values[keep])) @ Q[:, keep].T @ M
    return np.asarray(np.log(np.sqrt(n) / np.abs(F)))


def _searched(prob: ufm.Problem, counts: tuple[int, ...], x: float) -> float:
    K, lam = len(counts), x / sum(counts)
    P = Layers(direct.cross_entropy, counts, (K, K), (lam / 2, 2 * lam), 0.0 if prob.bias else None)
    found = direct.search(P.f, P.unknowns, [(0, 1.0)])
    return abs(
        found.value - float(theory.global_optimum(prob.replace(lam_W=2 * lam, lam_H=lam / 2)).objective)
    )
