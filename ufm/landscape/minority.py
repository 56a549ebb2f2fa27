"""Minority collapse over (imbalance, penalties): the phases of two groups of classes, and solved points.

K_A classes have R n_B samples each and K_B classes n_B; x = N sqrt(lam_W lam_H)/sqrt(n_B) depends on nothing
else of counts and penalties. With falling x the phases are

    IV   W = 0 and H = 0,
    III  only the simplex inside one group: features and classifiers of the other one are zero,
    II   the groups are apart, and the classes of one of them coincide,
    I    all classes are apart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from ufm import _checks, losses, theory
from ufm._figure import plot
from ufm._precision import in_float64
from ufm._problem import Problem, init
from ufm._solve import solve
from ufm.losses import Loss
from ufm.theory import GroupThresholds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: the phases in the order of falling penalties reversed: values of `MinorityDiagram.phase`
COLLAPSES = ("I", "II", "III", "IV")
#: samples of a minority class: ratios R are rounded to its multiples
_SAMPLES = 10_000
#: features and differences of features below this, relative to the largest, are zero
_ZERO = 1e-5


class Solved(NamedTuple):
    """Problems that were solved from a random start, P of them."""

    R: Float[np.ndarray, " P"]
    x: Float[np.ndarray, " P"]
    phase: Int[np.ndarray, " P"]  # of the solution: index into COLLAPSES
    expected: Int[np.ndarray, " P"]  # of theory
    above: Float[np.ndarray, " P"]  # objective above theory's optimum


class MinorityDiagram(NamedTuple):
    """Phases over imbalance (columns, M) and penalties (rows, L), with the curves between them."""

    R: Float[np.ndarray, " M"]  # n_A/n_B > 1
    x: Float[np.ndarray, " L"]  # N sqrt(lam_W lam_H)/sqrt(n_B)
    phase: Int[np.ndarray, "L M"]  # index into COLLAPSES
    x_zero: Float[np.ndarray, " M"]  # at and above it everything is zero
    x_means: Float[np.ndarray, " M"]  # at and above it one group is zero (K_A, K_B > 1)
    x_majority: Float[
        np.ndarray, " M"
    ]  # at and above it the classes of the majority coincide; nan: one class
    x_minority: Float[np.ndarray, " M"]  # the same of the minority
    solved: Solved
    problem: Problem  # of which R and x are swept; its columns are the class means
    K_A: int
    K_B: int
    power: float  # class weights (N/(K n_k))^power

    def to_dict(self) -> dict[str, Any]:
        """As JSON; nan becomes null, phases are named."""
        curves = ("R", "x", "x_zero", "x_means", "x_majority", "x_minority")
        found: dict[str, Any] = {name: _plain(getattr(self, name)) for name in curves}
        found |= {"K_A": self.K_A, "K_B": self.K_B, "power": self.power, "loss": repr(self.problem.loss)}
        found["phase"] = [[COLLAPSES[i] for i in row] for row in self.phase]
        points = {name: _plain(getattr(self.solved, name)) for name in ("R", "x", "above")}
        points |= {name: [COLLAPSES[i] for i in getattr(self.solved, name)] for name in ("phase", "expected")}
        return found | {"solved": points}

    def describe(self) -> str:
        """The problem in a line."""
        prob = self.problem
        bias = "no bias" if not prob.bias else f"lam_b={float(prob.lam_b):g}"
        weights = f", class weights $(N/(K n_k))^{{{self.power:g}}}$" if self.power else ""
        loss = losses.without_weights(prob.loss)
        return f"{loss!r}, {self.K_A} majority and {self.K_B} minority classes, {bias}{weights}"

    def plot(self) -> Figure:
        """A matplotlib figure: the phases, their boundaries, and the solved problems on top."""
        return plot(self)


def _plain(values: np.ndarray) -> list[Any]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


@in_float64
def minority_diagram(
    loss: str | Loss = "ce",
    *,
    K_A: int = 5,
    K_B: int = 5,
    R: ArrayLike | None = None,
    x: ArrayLike | None = None,
    bias: bool = True,
    lam_b: float = 0.0,
    power: float = 0.0,
    solved: int = 5,
    seed: int = 0,
    **hyperparameters: Any,
) -> MinorityDiagram:
    """Where the minority collapses, over the ratio R of the counts and x = N sqrt(lam_W lam_H)/sqrt(n_B).

    Theory: `theory.threshold` at each R. Experiment: at `solved` of the ratios a problem in the middle of
    each phase and one per cent on either side of each boundary, solved from a random start in the class
    means.

    Args:
        loss: a name or a `Loss` with a closed threshold: convex, smooth and with class symmetry.
        K_A, K_B: classes of the majority and of the minority.
        R: (M,) increasing, > 1; rounded to multiples of 1e-4.  Default: 1.2 to 1000.
        x: (L,) increasing, > 0.  Default: across all boundaries.
        bias, lam_b: of the problem.
        power: of the class weights (N/(K n_k))^power: 0 none, 1 inverse frequencies, 1/2 equal thresholds.
        solved: ratios at which problems are solved; 0 draws theory alone.
        seed: of the random starts.

    Raises:
        ValueError: R or x that does not increase or is outside its range, K_A or K_B < 1, power not finite.
        NoClosedForm: a loss that is not convex, not smooth or without class symmetry.

    Source: docs/theory.md, section 1.7.

    >>> import ufm
    >>> found = ufm.landscape.minority_diagram("ce", K_A=2, K_B=2, R=[2.0, 9.0], x=[0.9, 1.1, 5.0], solved=0)
    >>> [ufm.landscape.COLLAPSES[i] for i in found.phase[:, 1]]
    ['I', 'II', 'IV']
    """
    K_A, K_B = _checks.integer("K_A", K_A, least=1), _checks.integer("K_B", K_B, least=1)
    power = float(_checks.real("power", power))
    ratios = _checks.increasing("R", np.geomspace(1.2, 1e3, 60) if R is None else R, above=1 + 0.5 / _SAMPLES)
    labels, function = np.arange(K_A + K_B), losses.get(loss, **hyperparameters)
    base = Problem(function, labels, d=K_A + K_B, lam_W=1.0, lam_H=1.0, bias=bias, lam_b=lam_b)
    probs = [_at_ratio(base, K_A, ratio, power) for ratio in ratios]
    found = [_thresholds(prob) for prob in probs]
    curves = _Curves(*(np.array(part) for part in zip(*(_curves(t) for t in found), strict=True)))
    if x is None:
        x = np.geomspace(0.5 * np.nanmin(curves), 1.5 * np.nanmax(curves.zero), 60)
    xs = _checks.increasing("x", x, above=0.0)
    return MinorityDiagram(
        R=ratios,
        x=xs,
        phase=np.array([[_phase(t, value) for t in found] for value in xs]),
        x_zero=curves.zero,
        x_means=curves.means,
        x_majority=curves.majority,
        x_minority=curves.minority,
        solved=_solved(probs, found, ratios, _checks.integer("solved", solved, least=0), seed),
        problem=base,
        K_A=K_A,
        K_B=K_B,
        power=power,
    )


def _at_ratio(base: Problem, K_A: int, ratio: float, power: float) -> Problem:
    """The problem of the class means with these counts."""
    counts = np.where(np.arange(base.K) < K_A, round(ratio * _SAMPLES), _SAMPLES).astype(float)
    weights = (counts.mean() / counts) ** power if power else None
    return base.replace(samples=counts, class_weights=weights)


def _with_penalties(prob: Problem, x: float) -> Problem:
    lam = np.float64(x * math.sqrt(_SAMPLES) / prob.N)
    return prob.replace(lam_W=lam, lam_H=lam)


def _thresholds(prob: Problem) -> GroupThresholds:
    """In units of sqrt(n_B)."""
    found = theory.threshold(prob)
    root = math.sqrt(_SAMPLES)
    scaled = {name: getattr(found, name) / root for name in ("x_merge", "x_means", "x_vanish", "x_zero", "x")}
    return found._replace(**scaled)


class _Curves(NamedTuple):
    zero: Any
    means: Any
    majority: Any
    minority: Any


def _curves(t: GroupThresholds) -> _Curves:
    """Groups are sorted by their counts, so that the majority comes first."""
    return _Curves(t.x_zero, t.x_means, *t.x_merge)


def _phase(t: GroupThresholds, x: float) -> int:
    return COLLAPSES.index(t._replace(x=x).phase)


def _solved(
    probs: list[Problem], found: list[GroupThresholds], R: np.ndarray, count: int, seed: int
) -> Solved:
    """Solve between and next to the boundaries, at ratios spread over R."""
    places = np.unique(np.linspace(0, len(R) - 1, count + 2).round().astype(int)[1:-1])
    rows = [
        (R[i], x, *_ends(_with_penalties(probs[i], x), seed), _phase(found[i], x))
        for i in places
        for x in _probes(found[i])
    ]
    columns = [np.array(part) for part in zip(*rows, strict=True)] if rows else [np.zeros(0)] * 5
    at, x, phase, above, expected = columns
    return Solved(at, x, phase.astype(int), expected.astype(int), above)


def _probes(t: GroupThresholds) -> list[float]:
    """The middle of each phase, and one per cent on either side of each boundary."""
    bounds = np.array([t.x_zero, t.x_means, *t.x_merge])
    bounds = np.unique(bounds[np.isfinite(bounds)])
    edges = np.concatenate([[bounds[0] / 2], bounds, [bounds[-1] * 1.3]])
    middles = np.sqrt(edges[1:] * edges[:-1])
    wide = edges[1:] > 1.05 * edges[:-1]
    return sorted([*middles[wide], *(0.99 * bounds), *(1.01 * bounds)])


def _ends(prob: Problem, seed: int) -> tuple[int, float]:
    """The phase of a solution, and its objective above theory's."""
    sol = solve(prob, init(prob, seed=seed), progress=False)
    best = theory.global_optimum(prob)
    h = np.asarray(sol.params.H).T * math.sqrt(_SAMPLES)
    groups = [h[prob.counts == n] for n in np.unique(prob.counts)]
    size = np.linalg.norm(h, axis=1).max()
    above = float(sol.objective) - best.objective
    if size < _ZERO or float(np.abs(sol.params.W).max()) < _ZERO:
        return COLLAPSES.index("IV"), above
    means = max(float(np.linalg.norm(group.mean(axis=0))) for group in groups)
    if means < _ZERO * size:
        return COLLAPSES.index("III"), above
    merged = [float(np.ptp(group, axis=0).max()) < _ZERO * size for group in groups if len(group) > 1]
    return COLLAPSES.index("II" if any(merged) else "I"), above
