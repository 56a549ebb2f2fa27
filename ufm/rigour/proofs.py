"""Proofs by computation: critical points, negative curvature and counterexamples, in ball arithmetic.

Every float given (a parameter, a penalty, a hyperparameter) is the rational number that it is; every
operation after that encloses its exact result. What is reported as proved holds for the exact problem of
equation (7), if the library's ball arithmetic is right. Floating point chooses where to look, never what is
true.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple, cast

import numpy as np

from ufm import _checks
from ufm._precision import in_float64
from ufm._problem import Params, Problem
from ufm.rigour import balls, exact, newton
from ufm.rigour.balls import Ball, BallLoss, ball
from ufm.rigour.exact import Exact
from ufm.rigour.minimum import scalar_minimum
from ufm.rigour.newton import Reduced


class Bound(NamedTuple):
    """A real number between two decimal numbers, exact as printed; None where a side was not asked for."""

    name: str
    meaning: str
    lower: str | None
    upper: str | None

    def __str__(self) -> str:
        if self.lower is None:
            return f"{self.meaning} <= {self.upper}"
        return f"{self.meaning} in [{self.lower}, {self.upper}]"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Proof:
    """What was proved, in words and numbers; or that it was not, and why.

    `point`, where there is one, holds exact rationals (`fractions.Fraction`) that are nearer to the true
    critical point than any floats: within the bound "radius". It can be given to the functions of this module
    in place of floats.
    """

    claim: str  # "critical point", "negative curvature" or "value below neural collapse"
    statement: str  # the theorem; where `proved` is False, what was to be proved
    proved: bool
    why: str  # the argument used, or what failed
    bounds: tuple[Bound, ...]
    problem: str
    digits: int  # decimal digits that the balls carried
    library: str
    point: Params | None = None  # arrays of Fractions, shapes of `Params`

    def bound(self, name: str) -> Bound:
        """The bound of that name."""
        names = [b.name for b in self.bounds]
        return self.bounds[names.index(_checks.choice("name", name, names))]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; without `point`."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "point"}
        return found | {"bounds": [bound._asdict() for bound in self.bounds]}

    def __repr__(self) -> str:
        rows = [("problem", self.problem), ("statement", self.statement), ("why", self.why)]
        rows += [(b.name, str(b)) for b in self.bounds]
        rows += [("arithmetic", f"{self.library}, {self.digits} digits")]
        word = "proved" if self.proved else "NOT proved"
        return "\n".join([f"Proof of {self.claim}: {word}"] + [f"  {k:<11} : {v}" for k, v in rows])


def _proof(
    prob: Problem, claim: str, statement: str, why: str, bounds: Sequence[Bound], digits: int, *,
    proved: bool, point: Exact | None = None,
) -> Proof:  # fmt: skip
    return Proof(
        claim=claim,
        statement=statement,
        proved=proved,
        why=why,
        bounds=tuple(bounds),
        problem=repr(prob),
        digits=digits,
        library=balls.version(),
        point=None if point is None else Params(*cast(Any, point)),
    )


def _between(name: str, meaning: str, x: Ball, digits: int) -> Bound:
    return Bound(name, meaning, balls.decimal_below(x, digits), balls.decimal_above(x, digits))


def _at_most(name: str, meaning: str, x: Ball) -> Bound:
    return Bound(name, meaning, None, balls.decimal_above(x, 4))


def _precision(digits: int) -> Any:
    """The working precision, with 64 bits to spare for what rounding takes."""
    return balls.flint().ctx.workprec(math.ceil(digits * math.log2(10)) + 64)


# --- critical points ------------------------------------------------------------------------------


@in_float64
def prove_critical_point(prob: Problem, params: Params, *, eps: float = 1e-8, digits: int = 50) -> Proof:
    """Prove that f has a critical point within `eps` of `params`, in the Euclidean norm of all unknowns.

    The problem is first reduced within the tolerance `eps`: the features of a class count as one if they lie
    within eps/(4 sqrt K) of their mean, singular values of [W; H'] below eps/4 count as zero. Critical points
    of the reduced problem are critical for f (both reductions are fixed points of symmetries of f). Then the
    point is polished to `digits` digits and Krawczyk's test proves one zero of the gradient in a small cube,
    on a slice across the orbit of O(rank) and, for lam_b = 0 and a loss of logit differences, of the bias
    shift; the component that the slice leaves out is proved zero as well. `proof.point` is the polished
    point.

    A critical point that is not isolated modulo these symmetries is not proved (`why` says so): a truncated
    spectrum of MSE, a point at its threshold.

    Args:
        prob: a problem with a loss of the shelf; any labels and counts.
        params: floats, or arrays of `fractions.Fraction`.
        eps: the distance allowed. 1e-8 is what a solver with tol = 1e-10 leaves at a condition of 100.
        digits: decimal digits of the polished point and of `bounds`.

    Raises:
        ImportError: python-flint is not installed.
        ValueError: a user's loss; a wrong shape, a value that is not finite, eps <= 0; more than 1500
            unknowns after the reduction.

    Source: ours; Krawczyk 1969, Palais 1979 (symmetric criticality).

    >>> import ufm
    >>> prob = ufm.Problem.balanced("ce", K=3, d=4, n=2, lam_W=0.02, lam_H=0.01)
    >>> proof = ufm.landscape.prove_critical_point(prob, ufm.theory.global_optimum(prob).params)
    >>> proof.proved, proof.bound("objective").upper[:12]
    (True, '0.1956700349')
    """
    given, eps, digits = _given(prob, params, eps, digits)
    with _precision(digits):
        return _critical_point(prob, given, eps, digits)[0]


def _given(prob: Problem, params: Any, eps: Any, digits: Any) -> tuple[Exact, float, int]:
    balls.loss_in_balls(prob.loss)
    eps = float(_checks.real("eps", eps, above=0.0))
    return exact.exact(prob, params), eps, _checks.integer("digits", digits, least=10)


def _critical_point(prob: Problem, given: Exact, eps: float, digits: int) -> tuple[Proof, Ball]:
    """The proof, and the distance from what was given that it allows."""
    problem, Q, owner, start = exact.reduce(prob, given, eps)
    claim = "critical point"
    statement = f"f has a critical point x with |x - params| <= {eps!r}: grad f(x) = 0"
    found = newton.polish(problem, start, reach=2 * eps)
    if found.inverse is not None and not found.moved <= 2 * eps:
        why = _far(problem, start, found.moved)
        return _proof(prob, claim, statement, why, (), digits, proved=False), ball(eps)
    cube = newton.enclose(problem, found)
    if cube.why:
        return _proof(prob, claim, statement, cube.why, (), digits, proved=False), ball(eps)
    centre = Exact(*(exact.rationals(x) for x in exact.expand(problem, found.x, Q, owner)))
    true = exact.expand(problem, cube.x, Q, owner)
    distance = exact.distance(given, true).upper()
    bounds = [
        _at_most("distance", "|x - params|", distance),
        _at_most("radius", "|x - point|", exact.distance(centre, true)),
        _at_most("contraction", "|I - C DPhi|", cube.contraction),
        _between("objective", "f(x)", newton.objective(problem, cube.x), digits),
    ]
    near = bool(distance <= ball(eps))
    why = _method(prob, problem) if near else "a critical point was proved, but further from params than eps"
    return _proof(prob, claim, statement, why, bounds, digits, proved=near, point=centre), distance


def _far(problem: Reduced, start: list[Ball], moved: float) -> str:
    slope = balls.norm(newton.objects(newton.gradient(problem, start)))
    return (
        f"Newton's method moves by {moved:.1e} or more from params, where |grad f| = "
        f"{float(slope.mid()):.1e}: no critical point is found within eps; polish params with ufm.solve"
    )


def _method(prob: Problem, problem: Reduced) -> str:
    return (
        f"interval Newton (Krawczyk) for the {problem.size} unknowns of the problem with {problem.M} "
        f"distinct features of rank {problem.r} (from {prob.N} of dimension {prob.d}), on a slice across "
        f"its {problem.gauge}-dimensional orbit"
    )


# --- negative curvature ---------------------------------------------------------------------------


@in_float64
def prove_negative_curvature(
    prob: Problem, params: Params, direction: Params, *, eps: float = 1e-8, digits: int = 50
) -> Proof:
    """Prove that a critical point near `params` is a strict saddle: D^2 f[v, v] < 0 along v = `direction`.

        D^2 f[v, v] = (1/N) sum_j (u_j' Hess L u_j + 2 grad L' dW dh_j) + lam_W |dW|^2 + lam_H |dH|^2
                      + lam_b |db|^2,   u_j = dW h_j + W dh_j + db,

    bounded at once over the whole ball around `params` in which `prove_critical_point` found one.

    Args:
        direction: v = (dW, dH, db), any length but zero; such as `escape_direction(prob, params).direction`.
        eps, digits: see `prove_critical_point`.

    Raises:
        ImportError, ValueError: as `prove_critical_point`; a direction of a wrong shape or equal to zero.
    """
    given, eps, digits = _given(prob, params, eps, digits)
    v = exact.exact(prob, direction, "direction: ")
    if not any(np.any(x) for x in v):
        raise ValueError("direction: expected at least one entry that is not zero, got zero")
    with _precision(digits):
        critical, radius = _critical_point(prob, given, eps, digits)
        reach = balls.decimal_above(radius, 4)
        statement = (
            f"f has a critical point x with |x - params| <= {reach}, and D^2 f(y)[v, v] < 0 at every y with "
            f"|y - params| <= {reach}: x is a strict saddle"
        )
        if not critical.proved:
            return dataclasses.replace(critical, claim="negative curvature", statement=statement)
        curvature = _curvature(prob, given, ball(Fraction(reach)), v)
        holds = balls.below(curvature, ball(0))
        why = f"{critical.why}; the quadratic form over the whole ball"
        if not holds:
            why = "the quadratic form over the ball around params is not proved negative along the direction"
        return dataclasses.replace(
            critical,
            claim="negative curvature",
            statement=statement,
            proved=holds,
            why=why,
            bounds=(*critical.bounds, _between("curvature", "D^2 f(y)[v, v] / |v|^2", curvature, 20)),
        )


def _curvature(prob: Problem, given: Exact, radius: Ball, v: Exact) -> Ball:
    """D^2 f[v, v] / |v|^2 over the cube of that radius around a point."""
    loss, product = balls.loss_in_balls(prob.loss), newton.product
    labels = np.asarray(prob.labels)
    first, weights, _ = balls.distinct(labels.tolist(), given.H, v.H)
    W, H, b = (exact.balled(x, radius) for x in (given.W, given.H[:, first], given.b))
    dW, dH, db = exact.balled(v.W), exact.balled(v.H[:, first]), exact.balled(v.b)
    Z = product(W, H) + (b[:, None] if prob.bias else ball(0))
    U, twist = product(dW, H) + product(W, dH) + db[:, None], product(dW, dH)
    total = ball(0)
    for m, (k, w) in enumerate(zip(labels[first].tolist(), weights.tolist(), strict=True)):
        z = list(Z[:, m])
        bend = U[:, m] @ (np.array(loss.hessian(z, k), dtype=object) @ U[:, m])
        slope = np.array(loss.gradient(z, k), dtype=object) @ twist[:, m]
        total += w * (bend + 2 * slope) / prob.N
    sizes = [balls.squares(dW), weights.astype(object) @ (dH * dH).sum(axis=0), balls.squares(db)]
    penalty = sum((lam * size for lam, size in zip(exact.penalties(prob), sizes, strict=True)), ball(0))
    return (total + penalty) / sum(sizes, ball(0))


# --- counterexamples to Theorem 1 -----------------------------------------------------------------


@in_float64
def prove_below(prob: Problem, params: Params, *, digits: int = 50) -> Proof:
    """Prove that f(params) < min over a >= 0 of l(a) + C a, the value of neural collapse: Theorem 1 is false.

    l(a) = L(a e_k, k) is the scalar profile, C = (K-1) sqrt(n lam_W lam_H); a = 0 is the trivial point. Zhou
    et al. 2022, Theorem 1, says that f is never below this minimum. f(params) is enclosed as it stands, be it
    critical or not. The minimum over all a >= 0 is bounded by branch and bound with l' on intervals; beyond
    a = l(0)/C the penalty alone exceeds the trivial value, because l >= 0.

    Raises:
        ImportError, ValueError: as `prove_critical_point`; unequal class counts; a loss that is not a
            function of logit differences (MSE).

    >>> import ufm
    >>> prob = ufm.Problem.balanced("fl", gamma=3.0, K=20, d=21, n=1, lam_W=1.20108 / 19, lam_H=1.20108 / 19)
    >>> best = ufm.theory.global_optimum(prob)
    >>> best.regime, ufm.landscape.prove_below(prob, best.params).proved
    ('partial', True)
    """
    loss = balls.loss_in_balls(prob.loss)
    if loss.profile is None:
        raise ValueError(f"loss: expected a function of logit differences (ce, ls, fl), got {prob.loss!r}")
    if prob.n is None:
        raise ValueError(f"labels: expected equally many samples in every class, got {prob.unequal}")
    digits = _checks.integer("digits", digits, least=10)
    given = exact.exact(prob, params)
    with _precision(digits):
        value = _objective(prob, loss, given)
        lam_W, lam_H, _ = exact.penalties(prob)
        least = scalar_minimum(loss, prob.K, (prob.K - 1) * (prob.n * lam_W * lam_H).sqrt(), digits)
        holds = balls.below(value, least.value)
        ends = balls.decimal_below(ball(least.left), 12), balls.decimal_above(ball(least.right), 12)
        bounds = [
            _between("objective", "f(params)", value, digits),
            _between("collapse", "min over a >= 0 of l(a) + C a", least.value, digits),
            Bound("margin", "its minimisers", *ends),
            _between("gap", "the minimum less f(params)", least.value - value, 12),
        ]
    statement = (
        "f(params) < min over a >= 0 of l(a) + C a, the neural-collapse optimum (a = 0: the trivial point): "
        "Theorem 1 of Zhou et al. 2022 is false for this problem"
    )
    why = "f(params) in balls; the scalar minimum by branch and bound over all a >= 0"
    if not holds:
        why = "f(params) is not proved to be below the minimum over a"
    return _proof(prob, "value below neural collapse", statement, why, bounds, digits, proved=holds)


def _objective(prob: Problem, loss: BallLoss, given: Exact) -> Ball:
    """f at a point; samples that are bitwise the same are evaluated once."""
    labels = np.asarray(prob.labels)
    first, weights, _ = balls.distinct(labels.tolist(), given.H)
    W, H, b = exact.balled(given.W), exact.balled(given.H[:, first]), exact.balled(given.b)
    Z = newton.product(W, H) + (b[:, None] if prob.bias else ball(0))
    groups = enumerate(zip(labels[first].tolist(), weights.tolist(), strict=True))
    fit = sum((w * loss.value(list(Z[:, m]), k) for m, (k, w) in groups), ball(0)) / prob.N
    sizes = [balls.squares(W), weights.astype(object) @ (H * H).sum(axis=0), balls.squares(b)]
    penalty = sum((lam * size for lam, size in zip(exact.penalties(prob), sizes, strict=True)), ball(0))
    return fit + penalty / 2
