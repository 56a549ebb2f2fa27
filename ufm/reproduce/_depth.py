"""Beyond the paper: a classifier of several layers, linear or with ReLUs, for equal counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize, minimize_scalar

import ufm
from ufm import theory
from ufm.figures import Curve
from ufm.losses import Loss
from ufm.reproduce import _direct as direct
from ufm.reproduce._direct import Layers, Minimum
from ufm.reproduce._records import Instance, Job, Level, Outcome, Table, compared

#: samples of a class
_SAMPLES = 2
#: the penalties of H and the layers differ by these factors, and have the product that gives c
_UNEQUAL = (1.0, 2.0, 0.5, 4.0, 0.25, 1.0)

# --- neural collapse of several layers, a scalar problem ------------------------------------------


class Scalar(NamedTuple):
    """min over a >= 0 of l(a) + (q/2) C a^(2/q)."""

    value: Callable[[float], float]  # l
    slope: Callable[[float], float]
    q: int

    def f(self, C: float, a: float) -> float:
        """The objective of neural collapse with margin a."""
        return self.value(a) + self.q / 2 * C * a ** (2 / self.q)

    def strength(self, a: float) -> float:
        """The C at which a is stationary."""
        return -self.slope(a) * a ** (1 - 2 / self.q)

    def tie(self) -> tuple[float, float]:
        """C and a at which neural collapse and zero tie: f = l(0)."""
        end = self.spin()

        def excess(a: float) -> float:
            return self.f(self.strength(a), a) - self.value(0.0)

        high = 2 * end
        while excess(high) > 0:
            high *= 2
        a = float(brentq(excess, end, high, xtol=1e-15))
        return self.strength(a), a

    def spin(self) -> float:
        """The a at which C is largest."""
        grid = np.linspace(1e-3, 30.0, 3000)
        best = float(grid[np.argmax([self.strength(a) for a in grid])])
        found = minimize_scalar(lambda a: -self.strength(a), bracket=(0.9 * best, best, 1.1 * best))
        return float(found.x)

    def lowest(self, C: float) -> float:
        """The value of neural collapse, its local minimum at a > 0."""
        spin = self.spin()
        high = 2 * spin
        while self.strength(high) > C:
            high *= 2
        a = float(brentq(lambda a: self.strength(a) - C, spin, high, xtol=1e-15))
        return self.f(C, a)


def _ce(K: int, q: int) -> Scalar:
    return Scalar(lambda a: math.log1p((K - 1) * math.exp(-a)), lambda a: -(K - 1) / (math.exp(a) + K - 1), q)


def _penalties(c: float, q: int) -> tuple[float, ...]:
    """lam_H, lam_1, ..., with (n Lam)^(1/q) = c."""
    shares = np.array(_UNEQUAL[:q])
    return tuple((c * shares / (_SAMPLES * np.prod(shares)) ** (1 / q)).tolist())


def _linear(loss: direct.LossOfLogits, K: int, layers: int, c: float) -> Layers:
    """Linear layers of width K, without a bias."""
    return Layers(loss, (_SAMPLES,) * K, (K,) * (layers + 1), _penalties(c, layers + 1))


def _problem(loss: str | Loss, K: int, layers: int, c: float) -> ufm.Problem:
    lam_H, *lam = _penalties(c, layers + 1)
    model = ufm.models.deep(layers=layers, lam=lam)
    return ufm.Problem.balanced(loss, K=K, d=K, n=_SAMPLES, lam_H=lam_H, bias=False, model=model)


def _singular(P: Layers, found: Minimum) -> np.ndarray:
    return np.linalg.svd(P.logits(found.x), compute_uv=False)


# --- Dang et al. 2023: cross-entropy --------------------------------------------------------------


def collapse_ce(level: Level) -> Iterator[Job]:
    """Four classes and two layers, where a square is lower; two classes, where nothing is."""
    cases = ((4, 2, 0.2),) if level == "quick" else ((4, 2, 0.2), (4, 2, 0.6), (4, 3, 0.5), (6, 2, 0.3))
    for K, layers, share in cases:
        yield Job(f"K{K}-layers{layers}-{share:g}", partial(_below, K, layers, share), 0.5)
    yield Job("K2-layers2-0.6", partial(_two_classes, 2, 0.6), 0.2)
    yield Job("curve", partial(_curve, 4, 2, 7 if level == "quick" else 21), 0.6)


def _below(K: int, layers: int, share: float) -> Outcome:
    scalar = _ce(K, layers + 1)
    C = share * scalar.tie()[0]
    P = _linear(direct.cross_entropy, K, layers, C / (K - 1))
    found = direct.search(P.f, P.unknowns, [(seed, 1.0) for seed in range(8)])
    prob = _problem("ce", K, layers, C / (K - 1))
    collapsed, best = scalar.lowest(C), theory.global_optimum(prob)
    sigma = _singular(P, found)
    config: dict[str, object] = {"K": K, "layers": layers, "n": _SAMPLES, "C/C_tie": share, "C": C}
    details = {
        "singular values of Z": sigma.round(9).tolist(),
        "f": found.value,
        "neural collapse": collapsed,
    }
    reached = _at_collapse(P, K, layers, C)
    instances = (
        compared("neural collapse less f at a point of lower rank", config, collapsed - found.value, 1e-9,
                 "paper", details),
        compared("f of neural collapse in closed form against a descent near it", config,
                 abs(collapsed - reached.value), 1e-11, "ours"),
        *_transition(scalar, prob, config),
        compared("the lowest structure of the theory against a search", config,
                 abs(best.objective - found.value), 1e-11, "ours"),
        compared("|grad f| at both", config, max(found.gradient, reached.gradient), 1e-10, "ours"),
    )  # fmt: skip
    rank = int((sigma > 1e-6 * sigma[0]).sum())
    row = (
        f"{K}",
        f"{layers}",
        f"{share:g}",
        f"{collapsed:.9f}",
        f"{found.value:.9f}",
        f"{rank}",
        best.structure,
    )
    header = ("K", "layers", "C/C_tie", "neural collapse", "f found", "its rank", "structure")
    return Outcome(instances, (Table("Cross-entropy, linear layers, no bias", header, (row,)),))


def _transition(scalar: Scalar, prob: ufm.Problem, config: dict[str, object]) -> Iterator[Instance]:
    """The theory's thresholds against roots in the scalar problem."""
    found = theory.threshold(prob)
    assert isinstance(found, theory.DepthThreshold)
    pairs = (
        ("C_tie", found.C_tie, scalar.tie()[0]),
        ("C_spin", found.C_spin, scalar.strength(scalar.spin())),
    )
    for name, claimed, root in pairs:
        what = f"{name} of the theory against the scalar problem, relative"
        yield compared(what, config, abs(claimed / root - 1), 1e-11, "ours")


