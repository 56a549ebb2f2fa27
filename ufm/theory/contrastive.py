"""Definition 1, the contrastive property, decided for any loss by six tests.

A loss passes T1-T5: Theorem 1 holds without a bias, by ||Z||_* >= (1/K) sum_k |t_k|. It passes T6 as well:
Theorem 1 holds with any bias, by Jensen for the convex hull of phi.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm import _checks, _compile, losses
from ufm._precision import in_float64
from ufm.losses import Loss
from ufm.losses._profile import ScalarProfile
from ufm.theory import profiles
from ufm.theory.thresholds import tie_margin

STRICT = 1e-9  # T4: a smaller relative gain of averaging counts as none


class Check(NamedTuple):
    """One test with what it measured."""

    name: str
    statement: str
    value: float
    tolerance: float
    passed: bool
    failure: str  # what its failure means


class Counterexample(NamedTuple):
    """Where the first failing test fails most."""

    test: str
    text: str
    z: np.ndarray | None  # (K,) logits of class `k`
    k: int


class Tie(NamedTuple):
    """Two margins that both minimise l(a) + C a; depth is how far l stands above its chord between them."""

    low: float
    high: float
    C: float
    depth: float


class ContrastiveProperty(NamedTuple):
    """The decision, its reason and all that was measured."""

    holds: bool  # T1-T5: Theorem 1 without a bias
    holds_with_bias: bool  # T6 as well: proves Theorem 1 with any bias; where False, open or refuted
    reason: str
    counterexample: Counterexample | None  # None where it holds
    phi: Callable[[Any], Any]  # phi(t), the paper's argument t = -(K-1) a
    tests: tuple[Check, ...]
    ties: tuple[Tie, ...]
    K: int


@in_float64
def contrastive_property(loss: str | Loss | Callable[..., Any], K: int) -> ContrastiveProperty:
    """Whether a loss has the contrastive property, Definition 1, and if not, why.

    T1  L(z + s 1, k) = L(z, k).
    T2  L treats the classes alike.
    T3  L(z, k) >= phi(t), t = sum_{j != k} (z_j - z_k): averaging the non-targets never raises L (random
        logits and 300 steps of adversarial descent).
    T4  with equality at equal non-targets only.
    T5  argmin of phi(t) + c |t| is unique, attained and t* <= 0, for (K-1) c in [1e-4, 10].
    T6  the convex hull of phi on the whole line touches phi at every t*(c).

    `holds` is T1-T5. T1, T2 and T6 are ours: the paper uses the first two without stating them, and its
    Theorem 1 with a bias is proved by T6 and false for some losses that fail it (focal, K >= 18). Read to the
    letter, "t* < 0 for any c > 0" holds for no loss: t* = 0 above the threshold.

    Returns: a `ContrastiveProperty`. The tests are numerical: a pass is evidence, a failure comes with a
    counterexample. Deterministic.

    Raises:
        ValueError: a name or function that is not a loss; K < 2.

    Source: docs/theory.md, section 1.4; Zhou et al. 2022, Definition 1, equation (10) and Appendix B.
    """
    loss, K = losses.get(loss), _checks.integer("K", K, least=2)
    loss = losses.check(loss, K)
    facts = profiles.measure(loss, K)
    by_shift, by_class = _shift(loss, K, facts), _symmetry(loss, facts)
    averaging, strict = _averaging(loss, K)
    phi, profile = _phi(loss, K, facts)
    unique, hull, ties = _scalar(phi, profile)
    found = (by_shift, by_class, averaging, strict, unique, hull)
    failed = [(check, example) for check, example in found if not check.passed]
    holds = all(check.passed for check, _ in found[:5])
    return ContrastiveProperty(
        holds=holds,
        holds_with_bias=not failed,
        reason="; ".join(check.failure for check, _ in failed) or "all six tests pass",
        counterexample=None if holds else failed[0][1],
        phi=lambda t: phi(-np.asarray(t) / (K - 1)),
        tests=tuple(check for check, _ in found),
        ties=ties,
        K=K,
    )


Found = tuple[Check, Counterexample | None]


# --- T1, T2: what the loss may depend on ----------------------------------------------------------


def _shift(loss: Loss, K: int, facts: profiles.Facts) -> Found:
    check = Check(
        "T1",
        "L(z + s 1, k) = L(z, k)",
        facts.shift,
        profiles.tolerance(),
        facts.shift_invariant,
        "not a function of logit differences",
    )
    if check.passed:
        return check, None
    z = np.linspace(-1.0, 1.0, K)
    low, high = (float(loss(jnp.asarray(z + s), 0)) for s in (0.0, 1.0))
    return check, Counterexample("T1", f"L(z, 0) = {low:.6g} but L(z + 1, 0) = {high:.6g}", z, 0)


def _symmetry(loss: Loss, facts: profiles.Facts) -> Found:
    check = Check(
        "T2",
        "L does not change if logits and label are permuted alike",
        facts.symmetry,
        profiles.tolerance(),
        facts.symmetric,
        "the classes are not treated alike",
    )
    text = f"permuting the classes changes {loss!r} by {facts.symmetry:.3g} relative to 1 + |L|"
    return check, None if check.passed else Counterexample("T2", text, None, 0)


# --- T3, T4: averaging the non-targets ------------------------------------------------------------


def _gap(loss: Loss, z: Array, k: Array) -> tuple[Array, Array]:
    """L(z) - L(averaged z) relative to 1 + |L|; and relative to |L|, the square of the spread divided out."""
    own = jnp.arange(z.shape[0]) == k
    target = jnp.sum(jnp.where(own, z, 0.0))
    averaged = jnp.where(own, target, (jnp.sum(z) - target) / (z.shape[0] - 1))
    before, after = loss(z, k), loss(averaged, k)
    gap, size, spread = before - after, jnp.abs(before) + jnp.abs(after), jnp.sum((z - averaged) ** 2)
    return gap / (1 + size), gap / (size + 1e-300) * (1 + spread) / spread


def _samples(K: int) -> tuple[Array, Array]:
    """Logits with and without a raised target: flat regions (hinges) lie where the target leads."""
    rng, count = np.random.default_rng(1), max(64, min(512, 100_000 // K))
    z = rng.normal(size=(count, K)) * rng.choice([0.3, 1.0, 2.0], size=(count, 1))
    k = rng.integers(K, size=count)
    z[np.arange(count), k] += rng.choice([0.0, 2.0, 4.0, 8.0], size=count)
    return jnp.asarray(z), jnp.asarray(k)


@partial(_compile.jit, options=_compile.INSTANT)
def _descend(loss: Loss, z: Array, k: Array) -> tuple[Array, Array, Array]:
    """The lowest gap on 300 steps of descent of the gap from each sample, where, and the first strictness."""
    slope = jax.vmap(jax.value_and_grad(partial(_gap, loss), has_aux=True))

    def step(carry: tuple[Array, Array, Array], rate: Array) -> tuple[tuple[Array, Array, Array], Array]:
        z, best, at = carry
        (gap, strictness), direction = slope(z, k)
        at = jnp.where((gap < best)[:, None], z, at)
        length = jnp.linalg.norm(direction, axis=1, keepdims=True)
        return (z - rate * direction / (length + 1e-30), jnp.fmin(gap, best), at), strictness

    first = (z, jnp.full(z.shape[0], jnp.inf), z)
    (_, best, at), strictness = jax.lax.scan(step, first, jnp.geomspace(0.3, 0.003, 300))
    return best, at, strictness[0]


def _averaging(loss: Loss, K: int) -> tuple[Found, Found]:
    z, k = _samples(K)
    gaps, logits, strictness = (np.asarray(x) for x in _descend(loss, z, k))
    worst = int(np.nanargmin(gaps))
    raised = max(0.0, -float(gaps[worst]))
    averaging = Check(
        "T3",
        "L(z, k) >= phi(t): averaging the non-target logits never raises L",
        raised,
        profiles.tolerance(),
        raised < profiles.tolerance(),
        "averaging raises the loss",
    )
    weakest = int(np.nanargmin(strictness)) if K > 2 else 0
    strict = float(strictness[weakest]) if K > 2 else math.inf  # two classes: nothing to average
    only = Check(
        "T4",
        "L(z, k) = phi(t) at equal non-target logits only",
        strict,
        STRICT,
        strict > STRICT,
        "equality not only at equal non-targets",
    )
    texts = (
        f"averaging the non-targets raises L by {raised:.3g} relative to 1 + |L|",
        f"L changes by {strict:.2g} of itself when the unequal non-targets of z are averaged",
    )
    examples = (
        Counterexample("T3", texts[0], logits[worst], int(k[worst])),
        Counterexample("T4", texts[1], np.asarray(z)[weakest], int(k[weakest])),
    )
    return (averaging, examples[0]), (only, examples[1])


# --- T5, T6: the scalar problem -------------------------------------------------------------------


def _phi(loss: Loss, K: int, facts: profiles.Facts) -> tuple[Callable[[Any], Any], ScalarProfile | None]:
    """l(a), minimised over the common shift where the loss feels it, and its profile where there is one."""
    profile = loss.profile(K)
    if profile is None and facts.shift_invariant:
        profile = profiles.profile_of(loss, K)
    if profile is not None:
        return profile.value, profile

    @in_float64
    def value(a: Any) -> Any:
        a = np.asarray(a, dtype=np.float64)
        return np.asarray(_over_shifts(loss, K, a.ravel())).reshape(a.shape)[()]

    return value, None


@partial(_compile.jit, static_argnames=("K",), options=_compile.INSTANT)
def _over_shifts(loss: Loss, K: int, a: Array) -> Array:
    """min over s of loss(a e_0 + s 1, 0): a grid of 201 shifts, then golden section."""
    grid = 200.0 * jnp.sinh(jnp.linspace(-7.0, 7.0, 201)) / math.sinh(7.0)
    golden = (math.sqrt(5) - 1) / 2

    def at(a: Array, s: Array) -> Array:
        value = loss(jnp.where(jnp.arange(K) == 0, a, 0.0) + s, 0)
        return jnp.where(jnp.isnan(value), jnp.inf, value)

    def one(a: Array) -> Array:
        values = jax.lax.map(lambda s: at(a, s), grid)
        best = jnp.argmin(values)

        def shrink(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            left, right = high - golden * (high - low), low + golden * (high - low)
            down = at(a, left) < at(a, right)
            return jnp.where(down, low, left), jnp.where(down, right, high)

        ends = grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, 200)]
        low, high = jax.lax.fori_loop(0, 80, shrink, ends)
        return jnp.minimum(values[best], at(a, (low + high) / 2))

    return jnp.asarray(jax.lax.map(one, a, batch_size=64))


def _scalar(phi: Callable[[Any], Any], profile: ScalarProfile | None) -> tuple[Found, Found, tuple[Tie, ...]]:
    """T5 and T6 on margins up to 100 (more, where the minimiser lies beyond) and C in [1e-4, 10]."""
    reach, count = 100.0, 2000 if profile is not None else 500
    while True:
        half = np.append(0.0, np.geomspace(1e-3, reach, count))
        a = np.append(-half[:0:-1], half)
        values = np.nan_to_num(np.asarray(phi(a)), nan=np.inf)
        C = np.geomspace(1e-4, 10.0, 200)
        best = np.argmin(values + C[:, None] * np.abs(a), axis=1)
        if int(np.max(best)) < a.size - 1 or reach > 1e4:
            break
        reach *= 10
    ties = tuple(_ties(half, values[count:], profile))
    return _unique(a, C, best, ties), _hull_gap(a, C, values, best), ties


def _unique(a: np.ndarray, C: np.ndarray, best: np.ndarray, ties: tuple[Tie, ...]) -> Found:
    negative, endless = a[best].min(), best.max() == a.size - 1 or best.min() == 0
    jump = max((t.high - t.low for t in ties), default=0.0)
    cause = "non-unique t* at a tie"
    text = "; ".join(f"at C = {t.C:.10g} the margins {t.low:.6g} and {t.high:.6g} tie" for t in ties)
    if negative < 0:
        cause, text = "t* > 0", f"at C = {C[np.argmin(a[best])]:.4g} the best margin is {negative:.4g} < 0"
    elif endless:
        cause, text = "no minimiser", f"at C = {C[0]:.4g} the best margin lies beyond {a[-1]:.4g}"
    check = Check(
        "T5",
        "phi(t) + c |t| has one minimiser, t* <= 0, for every c > 0",
        float(min(negative, 0.0)) if negative < 0 else jump,
        0.0,
        bool(negative >= 0 and not endless and not ties),
        cause,
    )
    return check, None if check.passed else Counterexample("T5", text, None, 0)


def _hull_gap(a: np.ndarray, C: np.ndarray, values: np.ndarray, best: np.ndarray) -> Found:
    """phi - hull at every t*(c), the origin included."""
    finite = np.isfinite(values)
    vertices = _lower_hull(a[finite], values[finite])
    hull = np.interp(a, a[finite][vertices], values[finite][vertices])
    at = np.unique(np.append(best, a.size // 2))
    gap = np.where(np.isfinite(values), values - hull, 0.0)[at]
    worst = float(gap.max())
    allowed = 10 * profiles.tolerance() * (1 + float(np.abs(values[at][np.isfinite(values[at])]).max()))
    check = Check(
        "T6",
        "the convex hull of phi touches phi at every t*(c) (needed with a bias)",
        worst,
        allowed,
        worst <= allowed,
        "not proved with a bias: the convex hull of phi lies below phi(t*)",
    )
    text = f"at margin {a[at][np.argmax(gap)]:.4g} the hull on [{a[0]:g}, {a[-1]:g}] is {worst:.4g} below phi"
    return check, None if check.passed else Counterexample("T6", text, None, 0)


def _lower_hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the lower convex hull, Andrew's monotone chain."""
    hull: list[int] = []
    for i in range(x.size):
        while len(hull) > 1:
            o, p = hull[-2], hull[-1]
            if (x[p] - x[o]) * (y[i] - y[o]) > (y[p] - y[o]) * (x[i] - x[o]):
                break
            hull.pop()
        hull.append(i)
    return np.array(hull)


