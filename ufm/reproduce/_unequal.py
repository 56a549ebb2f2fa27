"""Beyond the paper: unequal counts, and a classifier that is given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

import ufm
from ufm import theory
from ufm.figures import Curve
from ufm.models._fixed import simplex
from ufm.reproduce import _direct as direct
from ufm.reproduce._direct import Layers
from ufm.reproduce._records import About, Instance, Job, Level, Outcome, Table, compared

#: how near to a threshold, on both sides
_NEAR = (0.995, 1.005)
_RATIO = 4.0  # lam_W/lam_H


def _layers(loss: direct.LossOfLogits, counts: tuple[float, ...], lam: float, lam_b: float | None) -> Layers:
    """Two factors with d = K."""
    K, root = len(counts), math.sqrt(_RATIO)
    return Layers(loss, counts, (K, K), (lam / root, lam * root), lam_b)


def _problem(
    name: str, counts: tuple[int, ...], lam: float, lam_b: float | None, **of_loss: float
) -> ufm.Problem:
    root = math.sqrt(_RATIO)
    loss = ufm.losses.get(name) if not of_loss else getattr(ufm.losses, name)(**of_loss)
    return ufm.Problem.from_counts(
        loss, counts=np.array(counts), d=len(counts), lam_W=lam * root, lam_H=lam / root, lam_b=lam_b or 0.0,
        bias=lam_b is not None,
    )  # fmt: skip


def _regime(lam_b: float | None) -> str:
    return "none" if lam_b is None else "penalised" if lam_b else "free"


# --- Hong and Ling 2023: where the classes of a group coincide ------------------------------------


def merging(level: Level) -> Iterator[Job]:
    """Two groups, as in the paper; more groups, label smoothing and a bias; the curve of both groups."""
    two = (9, 2, 9, 2, 2)
    for lam_b in (None, 0.0) if level == "quick" else (None, 0.0, 0.03):
        yield Job(f"two-groups-{_regime(lam_b)}", partial(_merging, two, lam_b, 0.0, "paper"), 0.3)
    if level == "full":
        yield Job("three-groups-smoothed", partial(_merging, (7, 2, 4, 7, 2, 4), 0.03, 0.1, "ours"), 2.0)
        yield Job("long-tail", partial(_merging, (30, 3, 30, 12, 3, 12, 3), None, 0.0, "ours"), 2.0)
    yield Job("curve", partial(_gaps, two, 8 if level == "quick" else 24), 0.6)


def _shares(P: Layers, x: np.ndarray) -> np.ndarray:
    """(K, K) probabilities, a column for each class."""
    Z = P.logits(x)
    mass = np.exp(Z - Z.max(axis=0))
    return np.asarray(mass / mass.sum(axis=0))


def _gap(p: np.ndarray, group: np.ndarray) -> float:
    """Target less another class of the group, of the group's samples."""
    block = p[np.ix_(group, group)]
    off = block[~np.eye(len(group), dtype=bool)]
    return float(np.diag(block).mean() - off.mean())


def _groups(counts: tuple[int, ...]) -> dict[int, np.ndarray]:
    """The classes of each count that several have, the smallest count first."""
    found = {n: np.flatnonzero(np.array(counts) == n) for n in sorted(set(counts))}
    return {n: group for n, group in found.items() if group.size > 1}


def _merging(counts: tuple[int, ...], lam_b: float | None, smoothing: float, about: About) -> Outcome:
    instances, N, rest = [], sum(counts), 1 - smoothing
    name, of_loss = ("label_smoothing", {"alpha": smoothing}) if smoothing else ("ce", {})
    for n, group in _groups(counts).items():
        for near in _NEAR:
            x = near * rest * math.sqrt(n)
            P = _layers(partial(direct.cross_entropy, smoothing=smoothing), counts, x / N, lam_b)
            found = direct.search(P.f, P.unknowns, [(0, 0.5)])
            gap, expected = _gap(_shares(P, found.x), group), max(0.0, rest - x / math.sqrt(n))
            prob = _problem(name, counts, x / N, lam_b, **of_loss)
            config = {"counts": counts, "alpha": smoothing, "bias": _regime(lam_b), "N lam": x, "n": n}
            what = "target less another probability in the group against max(0, 1 - alpha - N lam/sqrt(n))"
            instances.append(compared(what, config, abs(gap - expected), 1e-9, about))
            what = "f* of the theory against a search"
            apart = abs(float(theory.global_optimum(prob).objective) - found.value)
            instances.append(compared(what, config, apart, 1e-11, "ours"))
            if near < 1:
                instances.append(_threshold(prob, n, x * rest / (rest - gap), config))
    return Outcome(tuple(instances))