def _at_collapse(P: Layers, K: int, layers: int, C: float) -> Minimum:
    """A descent from balanced factors of a simplex ETF."""
    scalar = _ce(K, layers + 1)
    spin = scalar.spin()
    a = float(brentq(lambda a: scalar.strength(a) - C, spin, 60.0 + spin))
    return direct.descend(P.f, _balanced(P, a, np.eye(K) - 1 / K))


def _balanced(P: Layers, a: float, frame: np.ndarray) -> np.ndarray:
    """Factors of a times this projector, each with the same share of the penalty."""
    q = len(P.lam)
    total = math.exp(float(np.log(P.lam).sum()) / q)
    size = (math.sqrt(_SAMPLES) * a) ** (1 / q)
    scales = [math.sqrt(total / lam) * size for lam in P.lam]
    factors = [scales[0] / math.sqrt(_SAMPLES) * frame, *(scale * frame for scale in scales[1:])]
    return np.concatenate([A.ravel() for A in factors])


def _two_classes(layers: int, share: float) -> Outcome:
    scalar = _ce(2, layers + 1)
    C = share * scalar.tie()[0]
    P = _linear(direct.cross_entropy, 2, layers, C)
    found = direct.search(P.f, P.unknowns, [(seed, 1.0) for seed in range(8)])
    config = {"K": 2, "layers": layers, "C/C_tie": share}
    apart = abs(found.value - scalar.lowest(C))
    return Outcome((compared("two classes: lowest f found against neural collapse", config, apart, 1e-11),))


def _curve(K: int, layers: int, count: int) -> Outcome:
    """f of neural collapse and of the lowest point found."""
    scalar = _ce(K, layers + 1)
    tie, _ = scalar.tie()
    shares, found = np.linspace(0.1, 1.04, count), []
    for share in shares:
        P = _linear(direct.cross_entropy, K, layers, float(share) * tie / (K - 1))
        found.append(direct.search(P.f, P.unknowns, [(seed, 1.0) for seed in range(3)], polish=0).value)
    fine = np.linspace(0.1, 1.04, 60)
    lines = [scalar.lowest(float(share) * tie) for share in fine]
    solved = np.minimum(found, math.log(K))
    return Outcome(
        (),
        curves=(
            Curve("depth", "neural collapse", fine.tolist(), lines),
            Curve("depth", "zero", [0.1, 1.04], [math.log(K)] * 2),
            Curve("depth", "lowest found", shares.tolist(), solved.tolist(), "points"),
        ),
    )


