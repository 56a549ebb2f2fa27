"""Functions of one logit vector that the losses are written in; each is accurate at logits of any size.

A function of the target probability alone goes through the log-odds against the target,

    q = log sum_{j != k} exp(z_j) - z_k = log((1 - p_k) / p_k),

because every factor then has full relative accuracy from p_k -> 0 to p_k -> 1: p_k = sigmoid(-q),
1 - p_k = sigmoid(q), -log p_k = softplus(q).
"""

from __future__ import annotations

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
    others = ~own(z, k)
    top = jax.lax.stop_gradient(jnp.max(jnp.where(others, z, -jnp.inf)))
    # the inner `where` keeps exp finite where its value is thrown away (NaN-safe gradients)
    mass = jnp.sum(jnp.where(others, jnp.exp(jnp.where(others, z - top, 0.0)), 0.0))
    target = jnp.sum(jnp.where(others, 0.0, z))  # a masked sum: a gather per sample is slower on a CPU
    return jnp.log(mass) + (top - target)


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
    """The mask (K,) of the target logit."""
    return jnp.arange(z.shape[0], dtype=jnp.result_type(k)) == k


def hinges(z: Array, k: ArrayLike, margin: ArrayLike) -> Array:
    """max(0, margin + z_j - z_k) for j != k, and 0 at the target: (K,)."""
    target = own(z, k)
    z_k = jnp.sum(jnp.where(target, z, 0.0))
    return jnp.where(target, 0.0, jnp.maximum(0.0, jnp.asarray(margin, z.dtype) + z - z_k))
