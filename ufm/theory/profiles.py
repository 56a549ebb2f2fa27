"""The scalar profile l(a) of a loss: its value when the target logit stands a above all others.

Under neural collapse every logit vector is a e_k up to a common shift, so one function of the margin a
decides the optimum, its threshold and its curvature. The paper's phi has the argument t = -(K-1) a.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm import _checks, _compile, losses
from ufm._precision import in_float64
from ufm.losses import Loss
from ufm.theory._setting import NoClosedForm, number

Real = Any  # a float or a float64 array


class ScalarProfile(NamedTuple):
    """l(a) = min over s of loss(a e_k + s 1, k), with two derivatives; arguments are floats or arrays."""

    value: Callable[[Real], Real]
    slope: Callable[[Real], Real]
    curvature: Callable[[Real], Real]
    K: int

    def phi(self, t: Real) -> Real:
        """The paper's phi: its argument is t = sum_{j != k} (z_j - z_k) = -(K-1) a."""
        return self.value(-np.asarray(t) / (self.K - 1))

    def odds(self, a: Real) -> Real:
        """q = log((1-p)/p) at margin a."""
        return math.log(self.K - 1) - a


def sigmoid(x: Real) -> Real:
    """1/(1 + e^-x) in full relative accuracy on both sides, without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(np.asarray(x) >= 0, 1.0, e) / (1.0 + e)


def softplus(x: Real) -> Real:
    """log(1 + e^x)."""
    return np.logaddexp(0.0, x)


def margin_of(p: float, K: int) -> float:
    """The margin at which the target probability is p: log(p (K-1)/(1-p))."""
    return math.log(p) - math.log1p(-p) + math.log(K - 1)


def probability(a: float, K: int) -> float:
    """p = e^a/(e^a + K - 1)."""
    return float(sigmoid(a - math.log(K - 1)))


# --- the shelf: closed forms of the losses of this package ----------------------------------------


def _ce(loss: Any, K: int) -> ScalarProfile:
    top = math.log(K - 1)
    return ScalarProfile(
        lambda a: softplus(top - a),
        lambda a: -sigmoid(top - a),
        lambda a: sigmoid(top - a) * sigmoid(a - top),
        K,
    )


def _ls(loss: Any, K: int) -> ScalarProfile:
    ce, weight = _ce(loss, K), number("alpha", loss.alpha) * (K - 1) / K
    return ScalarProfile(lambda a: ce.value(a) + weight * a, lambda a: ce.slope(a) + weight, ce.curvature, K)


def _fl(loss: Any, K: int) -> ScalarProfile:
    """-l'(a) = S(p) = (1-p)^g ((1-p) - g p log p);  l''(a) = p (1-p)^g ((1+2g)(1-p) + g(1-(1+g)p) log p)."""
    g, top = number("gamma", loss.gamma), math.log(K - 1)

    def parts(a: Real) -> tuple[Real, Real, Real, Real]:
        q = top - a
        return sigmoid(-q), sigmoid(q), softplus(q), np.exp(-g * softplus(-q))  # p, 1-p, -log p, (1-p)^g

    def value(a: Real) -> Real:
        _, _, log_p, power = parts(a)
        return power * log_p

    def slope(a: Real) -> Real:
        p, rest, log_p, power = parts(a)
        return -power * (rest + g * p * log_p)

    def curvature(a: Real) -> Real:
        p, rest, log_p, power = parts(a)
        return p * power * ((1 + 2 * g) * rest - g * (1 - (1 + g) * p) * log_p)

    return ScalarProfile(value, slope, curvature, K)


def _mse(loss: Any, K: int) -> ScalarProfile:
    """The shift that minimises leaves mu (a - beta)^2 with 1/mu = 1/kappa + 1/(K-1)."""
    kappa, beta = number("kappa", loss.kappa), number("beta", loss.beta)
    mu = kappa * (K - 1) / (kappa + K - 1)
    return ScalarProfile(
        lambda a: mu * (beta - a) ** 2,
        lambda a: -2 * mu * (beta - a),
        lambda a: 2 * mu + 0.0 * np.asarray(a),
        K,
    )


#: By the name of the loss; any other loss goes through autodiff.
PROFILES: dict[str, Callable[[Any, int], ScalarProfile]] = {"ce": _ce, "ls": _ls, "fl": _fl, "mse": _mse}


@in_float64
def scalar_profile(loss: str | Loss | Callable[..., Any], K: int) -> ScalarProfile:
    """The scalar profile l(a) = loss(a e_k, k) and its first two derivatives.

    For a loss that is not shift-invariant (MSE) the common shift is minimised out, which is what a free
    bias does. The paper's phi of Definition 1 is `.phi(t)`, t = -(K-1) a; its coefficient in problem (10) is
    c for |t| and (K-1) c for the margin (the paper's proof of Lemma 8 mixes the two arguments).

    Raises:
        NoClosedForm: a user's loss that is not shift-invariant.
        ValueError: a name or function that is no loss; K < 2.

    Source: Zhou et al. 2022, Definition 1 and Appendix B.
    """
    loss, K = losses.get(loss), _checks.integer("K", K, least=2)
    loss = losses.check(loss, K)
    return profile_of(loss, K)