# --- Tirer and Bruna 2022, and Dang et al. 2023: squared error ------------------------------------


def collapse_mse(level: Level) -> Iterator[Job]:
    """Two layers, as Tirer and Bruna; more layers, on both sides of the tie."""
    quick = level == "quick"
    for layers in (2, 3) if quick else (2, 3, 4, 5):
        for share in (0.99,) if quick and layers > 2 else (0.4, 0.99, 1.01):
            yield Job(f"layers{layers}-{share:g}", partial(_squares, 4, layers, share), 0.2)


def _squares(K: int, layers: int, share: float, beta: float = 1.5) -> Outcome:
    q = layers + 1
    c = share * tie_of_squares(K, q, beta)
    P = _linear(partial(direct.squares, beta=beta), K, layers, c)
    prob = _problem(ufm.losses.mse(beta=beta), K, layers, c)
    best = theory.global_optimum(prob)
    starts = [direct.search(P.f, P.unknowns, [(seed, 1.0) for seed in range(3)])]
    if share < 1:  # near the tie random starts end at frames of fewer vectors
        noise = 0.02 * np.random.default_rng(0).normal(size=P.unknowns)
        starts.append(direct.descend(P.f, _balanced(P, 0.9 * beta, np.eye(K)) + noise))
    found = min(starts, key=lambda each: each.value)
    config = {"K": K, "layers": layers, "n": _SAMPLES, "beta": beta, "c/c_tie": share, "bias": False}
    lowest = min(found.value, beta**2)
    instances = [
        compared("f* in closed form against the lowest f found", config, abs(best.objective - lowest), 1e-11)
    ]
    if share < 1:
        Z = P.logits(found.x)
        frame = float(np.abs(Z - best.margin * np.eye(K)).max())
        instances.append(compared("logits against a I, an orthogonal frame", config, frame, 1e-8))
        stationary = 2 / K * (beta - best.margin) * best.margin ** (1 - 2 / q)
        what = "(2/K) (beta - a) a^(1-2/q) at the theory's a against c"
        instances.append(compared(what, config, abs(stationary - c), 1e-12, "ours"))
        tie = theory.threshold(prob)
        what = "c at which the frame and zero tie, of the theory against the formula, relative"
        instances.append(compared(what, config, abs(c / share / tie.c_tie - 1), 1e-12, "ours"))
    else:
        what = "f* beyond the tie against that of zero"
        instances.append(compared(what, config, abs(best.objective - beta**2), 1e-12, "ours"))
    return Outcome(tuple(instances))


def tie_of_squares(K: int, q: int, beta: float) -> float:
    """c at which the orthogonal frame and zero tie, for kappa = 1 and no bias."""
    return 2 / K * beta / (q - 1) * (beta * (q - 2) / (q - 1)) ** (1 - 2 / q)


# --- Sukenik et al. 2024: low rank is better ------------------------------------------------------


def low_rank(level: Level) -> Iterator[Job]:
    """ReLU layers, where a lower point exists, and linear ones, where for squared error none does."""
    yield Job("relu-K4-layers4", partial(_relu, 4, 4, 0.3), 1.0)
    if level == "full":
        yield Job("relu-K6-layers4", partial(_relu, 6, 4, 0.3), 6.0)
    yield Job("linear-K4-layers4", partial(_linear_squares, 4, 4, 0.3), 0.3)


def _relu(K: int, layers: int, share: float) -> Outcome:
    """A few descents from nonnegative starts, of which about half pass below neural collapse."""
    q = layers + 1
    c = share * tie_of_squares(K, q, 1.0)
    P = Layers(direct.squares, (1,) * K, (2 * K,) * layers + (K,), (c,) * q, None, relu=True)
    collapsed, lowest = _frame(K, q, c), math.inf
    for seed in range(1, 20):
        x = np.abs(0.5 * np.random.default_rng(seed).normal(size=P.unknowns))
        found = minimize(P.f, x, jac=True, method="L-BFGS-B", options={"maxiter": 500})
        lowest = min(lowest, float(found.fun))
        if lowest < collapsed - 1e-3:
            break
    config = {"K": K, "layers": layers, "n": 1, "kappa": 1.0, "beta": 1.0, "c/c_tie": share, "widths": 2 * K}
    details = {"neural collapse": collapsed, "f": lowest, "starts": seed}
    what = "ReLU layers, squared error: no point below neural collapse is found (0: one is)"
    instance = compared(what, config, float(not lowest < collapsed - 1e-6), 0.0, "paper", details)
    return Outcome((instance,))