def _threshold(prob: ufm.Problem, n: int, measured: float, config: dict[str, object]) -> Instance:
    """N lam at which the group merges, from the gap below it, which is linear in N lam."""
    found = theory.threshold(prob)
    assert isinstance(found, theory.GroupThresholds)
    claimed = float(found.x_merge[list(found.counts).index(n)])
    what = "N lam at which the classes of n samples coincide, in closed form against the search, relative"
    return compared(what, config, abs(claimed / measured - 1), 1e-7)


def _gaps(counts: tuple[int, ...], number: int) -> Outcome:
    """The curves of the figure: solved without a bias at each N lam."""
    curves, worst = [], 0.0
    N, xs = sum(counts), np.linspace(0.4, 3.2, number)
    solved = []
    for x in xs:
        P = _layers(direct.cross_entropy, counts, float(x) / N, None)
        solved.append(_shares(P, direct.search(P.f, P.unknowns, [(0, 0.5)]).x))
    for n, group in _groups(counts).items():
        gaps = [_gap(p, group) for p in solved]
        fine = np.linspace(float(xs[0]), float(xs[-1]), 101)
        line = np.maximum(0.0, 1 - fine / math.sqrt(n))
        worst = max(worst, float(np.abs(gaps - np.maximum(0.0, 1 - xs / math.sqrt(n))).max()))
        curves += [
            Curve("gap", f"classes of {n} samples", fine.tolist(), line.tolist()),
            Curve("gap", f"classes of {n} samples, solved", xs.tolist(), gaps, "points"),
        ]
    what = "largest difference of the curves in the figure"
    return Outcome(
        (compared(what, {"counts": counts, "bias": "none"}, worst, 1e-8, "ours"),), curves=tuple(curves)
    )


# --- Dang et al. 2023: squared error without a bias -----------------------------------------------


def frames(level: Level) -> Iterator[Job]:
    """Counts that differ, kappa and beta, with one class near its threshold on each side."""
    cases: tuple[tuple[tuple[int, ...], float, float], ...] = (
        ((9, 1, 4, 2), 1.0, 1.0),
        ((5, 3, 8), 3.0, 2.0),
    )
    for counts, kappa, beta in cases if level == "quick" else (*cases, ((20, 3, 3, 1, 7), 0.5, 1.5)):
        for near in _NEAR:
            name = f"n{'-'.join(map(str, counts))}-kappa{kappa:g}-{near:g}"
            yield Job(name, partial(_frames, counts, kappa, beta, near), 0.2)


