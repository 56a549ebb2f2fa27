"""The optimum of a deep linear classifier for equal counts, Z = W_M ... W_1 H + b 1'.

With q = M + 1 factors, the product Lam of all penalties and c_q = (n Lam)^(1/q), for every loss

    min f = min over (Zbar, b) of
        (1/K) sum_k L(Zbar e_k + b, k) + (q/2) c_q sum_i sigma_i(Zbar)^(2/q) + lam_b/2 |b|^2

over Zbar of a rank that the widths allow. From q = 3 on the sum is not convex, so that a Zbar of low rank may
lie below the simplex ETF: `_structures` lists the candidates and `_minima` finds the lowest.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm._problem import Problem
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm
from ufm.models import Deep, Free
from ufm.theory import _frames, optima
from ufm.theory._minima import Level, Minimum, each, lowest, trivial
from ufm.theory._setting import any_counts
from ufm.theory._structures import families, frames
from ufm.theory.optima import OF_MODELS, Optimum, frame_name
from ufm.theory.profiles import facts_of, profile_of

UNPROVED = (
    "no point is below {:.15g}; between the two nothing is proved, and figures of less symmetry may be "
    "lower: ufm.solve from several starts finds them"
)


class Depth(NamedTuple):
    """What the penalties and widths amount to."""

    q: int  # factors
    lam: np.ndarray  # (q,) penalties of H, W_1, ..., W_M
    width: int  # the smallest dimension between two factors: the rank is at most this
    n: int

    @property
    def c(self) -> float:
        """(n Lam)^(1/q)."""
        return float(math.exp((math.log(self.n) + float(np.log(self.lam).sum())) / self.q))


def optimum(prob: Problem) -> Optimum:
    """The lowest point known, proved where a lower bound meets it.

    Raises:
        NoClosedForm: unequal counts; a loss that tells classes apart, lacks the averaging property, or feels
            a common shift of the logits and is no MSE.

    Source: docs/theory.md, section 6.2.
    """
    s, model = any_counts(prob), prob.model
    assert isinstance(model, Deep)
    if prob.n is None:
        raise NoClosedForm(
            "labels, class_weights: with a deep classifier the optimum is known for equal counts and no "
            f"weights, got {prob.unequal}; ufm.solve takes any"
        )
    if model.layers == 1:
        lam = float(np.asarray(model.penalties(prob))[0])
        best = optima.global_optimum(prob.replace(model=Free(), lam_W=lam))
        return best._replace(point=model.variables(*best.params))
    depth = depth_of(prob)
    return _record(prob, s, depth, _lowest(s, depth))


def depth_of(prob: Problem) -> Depth:
    """Of a problem with equal counts."""
    model, n = prob.model, prob.n
    assert isinstance(model, Deep)
    assert n is not None
    lam = np.array([float(prob.lam_H), *np.asarray(model.penalties(prob), np.float64)])
    return Depth(model.layers + 1, lam, min(model.inner(prob)), n)


# --- the lowest structure, and a bound -----------------------------------------------------------


def _lowest(s: Setting, depth: Depth) -> Minimum:
    """The lowest structure, or the point with Zbar = 0 where none is below it."""
    *found, zero = structures(s, depth)
    best = lowest(found)
    return best if best.value < zero.value - 1e-15 * abs(zero.value) else zero


def structures(s: Setting, depth: Depth) -> list[Minimum]:
    """The lowest points of families that fit into the widths, full symmetry first; the last has Zbar = 0.

    Raises:
        NoClosedForm: a loss that tells the classes apart, lacks the averaging property, or feels a common
            shift of the logits and is no MSE.
    """
    differences, facts = s.loss.shift_invariant, facts_of(s.loss, s.K)
    if differences and not (facts.symmetric and facts.averages):
        raise NoClosedForm(
            f"loss: {s.loss!r} tells the classes apart or lacks the averaging property; see "
            "theory.contrastive_property"
        )
    if not differences and s.loss.squares() is None:
        raise NoClosedForm(
            "loss: with a deep classifier structures are known for losses of differences of logits and for "
            f"MSE, got {s.loss!r}; ufm.solve takes any loss"
        )
    level = Level(s.loss, depth.q, depth.c, s.lam_b)
    every = families(s.K, s.bias) if differences else frames(s.K, s.bias)
    fitting = [x for x in every if x.rank <= depth.width]
    return [*each(level, fitting), trivial(level, s.bias, s.K)]


def _bound(s: Setting, depth: Depth) -> tuple[float, str]:
    """No point is below; see the page.

    A loss of differences: min over a of l(a) + (q/2) c_q ((K-1) a)^(2/q), because sum sigma^(2/q) is at least
    (sum sigma)^(2/q). MSE: L >= min(kappa, 1) |z - beta e_k|^2, each singular value by itself, K - 1 of them
    where the bias takes the mean.
    """
    squares = s.loss.squares()
    if squares is not None and not s.loss.shift_invariant:
        kappa, beta = min(squares[0], 1.0), squares[1]
        value, _ = deepest(
            lambda a: kappa / s.K * (beta - a) ** 2, lambda a: -2 * kappa / s.K * (beta - a), depth, 1
        )
        return (s.K - s.bias) * value, "von Neumann's trace inequality: each singular value by itself"
    if not s.loss.convex:
        return float(s.loss.infimum), "the lowest of known structures"
    profile = profile_of(s.loss, s.K)
    value, _ = deepest(profile.value, profile.slope, depth, (s.K - 1.0) ** (2 / depth.q), s.loss.infimum)
    return value, "sum sigma^(2/q) >= (sum sigma)^(2/q), and Zhou et al. 2022, Theorem 1"


def deepest(value: Any, slope: Any, depth: Depth, weight: float, infimum: float = 0.0) -> tuple[float, float]:
    """min over a >= 0 of value(a) + (q/2) c_q weight a^(2/q), and where it is."""
    p, power = 2 / depth.q, depth.q / 2 * depth.c * weight

    def rise(a: Any) -> Any:
        a = np.asarray(a)
        return np.where(a > 0, slope(a) + power * p * np.where(a > 0, a, 1.0) ** (p - 1), np.inf)

    reach = max(((float(value(0.0)) - infimum) / power) ** (1 / p), 1.0)
    a = optima.lowest(lambda a: value(a) + power * a**p, rise, 10 * reach)
    return float(value(a)) + power * a**p, a


# --- the record -----------------------------------------------------------------------------------


def _record(prob: Problem, s: Setting, depth: Depth, found: Minimum) -> Optimum:
    (bound, theorem), Z = _bound(s, depth), found.Zbar + found.b[:, None]
    U, sigma, Vt = np.linalg.svd(found.Zbar)
    r = int((sigma > 1e-9 * max(sigma[0], 1e-300)).sum())
    factors = _frames.Factors(U[:, :r], sigma[:r], Vt[:r].T)
    proved = found.value - bound <= 1e-13 * (1 + abs(found.value))
    symmetric = found.name in ("simplex ETF", "orthogonal frame") and r > 0
    m = float(found.Zbar.sum(axis=0).mean()) if symmetric and r == s.K else 0.0
    margin = float(Z[0, 0] - np.delete(Z[:, 0], 0).max()) if r else 0.0
    same = abs(m - margin) <= 1e-9 * margin  # a frame's mean eigenvalue that only rounding makes different
    return Optimum(
        objective=found.value,
        margin=margin,
        regime="trivial" if not r else "non-trivial" if symmetric else "partial",
        structure=frame_name(s.K, margin, margin if same else m) if symmetric or not r else found.name,
        proved="proved" if proved else "upper bound",
        theorem=theorem if proved else "the lowest of known structures",
        remark="" if proved else UNPROVED.format(bound),
        mean_eigenvalue=margin if same else m,
        bias=float(found.b.mean()),
        b=found.b,
        trivial=trivial(Level(s.loss, depth.q, depth.c, s.lam_b), s.bias, s.K).value,
        lower_bound=min(bound, found.value),
        factors=factors,
        setting=s,
        point=prob.model.variables(*_point(s, depth, factors, found.b, prob.model.shapes(prob).values())),
    )


def _point(s: Setting, depth: Depth, factors: _frames.Factors, b: np.ndarray, shapes: Any) -> list[Array]:
    """A_j = sqrt(Lam^(1/q)/lam_j) S^(1/q) between the singular vectors of Z = U S V', padded with zeros."""
    U, sigma, V, _ = factors
    root = (math.sqrt(s.n) * sigma) ** (1 / depth.q)
    total = math.exp(float(np.log(depth.lam).sum()) / depth.q)
    scale = np.sqrt(total / depth.lam)
    first = scale[0] * (V[s.labels] / math.sqrt(s.n) * root).T  # (r, N)
    inner = [x * np.diag(root) for x in scale[1:-1]]
    blocks = [*inner, scale[-1] * U * root, first]
    padded = [
        np.pad(x, [(0, full - have) for full, have in zip(shape, x.shape, strict=True)])
        for x, shape in zip(blocks, shapes, strict=False)
    ]
    return [*map(jnp.asarray, padded), jnp.asarray(b)]


OF_MODELS[Deep] = optimum
