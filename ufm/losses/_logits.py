"""Functions of logits that the losses are written in; each is accurate at logits of any size.

Classes are along the first axis: z is (K,) for one sample of class k, or (K, N) for N samples of classes
k (N,), whose long axis is then the one along which a processor computes.

A function of the target probability alone goes through the log-odds against the target,

    q = log sum_{j != k} exp(z_j) - z_k = log((1 - p_k) / p_k),

because every factor then has full relative accuracy from p_k -> 0 to p_k -> 1: p_k = sigmoid(-q),
1 - p_k = sigmoid(q), -log p_k = softplus(q).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


@jax.custom_jvp
def sigmoid(q: Array) -> Array:
    """sigmoid with a derivative that does not cancel at large q (JAX's own is s (1 - s))."""
    return jax.lax.logistic(q)


sigmoid.defjvps(lambda q_dot, s, q: q_dot * s * sigmoid(-q))


@jax.custom_jvp
def softplus(q: Array) -> Array:
    """log(1 + exp(q))."""
    return jnp.logaddexp(q, jnp.zeros((), q.dtype))


softplus.defjvps(lambda q_dot, _, q: q_dot * sigmoid(q))


def log_odds(z: Array, k: ArrayLike) -> Array:
    """log sum_{j != k} exp(z_j) - z_k = log((1 - p_k) / p_k), exact in relative terms at any scale."""
    return _log_odds(z, own(z, k))[0]  # the mask and not k, which JAX refuses as a constant in numpy


@jax.custom_jvp
def _log_odds(z: Array, mine: Array) -> tuple[Array, Array]:
    """The log-odds q and their gradient v: exp(z_j) / sum_{i != k} exp(z_i) at j != k, and -1 at k."""
    top = jnp.max(jnp.where(mine, -jnp.inf, z), axis=0, keepdims=True)
    # the minimum matters at the target alone, whose power is thrown away: exp must not overflow there
    powers = jnp.where(mine, 0.0, jnp.exp(jnp.minimum(z - top, 0.0)))
    mass = jnp.sum(powers, axis=0, keepdims=True)
    q = jnp.squeeze(jnp.log(mass) + top, 0) - jnp.sum(jnp.where(mine, z, 0.0), axis=0)
    return q, jnp.where(mine, -1.0, powers / mass)


@_log_odds.defjvp
def _(at: tuple[Any, Any], along: tuple[Any, Any]) -> Any:
    """dq = v'dz, dv = s (dz - s'dz) with the shares s = max(v, 0): value and two derivatives from one exp."""
    q, v = _log_odds(*at)
    dz, s = along[0], jnp.maximum(v, 0.0)
    return (q, v), (jnp.sum(v * dz, axis=0), s * (dz - jnp.sum(s * dz, axis=0, keepdims=True)))


def negative_entropy(p: Array) -> Array:
    """sum_j p_j log p_j, the conjugate of log sum exp; rounding below zero counts as zero."""
    return jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))


def relative_entropy(p: Array, z: Array) -> Array:
    """sum_j p_j log(p_j / q_j) with q = softmax(z), a sum of terms >= 0 that does not cancel at p = q."""
    log_q = jax.nn.log_softmax(z)
    q = jnp.exp(log_q)
    delta = log_q - jnp.log(jnp.where(p > 0, p, 1.0))
    near = jnp.clip(delta, -1.0, 1.0)
    terms = jnp.where(jnp.abs(delta) < 1.0, p * (jnp.expm1(near) - near), q - p - p * delta)
    return jnp.sum(jnp.where(p > 0, jnp.maximum(terms, 0.0), q))


def own(z: Array, k: ArrayLike) -> Array:
    """The mask of the target logits, shaped as z."""
    return jax.lax.broadcasted_iota(jnp.result_type(k), z.shape, 0) == jnp.expand_dims(k, 0)


def target(z: Array, k: ArrayLike) -> Array:
    """z_k: a masked sum, because a gather for each sample is slower on a CPU."""
    return jnp.sum(jnp.where(own(z, k), z, 0.0), axis=0)


def hinges(z: Array, k: ArrayLike, margin: ArrayLike) -> Array:
    """max(0, margin + z_j - z_k) for j != k, and 0 at the target: shaped as z."""
    z_k = jnp.expand_dims(target(z, k), 0)
    return jnp.where(own(z, k), 0.0, jnp.maximum(0.0, jnp.asarray(margin, z.dtype) + z - z_k))
