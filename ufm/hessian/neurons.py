"""Neurons of two factors with H >= 0: row i of H with column i of W; ways down through those that are idle.

A neuron is idle where both are zero. Where |G h| > lam |h| for some h >= 0, an idle neuron with the features
h and the column u = -G h of W lowers f: D^2 f = 2 u'G h + lam_W |u|^2 + lam_H |h|^2 < 0. Two neurons with
parallel features and parallel columns do the work of one, at no change of f, which leaves the other idle.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ufm._problem import Params, Problem
from ufm.theory import _copositive

#: relative to the largest neuron: below it a neuron is idle
IDLE = 1e-6
#: cosine above 1 minus this: parallel
PARALLEL = 1e-10


@jax.jit
def _class_gradient(prob: Problem, params: Params) -> jax.Array:
    G = prob.logit_gradient(params)
    sums = jax.ops.segment_sum(G.T, prob.labels, prob.K)
    return sums.T / jnp.sqrt(_samples(prob))


def _samples(prob: Problem) -> jax.Array:
    each = jnp.ones(prob.columns) if prob.samples is None else jnp.asarray(prob.samples)
    return jax.ops.segment_sum(each, prob.labels, prob.K)


def class_gradient(prob: Problem, params: Params) -> Float[np.ndarray, "K K"]:
    """G summed over each class and divided by sqrt(n_k): |G h| of features that are the same in a class."""
    return np.asarray(_class_gradient(prob, params))


def through_idle(
    prob: Problem, params: Params, G: Float[np.ndarray, "K K"], floor: float
) -> tuple[Params, Params] | None:
    """A point with the same f and a direction of negative curvature there; None where no neuron is idle.

    Args:
        G: `class_gradient`.  floor: what |G h| must exceed lam |h| by.
    """
    ways = [(value**0.5, h) for value, h in _copositive.ascents(G) if value > (float(prob.lam) + floor) ** 2]
    if not ways:
        return None
    W, H = np.array(params.W), np.array(params.H)
    ratio = (float(prob.lam_H) / float(prob.lam_W)) ** 0.5
    idle = np.flatnonzero(_sizes(W, H) <= IDLE * max(float(_sizes(W, H).max()), IDLE))
    if not len(idle):
        pair = _parallel(W, H)
        if pair is None:
            return None
        _merge(W, H, *pair, ratio)
        idle = np.array(pair[1:])
    W[:, idle], H[idle] = 0.0, 0.0
    dW, dH = np.zeros_like(W), np.zeros_like(H)
    per_class = np.sqrt(np.asarray(prob.counts))
    for i, (size, h) in zip(idle.tolist(), ways, strict=False):
        weight = (size - float(prob.lam)) ** 0.5
        dW[:, i] = -weight * ratio**0.5 * (G @ h) / size
        dH[i] = weight / ratio**0.5 * (h / per_class)[np.asarray(prob.labels)]
    base = params._replace(W=jnp.asarray(W), H=jnp.asarray(H))
    return base, Params(jnp.asarray(dW), jnp.asarray(dH), jnp.zeros_like(params.b))


def _sizes(W: np.ndarray, H: np.ndarray) -> np.ndarray:
    """|w_i||h_i| in the root, one for each neuron."""
    return np.asarray((np.linalg.norm(W, axis=0) * np.linalg.norm(H, axis=1)) ** 0.5)


def _parallel(W: np.ndarray, H: np.ndarray) -> tuple[int, int] | None:
    """The pair of neurons that are closest to parallel, if they are."""
    w = W / np.linalg.norm(W, axis=0)
    h = H / np.linalg.norm(H, axis=1, keepdims=True)
    cosine = np.triu(np.minimum(w.T @ w, h @ h.T), 1)
    if not cosine.max(initial=0.0) > 1 - PARALLEL:
        return None
    i, j = np.unravel_index(int(np.argmax(cosine)), cosine.shape)
    return int(i), int(j)


def _merge(W: np.ndarray, H: np.ndarray, i: int, j: int, ratio: float) -> None:
    """Neuron i takes over what j does, with lam_W |w_i|^2 = lam_H |h_i|^2."""
    total = float((_sizes(W, H)[[i, j]] ** 2).sum())
    W[:, i] *= (total * ratio) ** 0.5 / np.linalg.norm(W[:, i])
    H[i] *= (total / ratio) ** 0.5 / np.linalg.norm(H[i])