def _ties(a: np.ndarray, values: np.ndarray, profile: ScalarProfile | None) -> list[Tie]:
    """Linear pieces of the lower hull of l on a >= 0 with slope -C, C in [1e-4, 10]."""
    a, values = a[np.isfinite(values)], values[np.isfinite(values)]
    v = _lower_hull(a, values)
    slopes = np.diff(values[v]) / np.diff(a[v])
    # pieces of equal slope belong together: a piecewise linear l has every node on its hull
    start = np.append(True, np.abs(np.diff(slopes)) > 1e-9 * (np.abs(slopes[1:]) + 1e-12))
    first = np.flatnonzero(start)
    found = []
    for low, high in zip(v[first], v[np.append(first[1:], v.size - 1)], strict=True):
        C = float(-(values[high] - values[low]) / (a[high] - a[low]))
        chord = values[low] - C * (a[low : high + 1] - a[low])
        depth = float((values[low : high + 1] - chord).max())
        linear = high - low > 10 and a[high] - a[low] > 0.02
        if 1e-4 <= C <= 10 and (depth > 1e-12 * (1 + abs(values[low])) or linear):
            found.append(_refined(Tie(float(a[low]), float(a[high]), C, depth), profile))
    return found


def _refined(tie: Tie, profile: ScalarProfile | None) -> Tie:
    """A tie with the origin, to round-off."""
    if profile is None or tie.low > 0 or tie.depth < 1e-9:
        return tie
    high = tie_margin(profile, 0.9 * tie.high)
    if abs(high / tie.high - 1) > 0.05:  # not the one tangent of a profile with one inflection
        return tie
    return tie._replace(high=high, C=-float(profile.slope(high)))
