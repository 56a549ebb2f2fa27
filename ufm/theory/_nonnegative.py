"""The optimum and the thresholds of features that are not negative.

Equal counts: the penalty of a (I - 11'/K) rises by the factor sqrt(K/(K-1)), as if c did. Other convex
losses pay Gamma(a, m) for a (I - 11'/K) + m 11'/K. Unequal counts: a neuron for each class
(`theory._columns`), if the copositive norm of the gradient allows it.

Source: docs/theory.md, section 6.4.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ufm import losses
from ufm._precision import in_float64
from ufm._problem import Params, Problem
from ufm.losses._base import Setting
from ufm.losses._closed import Groups, NoClosedForm, SymmetricPoint
from ufm.models import Free, NonNegative
from ufm.theory import _blocks, _columns, _copositive, _frames, _gamma, optima, thresholds
from ufm.theory._setting import any_counts
from ufm.theory.optima import Optimum, collapsed_optimum
from ufm.theory.profiles import facts_of
from ufm.theory.thresholds import Threshold

#: a rank-one part of the class logits: the column of W and the features of the classes, up to scale
Neuron = tuple[np.ndarray, np.ndarray]


def optimum(prob: Problem) -> Optimum:
    """The global minimum under H >= 0.

    Raises:
        NoClosedForm: fewer dimensions than neurons; a loss without class symmetry, or neither shift-invariant
            nor convex; unequal counts with a loss that is not convex, or where a neuron for each class is not
            optimal, as with a bias where a class holds more than half of the samples.

    Source: docs/theory.md, section 6.4.
    """
    s = any_counts(prob)
    if prob.n is None:
        return _unequal(s, _blocks.groups_of(prob.counts, prob.class_weights))
    best = _balanced(s)
    if best.margin == 0 and best.mean_eigenvalue == 0:
        return best
    neurons = _neurons(s.K, best.margin, best.mean_eigenvalue)
    return best._replace(structure=_structure(best), point=_point(s, neurons, best.b, np.full(s.K, s.n)))


# --- equal counts ---------------------------------------------------------------------------------


def dearer(s: Setting) -> Setting:
    """With c sqrt(K/(K-1)) in place of c."""
    return s._replace(c_squared=s.c_squared * Fraction(s.K, s.K - 1))


def _balanced(s: Setting) -> Optimum:
    if facts_of(s.loss, s.K).shift_invariant:
        best = collapsed_optimum(dearer(s))
    else:
        best = optima.framed(s, _of_gamma(s))
    return best._replace(setting=s)


def _of_gamma(s: Setting) -> SymmetricPoint:
    why_not = optima.not_convex(s)
    if why_not:
        raise NoClosedForm(f"loss: with features that are not negative {why_not}")
    return optima.averaged(s, _gamma.optimum(s), "centred")


def _structure(best: Optimum) -> str:
    a, m = best.margin, best.mean_eigenvalue
    if a == 0:
        return best.structure
    if m == 0:
        return "orthogonal class means, the classifier a simplex ETF"
    if abs(m) <= abs(a) * (1 + 1e-12):
        return "orthogonal class means" + (" and classifier" if a == m else "")
    return "orthogonal class means and a neuron that all classes share"


def _neurons(K: int, a: float, m: float) -> list[Neuron]:
    """Of a (I - 11'/K) + m 11'/K: one for each class, and one for all where |m| > |a|."""
    within = m if abs(m) <= abs(a) * (1 + 1e-12) else float(np.copysign(a, m))
    Z = a * (np.eye(K) - 1 / K) + within / K
    each = [(Z[:, k], np.eye(K)[k]) for k in range(K)] if a else []
    return each if within == m else [*each, (np.full(K, (m - within) / K), np.ones(K))]


def _point(s: Setting, neurons: list[Neuron], b: np.ndarray, counts: np.ndarray) -> Params:
    """W and H with lam_W |w|^2 = lam_H |h|^2 for each neuron.

    Raises:
        NoClosedForm: d is smaller than the number of neurons.
    """
    if s.d < len(neurons):
        raise NoClosedForm(
            f"d: the optimum needs d >= {len(neurons)}, a dimension for each neuron, got d={s.d} with "
            f"K={s.K}; ufm.solve and ufm.landscape.certificate take any d"
        )
    W, means = np.zeros((s.K, s.d)), np.zeros((s.d, s.K))
    for i, (z, features) in enumerate(neurons):
        size = float(np.linalg.norm(z)) / math.sqrt(float(counts @ features**2))
        eta = math.sqrt(math.sqrt(s.lam_W / s.lam_H) * size)
        W[:, i], means[i] = z / eta, eta * features
    return Params(jnp.asarray(W), jnp.asarray(means[:, s.labels]), jnp.asarray(b))


# --- unequal counts -------------------------------------------------------------------------------


def _unequal(s: Setting, groups: Groups) -> Optimum:
    loss = losses.without_weights(s.loss)
    facts = facts_of(loss, s.K)
    alone = facts.shift_invariant and facts.symmetric and loss.convex and not s.bias
    found = _separate(s._replace(loss=loss), groups) if alone else _columns.solve(s, groups)
    lam, counts = math.sqrt(s.c_squared / s.n), groups.counts[groups.of_class]
    if not alone and not _copositive.is_at_most(found.gradient, lam):
        raise NoClosedForm(_not_orthogonal(s, counts))
    lengths = np.linalg.norm(found.Z, axis=0)
    neurons = _own_neurons(found)
    others = found.Z + found.b[:, None] - np.diag(np.full(s.K, np.inf))
    own = np.diag(found.Z) + found.b
    return Optimum(
        objective=found.value,
        margin=float((own - others.max(axis=0)).min()),
        regime="non-trivial" if len(neurons) else "trivial",
        structure=_frame(s.K, len(neurons)),
        proved="proved",
        theorem="a neuron for each class, below the copositive norm (loss declared convex)",
        remark="the classes are not balanced: they vanish one by one",
        mean_eigenvalue=np.nan,
        bias=float(found.b.mean()),
        b=found.b,
        trivial=_trivial(s, groups),
        lower_bound=found.value,
        factors=_frames.Factors(found.Z[:, lengths > 0], np.ones(len(neurons)), np.eye(s.K)[:, lengths > 0]),
        setting=s,
        point=_point(s, neurons, found.b, counts),
    )


def _trivial(s: Setting, groups: Groups) -> float:
    p = _blocks.program(s, groups)
    return _blocks.objective(p, _blocks.from_zero(p, s.bias))


def _frame(K: int, active: int) -> str:
    if active == 0:
        return "zero"
    gone = f", the other {K - active} at the origin" if active < K else ""
    return f"orthogonal class means of {active} classes{gone}"


def _not_orthogonal(s: Setting, counts: np.ndarray) -> str:
    k, most = int(np.argmax(counts)), int(counts.max())
    return (
        "bias, loss: with unequal counts the optimum is known where a neuron for each class is optimal, and "
        "here |G h| > lam |h| for some h >= 0 (with a free bias so if a class holds more than half of the "
        f"samples; class {k} holds {most} of {s.N}); use bias=False, theory.orthogonal_frame for the best "
        "such point, or ufm.solve with ufm.landscape.certificate"
    )


def _separate(s: Setting, groups: Groups) -> _columns.Columns:
    """Without a bias: min l(a) + C_k a for each class, C_k = N lam sqrt((K-1)/K)/(w_k sqrt(n_k))."""
    K, N = s.K, s.N
    points = []
    for n, weight in zip(groups.counts.tolist(), groups.weights.tolist(), strict=True):
        c_squared = s.c_squared / s.n * Fraction(N * N, n * K * (K - 1)) / Fraction(weight) ** 2
        points.append(collapsed_optimum(s._replace(c_squared=c_squared, d=K, bias=False, lam_b=0.0)))
    share = groups.weights * groups.samples / N
    a = np.array([point.margin for point in points])[groups.of_class]
    value = float(share @ np.array([point.objective for point in points]))
    return _columns.Columns((np.eye(K) - 1 / K) * a, np.zeros(K), value, np.zeros((K, K)))


class OrthogonalFrame(NamedTuple):
    """The lowest point with a neuron for each class, whether or not it is the global minimum."""

    objective: float
    params: Params
    largest: float  # max |G h| over h >= 0, |h| = 1; beyond 12 classes an upper bound of it
    lam: float  # sqrt(lam_W lam_H)
    share: float  # of the samples, that the largest class holds

    @property
    def optimal(self) -> bool:
        """Whether it is proved to be the global minimum: |G h| <= lam |h| for all h >= 0."""
        return self.largest <= self.lam * (1 + _copositive.ROUNDING)


@in_float64
def orthogonal_frame(prob: Problem) -> OrthogonalFrame:
    """The lowest point with H >= 0 at which each class has a neuron of its own, h_k = eta_k e_k.

    It is the global minimum for equal counts of a shift-invariant loss, for unequal counts without a bias,
    and in general where `optimal`. With a free bias it is not if it uses all classes and one of them holds
    more than half of the samples: sum_k sqrt(n_k) g_k = 0, |g_k| = lam and <g_j, g_k> <= 0 need
    n_k <= N - n_k.

    Raises:
        NoClosedForm: the loss has no class symmetry, is not convex or not smooth; fewer dimensions than
            neurons; the infimum appears not to be attained.
        ValueError: a batch of problems.

    Source: docs/theory.md, section 6.4; for CE without a bias the frame of Dang et al. 2024.

    >>> import ufm
    >>> prob = ufm.Problem.from_counts("ce", counts=[40, 1, 1, 1], d=4, lam_W=0.02, lam_H=0.02)
    >>> frame = orthogonal_frame(prob)
    >>> round(frame.objective, 6), frame.optimal
    (0.27274, False)
    """
    s = any_counts(prob)
    groups = _blocks.groups_of(prob.counts, prob.class_weights)
    found, counts = _columns.solve(s, groups), groups.counts[groups.of_class]
    exact = s.K <= _copositive.ENUMERATED
    size = _copositive.largest(found.gradient)[0] if exact else _copositive.upper_bound(found.gradient)
    params = _point(s, _own_neurons(found), found.b, counts)
    return OrthogonalFrame(found.value, params, size, math.sqrt(s.c_squared / s.n), float(counts.max() / s.N))


def _own_neurons(found: _columns.Columns) -> list[Neuron]:
    """One for each class whose logits are not zero."""
    K = len(found.b)
    return [(found.Z[:, k], np.eye(K)[k]) for k in np.flatnonzero(np.linalg.norm(found.Z, axis=0))]


# --- thresholds -----------------------------------------------------------------------------------


class VanishingThresholds(NamedTuple):
    """Where classes vanish without a bias, in x = N sqrt(lam_W lam_H), of G groups; largest count first."""

    counts: Int[np.ndarray, " G"]  # n_g
    sizes: Int[np.ndarray, " G"]  # K_g, the classes that have n_g samples each
    weights: Float[np.ndarray, " G"]  # w_g, ones without class weights
    x_vanish: Float[np.ndarray, " G"]  # at and above it the features and the rows of the group are zero
    x: float  # of the problem

    @property
    def x_zero(self) -> float:
        """At and above it W = 0 and H = 0."""
        return float(self.x_vanish.max())

    @property
    def active(self) -> int:
        """How many classes are not zero."""
        return int(self.sizes[self.x < self.x_vanish].sum())

    @property
    def phase(self) -> str:
        """In words."""
        return _frame(int(self.sizes.sum()), self.active)

    @property
    def collapses(self) -> bool:
        """Whether the global optimum is not zero."""
        return self.x < self.x_zero


def threshold(prob: Problem) -> Threshold | VanishingThresholds:
    """Of a problem with H >= 0.

    Raises:
        NoClosedForm: a loss without class symmetry, or neither shift-invariant nor convex; unequal counts
            with a bias, or where a neuron for each class is not optimal at the origin.

    Source: docs/theory.md, section 6.4.
    """
    s = any_counts(prob)
    if prob.n is None:
        return _vanishing(s, _blocks.groups_of(prob.counts, prob.class_weights))
    if not facts_of(s.loss, s.K).shift_invariant:
        if optima.not_convex(s):
            raise NoClosedForm(f"loss: {optima.not_convex(s)}")
        return thresholds.second_order(s, _gamma.threshold(s))
    free = thresholds.balanced_threshold(prob.replace(model=Free()))
    scale = math.sqrt((s.K - 1) / s.K)
    names = ("c_thr", "C_thr", "C_tie", "C_spin")
    return free._replace(**{name: getattr(free, name) * scale for name in names})


def _vanishing(s: Setting, groups: Groups) -> VanishingThresholds:
    """Class k vanishes where N lam >= w_k sqrt(n_k) |grad L(0, k)|."""
    loss = losses.without_weights(s.loss)
    _blocks.program(s, groups)  # refuses losses without symmetry, convexity or smoothness
    if s.bias:
        raise NoClosedForm(
            "bias: with unequal counts and features that are not negative the thresholds are known without a "
            "bias; use bias=False, or ufm.solve_sweep over the penalties"
        )
    slopes = np.asarray(jax.vmap(jax.grad(loss), (None, 0))(jnp.zeros(s.K), jnp.arange(s.K)))
    if float(slopes[0] @ slopes[1]) > 1e-12 * float(slopes[0] @ slopes[0]):
        raise NoClosedForm(
            f"loss: the gradients of {loss!r} at the origin have positive inner products, so that a neuron "
            "for each class is not optimal there; ufm.solve and ufm.landscape.certificate take it"
        )
    size = float(np.linalg.norm(slopes[0]))
    x = s.N * math.sqrt(s.c_squared / s.n)
    x_vanish = size * groups.weights * np.sqrt(groups.counts)
    return VanishingThresholds(groups.counts, groups.sizes, groups.weights, x_vanish, x)


optima.OF_MODELS[NonNegative] = optimum
thresholds.OF_MODELS[NonNegative] = threshold