def _frame(K: int, q: int, c: float) -> float:
    """The value of the orthogonal frame, beta = 1: the minimum over s of (s - 1)^2 + K (q/2) c s^(2/q)."""
    found = minimize_scalar(
        lambda s: (s - 1) ** 2 + K * q / 2 * c * s ** (2 / q), bounds=(0.5, 1.0), method="bounded",
        options={"xatol": 1e-12},
    )  # fmt: skip
    return float(found.fun)


def _linear_squares(K: int, layers: int, share: float) -> Outcome:
    q = layers + 1
    c = share * tie_of_squares(K, q, 1.0)
    P = _linear(direct.squares, K, layers, c)
    found = direct.search(P.f, P.unknowns, [(seed, 1.0) for seed in range(3)])
    best = theory.global_optimum(_problem(ufm.losses.mse(beta=1.0), K, layers, c))
    config = {"K": K, "layers": layers, "n": _SAMPLES, "c/c_tie": share}
    gap = abs(best.objective - found.value)
    return Outcome(
        (
            compared("linear layers, squared error: no point is below neural collapse (0: one is)", config,
                     float(best.lower_bound >= best.objective - 1e-12), 0.0, "paper"),
            compared("there: neural collapse against the lowest f found", config, gap, 1e-11, "ours"),
            compared("f* of the theory against the scalar problem", config,
                     abs(best.objective - _frame(K, q, c)), 1e-11, "ours"),
        )
    )  # fmt: skip


# --- Garrod and Keating 2024: how degenerate the minima are ---------------------------------------


def degeneracy(level: Level) -> Iterator[Job]:
    """The square and neural collapse at four classes: all zero eigenvalues come from rotations."""
    for layers in (2,) if level == "quick" else (2, 3):
        yield Job(f"K4-layers{layers}", partial(_degeneracy, 4, layers, 0.2), 0.3)
    yield Job("origin", partial(_origin, 4, 2), 0.1)


def rotations(rank: int, inner: list[int]) -> int:
    """sum over the dimensions between two factors of r (r-1)/2 + r (d_j - r)."""
    return sum(rank * (rank - 1) // 2 + rank * (d - rank) for d in inner)


def _degeneracy(K: int, layers: int, share: float) -> Outcome:
    C = share * _ce(K, layers + 1).tie()[0]
    P = _linear(direct.cross_entropy, K, layers, C / (K - 1))
    square = direct.search(P.f, P.unknowns, [(seed, 1.0) for seed in range(8)])
    instances, rows, counts = [], [], []
    for name, found in (("lowest", square), ("neural collapse", _at_collapse(P, K, layers, C))):
        values = np.linalg.eigvalsh(direct.hessian(P.f, found.x))
        scale, sigma = float(values[-1]), _singular(P, found)
        zeros, negative = int((np.abs(values) < 1e-7 * scale).sum()), int((values < -1e-7 * scale).sum())
        rank = int((sigma > 1e-6 * sigma[0]).sum())
        expected = rotations(rank, [K] * layers)
        config = {"K": K, "layers": layers, "C/C_tie": share, "point": name, "rank": rank}
        what = "zero eigenvalues of the Hessian less the dimension of the rotations"
        instances.append(compared(what, config, float(abs(zeros - expected)), 0.0))
        instances.append(compared("negative eigenvalues", config, float(negative), 0.0))
        counts.append(values.size - zeros)
        rows.append((name, f"{rank}", f"{found.value:.9f}", f"{zeros}", f"{expected}", f"{values.size}"))
    what = "the point of lower rank is not lower, or has not fewer positive eigenvalues (0: both)"
    fewer = rows[0][1] < rows[1][1] and square.value < float(rows[1][2])
    instances.append(compared(what, {"K": K, "layers": layers}, float(not fewer), 0.0))
    header = ("minimum", "rank", "f", "zero eigenvalues", "by rotations", "of")
    return Outcome(tuple(instances), (Table(f"Linear layers: {layers}, K = {K}", header, tuple(rows)),))


def _origin(K: int, layers: int) -> Outcome:
    P = _linear(direct.cross_entropy, K, layers, 1e-3)
    values = np.linalg.eigvalsh(direct.hessian(P.f, np.zeros(P.unknowns)))
    sizes = [rows * columns for rows, columns in P.shapes]
    weights = [P.lam[0] * _SAMPLES, *P.lam[1:]]
    expected = np.sort(np.repeat(weights, sizes))
    what = "eigenvalues of the Hessian at the origin against the penalties: a strict local minimum"
    apart = float(np.abs(values - expected).max() / expected.max())
    return Outcome((compared(what, {"K": K, "layers": layers, "c": 1e-3}, apart, 1e-7, "ours"),))
