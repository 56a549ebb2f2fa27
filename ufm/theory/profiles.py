"""The scalar profile of any loss, and the facts that a loss declares or that random logits show."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.optimize import brentq

from ufm import _checks, _compile, losses
from ufm._precision import in_float64
from ufm.losses import Loss
from ufm.losses._closed import NoClosedForm
from ufm.losses._profile import Real
from ufm.losses._profile import ScalarProfile as ScalarProfile


@in_float64
def scalar_profile(loss: str | Loss | Callable[..., Any], K: int) -> ScalarProfile:
    """The scalar profile l(a) = loss(a e_k, k) and its first two derivatives.

    For a loss that is not shift-invariant (MSE) the common shift is minimised out, which is what a free
    bias does. The paper's phi of Definition 1 is `.phi(t)`, t = -(K-1) a; its coefficient in problem (10) is
    c for |t| and (K-1) c for the margin (the paper's proof of Lemma 8 mixes the two arguments).

    Raises:
        NoClosedForm: a user's loss that is not shift-invariant.
        ValueError: a name or function that is not a loss; K < 2.

    Source: Zhou et al. 2022, Definition 1 and Appendix B.
    """
    loss, K = losses.get(loss), _checks.integer("K", K, least=2)
    loss = losses.check(loss, K)
    return profile_of(loss, K)


def profile_of(loss: Loss, K: int) -> ScalarProfile:
    """`scalar_profile` of a loss that has been checked."""
    closed = loss.profile(K)
    if closed is not None:
        return closed
    facts = facts_of(loss, K)
    if not facts.shift_invariant:
        raise NoClosedForm(
            f"loss: {loss!r} is not shift-invariant (a common shift of the logits changes it by "
            f"{facts.shift:.2g}), so no function of the margin describes it alone"
        )
    return by_autodiff(loss, K)


def by_autodiff(loss: Loss, K: int, centred: bool = False) -> ScalarProfile:
    """l, l', l'' of any shift-invariant loss; new values of its hyperparameters compile nothing.

    `centred`: of any loss, at the logits a (e_k - 1/K).
    """
    at = partial(_derivative, loss=loss, K=K, centred=centred)
    value, slope, curvature = (partial(_host, partial(at, order)) for order in range(3))
    return ScalarProfile(value, slope, curvature, K)


@partial(_compile.jit, static_argnames=("order", "K", "centred"), options=_compile.INSTANT)
def _derivative(order: int, a: Array, loss: Loss, K: int, centred: bool) -> Array:
    """The derivative of that order of l, at each of the margins a."""

    def l(a: Array) -> Array:  # noqa: E743
        z = jnp.where(jnp.arange(K) == 0, a, 0.0)
        return loss(z - a / K if centred else z, 0)

    for _ in range(order):
        l = jax.grad(l)  # noqa: E741
    return jax.vmap(l)(a)


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


def falls_to(profile: ScalarProfile, reach: float) -> float:
    """argmin over 0 <= a <= reach of a profile that falls before it rises.

    Raises:
        NoClosedForm: it rises from 0 on.
    """
    if float(profile.slope(0.0)) >= 0:
        raise NoClosedForm("loss: expected one that falls with the target logit at equal logits")
    if float(profile.slope(reach)) <= 0:
        return reach
    return float(brentq(lambda a: float(profile.slope(a)), 0.0, reach, xtol=1e-15, rtol=1e-15))


# --- facts of a loss, declared or measured --------------------------------------------------------


def is_of_p(loss: Loss, K: int) -> bool:
    """Whether the loss is a function of the target probability alone."""
    return measure(loss, K).of_p if loss.of_p is None else loss.of_p


def is_symmetric(loss: Loss, K: int) -> bool:
    """Whether the loss treats the classes alike."""
    return measure(loss, K).symmetric if loss.symmetric is None else loss.symmetric


def facts_of(loss: Loss, K: int) -> Facts:
    """Without a measurement where the loss declares to be a decreasing function of the target probability.

    Such a loss has all of them: averaging the other logits lowers sum_{j != k} exp(z_j), which raises p_k.
    """
    return Facts(0.0, 0.0, 0.0, 0.0) if loss.of_p else measure(loss, K)


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
    out = np.asarray(_values(loss, jnp.asarray(inputs), jnp.asarray(classes)))
    scale = 1 + np.abs(out).max(0)
    change = np.abs(out - out[0]) / scale
    raised = np.maximum(out[3] - out[0], 0) / scale
    return Facts(float(change[1].max()), float(change[2].max()), float(raised.max()), float(change[4].max()))


@partial(_compile.jit, options=_compile.INSTANT)
def _values(loss: Loss, z: Array, k: Array) -> Array:
    return jax.vmap(jax.vmap(loss))(z, k)
