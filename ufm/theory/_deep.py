"""The optimum of a deep linear classifier for equal counts, Z = W_M ... W_1 H + b 1'.

With q = M + 1 factors, the product Lam of all penalties and c_q = (n Lam)^(1/q), for every loss

    min f = min over (Zbar, b) of
        (1/K) sum_k L(Zbar e_k + b, k) + (q/2) c_q sum_i sigma_i(Zbar)^(2/q) + lam_b/2 |b|^2

over Zbar of a rank that the widths allow. From q = 3 on the sum is not convex, so that a Zbar of low rank may
lie below the simplex ETF. `shapes` yields the candidates, scaled by their margin t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm import _compile
from ufm._problem import Problem
from ufm.losses import Loss
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm
from ufm.models import Deep, Free
from ufm.theory import _frames, optima
from ufm.theory._setting import any_counts
from ufm.theory.optima import OF_MODELS, Optimum, lowest
from ufm.theory.profiles import _host, facts_of, profile_of


class Shape(NamedTuple):
    """Class logits Zbar = t X, b = t b0."""

    name: str
    X: np.ndarray  # (K, K)
    b: np.ndarray | None = None  # (K,); None: zero


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

    def penalty(self, sigma: np.ndarray) -> float:
        """(q/2) c_q sum_i sigma_i^(2/q)."""
        return float(self.q / 2 * self.c * np.sum(sigma ** (2 / self.q)))


def optimum(prob: Problem) -> Optimum:
    """The lowest point known, proved where a lower bound meets it.

    Raises:
        NoClosedForm: unequal counts; MSE outside the cases that are proved; a loss that tells classes apart
            or lacks the averaging property.

    Source: docs/theory.md, section 6.2.
    """
    s, model = any_counts(prob), prob.model
    assert isinstance(model, Deep)
    if prob.n is None:
        raise NoClosedForm(
            "labels, class_weights: with a deep classifier the optimum is known for equal counts and no "
            f"weights, got {prob.unequal}; ufm.solve takes any"
        )
    lam = np.asarray(model.penalties(prob), np.float64)
    if model.layers == 1:
        best = optima.global_optimum(prob.replace(model=Free(), lam_W=float(lam[0])))
        return best._replace(point=model.variables(*best.params))
    depth = Depth(model.layers + 1, np.array([s.lam_H, *lam]), min(model.inner(prob)), prob.n)
    found, bound, theorem = _of_mse(s, depth) if not s.loss.shift_invariant else _of_differences(s, depth)
    return _record(prob, s, depth, found, bound, theorem)


class Found(NamedTuple):
    """The best multiple of a shape."""

    value: float
    t: float
    shape: Shape
    trivial: float  # the value at t = 0
    b: np.ndarray  # (K,)


# --- losses of differences of logits --------------------------------------------------------------


def shapes(K: int, free_bias: bool) -> Iterator[Shape]:
    """Candidates with margin 1: the simplex ETF, and logits of lower rank, by which depth is cheaper."""
    one = np.ones((K, K))

    def simplex(m: int) -> np.ndarray:
        return np.eye(m) - 1 / m

    yield Shape("simplex ETF", simplex(K))
    for g in range(2, K // 2 + 1):
        if K % g == 0:
            yield Shape(
                f"{K // g} orthogonal simplex ETFs of {g} classes", np.kron(np.eye(K // g), simplex(g))
            )
            m = round(math.log(K, g))
            if g**m == K and m > 1:
                parts = (
                    np.kron(np.kron(np.ones((g**i, g**i)), simplex(g)), np.ones((g ** (m - i - 1),) * 2))
                    for i in range(m)
                )
                yield Shape(f"words of {m} letters out of {g}", np.add.reduce(list(parts)))
    if K > 3:
        angle = 2 * np.pi * np.subtract.outer(np.arange(K), np.arange(K)) / K
        yield Shape("regular polygon", np.cos(angle) / (1 - np.cos(2 * np.pi / K)))
    if K > 2:
        pair = np.zeros_like(one)
        pair[:2, :2] = simplex(2)
        yield Shape("two opposite classes, the others at the origin", pair)
    if free_bias and K > 2:
        u = np.arange(K) - (K - 1) / 2
        yield Shape("equal steps on a line, told apart by the bias", 2 * np.outer(u, u), -(u**2))


def _of_differences(s: Setting, depth: Depth) -> tuple[Found, float, str]:
    """The lowest of `shapes`; for convex losses the bound min over a of l(a) + (q/2) c_q ((K-1) a)^(2/q)."""
    facts = facts_of(s.loss, s.K)
    if not (facts.symmetric and facts.averages):
        raise NoClosedForm(
            f"loss: {s.loss!r} tells the classes apart or lacks the averaging property; see "
            "theory.contrastive_property"
        )
    every = [x for x in shapes(s.K, s.bias and s.lam_b == 0) if _svd(x.X).rank <= depth.width]
    found = min((_best(s, depth, shape) for shape in every), key=lambda x: x.value, default=None)
    if found is None:
        raise NoClosedForm(f"widths: expected one of rank 1 at least, got {depth.width}")
    if not s.loss.convex:
        return found, float(s.loss.infimum), "the lowest of known structures"
    profile = profile_of(s.loss, s.K)
    power = depth.penalty(np.array([s.K - 1.0]))
    a = _lowest(profile.value, profile.slope, power, depth.q, s.loss.infimum)
    bound = float(profile.value(a)) + power * a ** (2 / depth.q)
    return found, bound, "sum sigma^(2/q) >= (sum sigma)^(2/q), and Zhou et al. 2022, Theorem 1"


def _best(s: Setting, depth: Depth, shape: Shape) -> Found:
    """The multiple of a shape that is lowest."""
    along = shape.X if shape.b is None else shape.X + shape.b[:, None]
    power = depth.penalty(_svd(shape.X).sigma)
    value, slope = (partial(_on_ray, order, s.loss, along) for order in range(2))
    t = _lowest(value, slope, power, depth.q, s.loss.infimum)
    b = np.zeros(s.K) if shape.b is None else t * shape.b
    return Found(float(value(t)) + power * t ** (2 / depth.q), t, shape, float(value(0.0)), b)


def _svd(X: np.ndarray) -> _frames.Factors:
    """Without the rounding of zeros, which a root would enlarge."""
    U, sigma, Vt = np.linalg.svd(X)
    r = int((sigma > 1e-12 * sigma[0]).sum())
    return _frames.Factors(U[:, :r], sigma[:r], Vt[:r].T)


def _lowest(value: Any, slope: Any, power: float, q: int, infimum: float) -> float:
    """argmin over t >= 0 of value(t) + power t^(2/q)."""
    p = 2 / q

    def rise(t: Any) -> Any:
        t = np.asarray(t)
        return np.where(t > 0, slope(t) + power * p * np.where(t > 0, t, 1.0) ** (p - 1), np.inf)

    reach = max(((float(value(0.0)) - infimum) / power) ** (1 / p), 1.0)
    return lowest(lambda t: value(t) + power * t**p, rise, 10 * reach)


def _on_ray(order: int, loss: Loss, Y: np.ndarray, t: Any) -> Any:
    """The mean loss at the logits t Y, or its derivative in t."""
    return _host(partial(_mean_loss, order, loss, jnp.asarray(Y)), t)


@partial(_compile.jit, static_argnames=("order",), options=_compile.INSTANT)
def _mean_loss(order: int, loss: Loss, Y: Array, ts: Array) -> Array:
    def mean(t: Array) -> Array:
        return jnp.mean(jax.vmap(loss)(t * Y.T, jnp.arange(len(Y))))

    return jax.lax.map(jax.grad(mean) if order else mean, ts)


# --- MSE ------------------------------------------------------------------------------------------


def _of_mse(s: Setting, depth: Depth) -> tuple[Found, float, str]:
    """All singular values equal, or zero.

    Without a bias and for kappa <= 1: L >= kappa |z - beta e_k|^2, with equality at Z = t I. For a free bias
    and kappa = 1 the same in the complement of 1.
    """
    K, (kappa, beta) = s.K, s.loss.squares() or (np.inf, np.inf)
    free = s.bias and s.lam_b == 0 and kappa == 1
    if not free and (s.bias or kappa > 1):
        raise NoClosedForm(
            "loss: with a deep classifier the optimum of a loss that is not shift-invariant is known for MSE "
            f"with kappa <= 1 and no bias, or kappa = 1 and a free one, got {s.loss!r}, bias={s.bias}"
        )
    rank = K - 1 if free else K
    if depth.width < rank:
        raise NoClosedForm(f"d, widths: expected at least the rank {rank} of the optimum, got {depth.width}")
    share, power = rank / K, depth.penalty(np.ones(rank))
    X = np.eye(K) - 1 / K if free else np.eye(K)
    shape = Shape("simplex ETF" if free else "orthogonal frame", X)

    def value(t: Any) -> Any:
        return kappa * share * (beta - t) ** 2

    t = _lowest(value, lambda t: -2 * kappa * share * (beta - t), power, depth.q, 0.0)
    lowest_value = float(value(t)) + power * t ** (2 / depth.q)
    found = Found(lowest_value, t, shape, float(value(0.0)), np.full(K, beta / K if free else 0.0))
    return found, lowest_value, "von Neumann's trace inequality: each singular value by itself"


# --- the record -----------------------------------------------------------------------------------


def _record(prob: Problem, s: Setting, depth: Depth, found: Found, bound: float, theorem: str) -> Optimum:
    t, shape = found.t, found.shape
    U, sigma, V, _ = _svd(shape.X)
    r = len(sigma) if t else 0
    factors = _frames.Factors(U[:, :r], t * sigma[:r], V[:, :r])
    b = found.b
    proved = found.value - bound <= 1e-13 * (1 + abs(found.value))
    symmetric = shape.name in ("simplex ETF", "orthogonal frame")
    return Optimum(
        objective=found.value,
        margin=t,
        regime="trivial" if not t else "non-trivial" if symmetric else "partial",
        structure=shape.name if t else "zero",
        proved="proved" if proved else "upper bound",
        theorem=theorem if proved else "the lowest of known structures",
        remark="" if proved else f"no point is below {bound:.15g}; between the two nothing is proved",
        mean_eigenvalue=t if shape.name == "orthogonal frame" else 0.0,
        bias=float(b.mean()),
        b=b,
        trivial=found.trivial,
        lower_bound=min(bound, found.value),
        factors=factors,
        setting=s,
        point=prob.model.variables(*_point(s, depth, factors, b, prob.model.shapes(prob).values())),
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