def _frames(counts: tuple[int, ...], kappa: float, beta: float, near: float) -> Outcome:
    n, N = np.array(counts), sum(counts)
    lam = near * 2 * kappa * beta * math.sqrt(float(np.sort(n)[1])) / N  # the second smallest class
    P = _layers(partial(direct.squares, kappa=kappa, beta=beta), counts, lam, None)
    found = direct.search(P.f, P.unknowns, [(0, 0.5)])
    (H, W), _ = P.factors(found.x)
    best = theory.global_optimum(_problem("mse", counts, lam, None, kappa=kappa, beta=beta))
    z = np.maximum(0.0, beta - N * lam / (2 * kappa * np.sqrt(n)))
    root, config = (
        math.sqrt(_RATIO),
        {"counts": counts, "kappa": kappa, "beta": beta, "lam": lam, "near": near},
    )
    lengths = (W * W).sum(axis=1), (H * H).sum(axis=0)
    claimed = np.sqrt(n) * z / root, root * z / np.sqrt(n)
    angles = max(float(np.abs(M - np.diag(np.diag(M))).max()) for M in (W @ W.T, H.T @ H))
    return Outcome(
        (
            compared("logits against diag(beta - N lam/(2 kappa sqrt(n_k))) or zero", config,
                     float(np.abs(W @ H - np.diag(z)).max()), 1e-8),
            compared("lengths of w_k and h_k against the formula", config,
                     max(float(np.abs(a - b).max()) for a, b in zip(lengths, claimed, strict=True)), 1e-8),
            compared("inner products of different classes", config, angles, 1e-8),
            compared("f* of the theory against a search", config, abs(best.objective - found.value), 1e-11,
                     "ours"),
            compared("logits of the theory against the formula", config,
                     float(np.abs(best.logits - np.diag(z)).max()), 1e-12, "ours"),
        )
    )  # fmt: skip


# --- Yang et al. 2022: a given simplex ETF --------------------------------------------------------


def given(level: Level) -> Iterator[Job]:
    """Without a bias, where the counts do not matter, and with a free one, where they do."""
    cases: tuple[tuple[int, ...], ...] = ((5, 3, 1, 1), (1, 7, 2))
    for counts in cases if level == "quick" else (*cases, (50, 1, 1, 10, 3)):
        for bias in (False, True):
            name = f"n{'-'.join(map(str, counts))}-{'free' if bias else 'none'}"
            yield Job(name, partial(_given, counts, 2.0, 0.01, bias), 0.2)


def _given(counts: tuple[int, ...], square: float, lam_H: float, bias: bool) -> Outcome:
    K, n = len(counts), np.array(counts)
    model = ufm.models.fixed("etf", scale=math.sqrt(square))
    prob = ufm.Problem.from_counts("ce", counts=np.array(counts), d=K, lam_H=lam_H, bias=bias, model=model)
    W = math.sqrt(square) * np.asarray(simplex(K, K))
    P = Layers(direct.cross_entropy, counts, (K, K), (lam_H, 0.0), 0.0 if bias else None)
    found = direct.descend(P.given(W), np.zeros(K * K + K * bias))
    H = found.x[: K * K].reshape(K, K)
    lengths = np.linalg.norm(H, axis=0)
    along = np.abs(H / lengths - (W / np.linalg.norm(W, axis=1)[:, None]).T).max()
    config = {"counts": counts, "|W W'|": square, "lam_H": lam_H, "bias": "free" if bias else "none"}
    details = {"lengths": lengths.tolist(), "f": found.value}
    instances = [
        compared("lengths of the features of two classes differ by", config, float(np.ptp(lengths)), 1e-9,
                 "paper", details),
        compared("features against the rows of W, as unit vectors", config, float(along), 1e-9, "paper"),
    ]  # fmt: skip
    if bias:
        what = "with a free bias the features are centred: |sum_k n_k h_k|"
        instances.append(compared(what, config, float(np.abs(H @ n).max()), 1e-9, "ours"))
        what = "the free bias does not lower f (0: it does)"
        without = float(theory.global_optimum(prob.replace(bias=False)).objective)
        instances.append(compared(what, config, float(not found.value < without - 1e-6), 0.0, "ours"))
    best = theory.global_optimum(prob)
    what = "f* of the theory against the convex problem"
    instances.append(compared(what, config, abs(best.objective - found.value), 1e-12, "ours"))
    if not bias:
        what = "features against (a/|W|^2) w_k with the theory's margin a"
        apart = float(np.abs(H - best.margin / square * W.T).max())
        instances.append(compared(what, config, apart, 1e-8, "ours"))
    row = (
        f"{list(counts)}",
        "free" if bias else "none",
        f"{found.value:.9f}",
        ", ".join(f"{x:.4f}" for x in lengths),
    )
    header = ("counts", "bias", "f*", "lengths of the features")
    return Outcome(tuple(instances), (Table("A given simplex ETF, cross-entropy", header, (row,)),))
