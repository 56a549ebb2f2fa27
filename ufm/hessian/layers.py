"""The Hessian at a critical point of layers, Z = W_M ... W_1 H + b 1', M > 1: a small core and a known rest.

All q = M + 1 factors A_j, from A_0 = H to A_M = W_M, have the same rank r there. In bases of the ranges of
the factors below and of their complements the Hessian is the direct sum of

- the core, the Hessian of the same problem with r in place of each inner dimension d_j;
- lam_j, (rows - r) (columns - r) times, for what A_j maps from outside of one range to outside of the other:
  the q - 1 other factors do not let it through, even at second order;
- 0 and lam_(j-1) + lam_j, r (d_j - r) times each: rotations of an inner dimension and their counterparts;
- where the features of class k coincide: the r eigenvalues of lam_H I + P' D^2 L P/N, n_k - 1 times each,
  with P = W_M ... W_1 on the range; the core then has one column for each class.

At the origin r = 0, and all eigenvalues but the bias's are lam_j. Source: docs/theory.md, section 6.2.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm import _compile
from ufm._problem import Problem, Variables
from ufm.hessian.product import finite_dense, is_critical

#: a core up to this size is diagonalised
CORE = 2000
#: singular values below this share of the largest are zero: a factor's are q-th roots of those of Z
RANK = 1e-5
#: features of a class within this share of the largest coincide
COINCIDE = 1e-8


def spectrum(prob: Problem, params: Variables) -> tuple[np.ndarray, np.ndarray] | None:
    """All eigenvalues with their multiplicities, or None where the decomposition does not apply.

    Raises:
        NotFinite: the Hessian is not finite.
    """
    chain = prob.model.chain(prob, params)
    if (
        not prob.model.layered
        or len(chain) < 3
        or prob.samples is not None
        or not is_critical(prob, params)[0]
    ):
        return None
    factors, lam = [np.asarray(A) for _, A in chain], np.array([float(x) for x, _ in chain])
    r = rank(factors)
    ranges = [np.linalg.svd(A, full_matrices=False)[0][:, : max(r, 1)] for A in factors[:-1]]
    small, inside = _core(prob, factors, ranges, params.b)
    members = [np.flatnonzero(np.asarray(prob.labels) == k) for k in range(prob.K)]
    size, fluctuations = np.ones(small.columns), (np.zeros(0), np.zeros(0, np.int64))
    if _coincide(factors[0], members):
        small, inside, size = small.means(), inside._replace(H=small.class_means(inside.H)), prob.counts
        fluctuations = _within_classes(prob, small, inside)
    if small.size > CORE:
        return None
    rest = _outside(prob, lam, r, small)
    core = np.linalg.eigvalsh(_by_sample(small, inside, size))
    values, times = zip((core, np.ones(len(core), np.int64)), fluctuations, rest, strict=True)
    return np.concatenate(values), np.concatenate(times)


def rank(factors: list[np.ndarray]) -> int:
    """Of all factors at a critical point: zero, or that of the one above the features."""
    sigma = np.linalg.svd(factors[1], compute_uv=False)
    return int((sigma > max(RANK * sigma[0], 1e-8)).sum())


def _core(
    prob: Problem, factors: list[np.ndarray], ranges: list[np.ndarray], b: Array
) -> tuple[Problem, Variables]:
    """The problem and the point in the ranges; at the origin in one direction of each."""
    above, below = [*ranges, np.eye(prob.K)], [np.eye(prob.columns), *ranges]
    H, *layers = (Q.T @ A @ R for Q, A, R in zip(above, factors, below, strict=True))
    width, model = len(H), prob.model
    lam = [x for x, _ in model.chain(prob, prob.zeros())][1:]
    narrow = prob.replace(d=width, model=model.narrowed([width] * (len(layers) - 1), jnp.stack(lam)))
    return narrow, model.variables(*map(jnp.asarray, (*layers, H)), b)


def _coincide(H: np.ndarray, members: list[np.ndarray]) -> bool:
    largest = COINCIDE * max(float(np.abs(H).max()), 1e-300)
    return all(np.ptp(H[:, some], axis=1).max() <= largest for some in members)


def _within_classes(prob: Problem, small: Problem, inside: Variables) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of features that move apart within a class."""
    P = small.model.effective(small, inside).W
    blocks = np.asarray(_curvatures(small, inside, P)) / prob.N + float(prob.lam_H) * np.eye(P.shape[1])
    return np.linalg.eigvalsh(blocks).ravel(), np.repeat(prob.counts - 1, P.shape[1])


@partial(_compile.jit, options=_compile.INSTANT)
def _curvatures(prob: Problem, params: Variables, P: Array) -> Array:
    """P' D^2 L P for each column (columns, r, r)."""
    each = jax.vmap(jax.hessian(prob.loss))(prob.logits(params).T, prob.labels)
    return jnp.einsum("ka,jkl,lb->jab", P, each, P)


def _by_sample(small: Problem, inside: Variables, size: Any) -> np.ndarray:
    """The core's Hessian with features that have norm 1 over all their samples."""
    *layers, H, b = inside
    root = np.broadcast_to(1 / np.sqrt(size), H.shape)
    parts = [*(np.ones(W.size) for W in layers), root.ravel(), np.ones(b.size if small.bias else 0)]
    scale = np.concatenate(parts)
    return finite_dense(small, inside) * np.outer(scale, scale)


def _outside(prob: Problem, lam: np.ndarray, r: int, small: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues that need no computation."""
    dims = np.array([prob.columns, *prob.model.inner(prob), prob.K])
    rows, columns = dims[1:] - r, dims[:-1] - r
    times = rows * columns
    within = len(dims) - 1
    if r == 0:  # the core holds one direction of each dimension, and its own part of every factor
        core = np.array(
            [prob.K if small.columns < prob.columns else prob.columns, *[1] * (within - 1), prob.K]
        )
        times = dims[1:] * dims[:-1] - core[1:] * core[:-1]
        times[0] -= (prob.columns - core[0]) * int(core[0] < prob.columns)
    inner = r * (dims[1:-1] - r)
    values = np.concatenate([lam, np.zeros(len(inner)), lam[1:] + lam[:-1]])
    return values, np.concatenate([times, inner, inner])