def profile_of(loss: Loss, K: int) -> ScalarProfile:
    """`scalar_profile` of a loss that has been checked."""
    if loss.name in PROFILES:
        return PROFILES[loss.name](loss, K)
    facts = measure(loss, K)
    if not facts.shift_invariant:
        raise NoClosedForm(
            f"loss: {loss!r} is not shift-invariant (a common shift of the logits changes it by "
            f"{facts.shift:.2g}), so no function of the margin describes it alone"
        )
    return by_autodiff(loss, K)


@lru_cache(maxsize=16)
def by_autodiff(loss: Loss, K: int) -> ScalarProfile:
    """l, l', l'' of any shift-invariant loss, compiled once a shape."""

    def l(a: Array) -> Array:  # noqa: E743
        return loss(a * (jnp.arange(K) == 0), 0)

    functions = [
        _compile.jit(jax.vmap(f), options=_compile.INSTANT) for f in (l, jax.grad(l), jax.grad(jax.grad(l)))
    ]
    value, slope, curvature = (partial(_host, f) for f in functions)
    return ScalarProfile(value, slope, curvature, K)


@in_float64
def _host(f: Callable[[Any], Any], a: Real) -> Real:
    """numpy in, numpy out; padded to a few sizes, because every new shape is a compilation."""
    a = np.asarray(a, dtype=np.float64)
    size = 64
    while size < a.size:
        size *= 8
    padded = np.zeros(size)
    padded[: a.size] = a.ravel()
    return np.asarray(f(padded))[: a.size].reshape(a.shape)[()]


# --- facts of a user's loss, measured -------------------------------------------------------------


def is_of_p(loss: Loss, K: int) -> bool:
    """Whether the loss is a function of the target probability alone."""
    return loss.name in ("ce", "fl") or (loss.name not in PROFILES and measure(loss, K).of_p)


class Facts(NamedTuple):
    """What random logits say about a loss; each number is the largest violation relative to 1 + |loss|."""

    shift: float  # |L(z + s 1, k) - L(z, k)|
    symmetry: float  # |L(z_pi, pi^-1(k)) - L(z, k)|
    averaging: float  # L(mean of the others, k) - L(z, k), positive part
    target: float  # distance from a function of the target probability alone

    @property
    def shift_invariant(self) -> bool:
        return self.shift < tolerance()

    @property
    def symmetric(self) -> bool:
        return self.symmetry < tolerance()

    @property
    def averages(self) -> bool:
        return self.averaging < tolerance()

    @property
    def of_p(self) -> bool:
        return self.shift_invariant and self.symmetric and self.target < tolerance()


def tolerance() -> float:
    """Of an identity between losses, relative to 1 + |loss|: fifty times the round-off seen in 19 losses."""
    return 5e3 * float(np.finfo(jnp.result_type(float)).eps)


@lru_cache(maxsize=16)
def measure(loss: Loss, K: int) -> Facts:
    """Shift, class symmetry, averaging and dependence on p_k alone, at 128 random logit vectors."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(128, K)) * rng.choice([0.3, 1.0, 3.0], size=(128, 1))
    k = rng.integers(K, size=128)
    rows = np.arange(128)
    z[rows, k] += rng.choice([0.0, 2.0], size=128)
    order = rng.permuted(np.tile(np.arange(K), (128, 1)), axis=1)
    moved = np.argsort(order, axis=1)[rows, k]
    own = z[rows, k]
    mean = (z.sum(1) - own) / (K - 1)
    averaged = np.where(np.arange(K) == k[:, None], own[:, None], mean[:, None])
    q = np.log(np.exp(np.where(np.arange(K) == k[:, None], -np.inf, z)).sum(1)) - own
    same_p = np.where(np.arange(K) == k[:, None], (math.log(K - 1) - q)[:, None], 0.0)
    inputs = np.stack([z, z + rng.normal(size=(128, 1)), np.take_along_axis(z, order, 1), averaged, same_p])
    classes = np.stack([k, k, moved, k, k])
    on_all = _compile.jit(jax.vmap(jax.vmap(loss)), options=_compile.INSTANT)
    out = np.asarray(on_all(jnp.asarray(inputs), jnp.asarray(classes)))
    scale = 1 + np.abs(out).max(0)
    change = np.abs(out - out[0]) / scale
    raised = np.maximum(out[3] - out[0], 0) / scale
    return Facts(float(change[1].max()), float(change[2].max()), float(raised.max()), float(change[4].max()))
