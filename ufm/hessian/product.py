"""The Hessian of equation (7): its product with a direction, and the dense matrix, the oracle of all else.

With dZ = dW H + W dH + db 1', A_j the loss's Hessian in the logits of sample j (over N) and R_j = A_j dZ_j:

    Hess (dW, dH, db) = (R H' + G dH' + lam_W dW,  W'R + dW'G + lam_H dH,  R 1 + lam_b db).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from ufm import _compile
from ufm._derivatives import curvature
from ufm._precision import in_float64
from ufm._problem import Params, Problem, Variables

#: a dense request above this many bytes is refused
MEMORY_LIMIT = 8 * 2**30


def product(prob: Problem, params: Variables) -> Callable[[Variables], Variables]:
    """The map direction -> Hess direction at a point, with the losses' curvature prepared once.

    Where both factors are free it is written out: the loss enters through one linearisation of its gradient,
    so that a product costs 12 K d N operations and no exponential. For other models it is the linearisation
    of the gradient of f; on spheres the Riemannian Hessian, of the tangent part of the direction.

    Source: the second derivative of equation (7).
    """
    if prob.model.curved:
        tangent = partial(prob.model.tangent, params)
        hessian = jax.linearize(jax.grad(prob), params)[1]
        return lambda direction: tangent(hessian(tangent(direction)))
    return curvature(prob, params)


def off_bounds(prob: Problem, params: Variables) -> Callable[[Variables], Variables]:
    """The map that sets a direction to zero in the variables at their bounds; the identity without bounds."""
    above = prob.off_bounds(params)
    if above is None:
        return lambda v: v
    return lambda v: jax.tree.map(lambda off, x: jnp.where(off, x, 0.0), above, v)


@jax.jit
def _one_product(prob: Problem, params: Params, direction: Params) -> Params:
    return product(prob, params)(direction)


@jax.jit
def _many_products(prob: Problem, params: Params, directions: Params) -> Params:
    return jax.lax.map(product(prob, params), directions)


def hvp(prob: Problem, params: Variables, direction: Variables) -> Params:
    """The Hessian of f at `params` times `direction`, without ever forming the Hessian.

    Args:
        params: Params(W (K, d), H (d, N), b (K,)).
        direction: Params of the same shapes, or all three with one leading axis: a batch of directions.
            The bias's part is ignored where the problem has no bias, and the result's is zero.

    Returns: Params shaped as `direction`.

    Raises:
        ValueError: a wrong shape or dtype, or a value that is not finite.

    >>> import ufm
    >>> prob = ufm.Problem.balanced(loss="ce", K=3, d=4, n=2, lam_W=0.01, lam_H=0.02)
    >>> one = ufm.Params(jnp.ones((3, 4)), jnp.zeros((4, 6)), jnp.zeros(3))
    >>> float(hvp(prob, prob.zeros(), one).W[0, 0])  # at the origin W sees its penalty only
    0.01
    """
    params = prob.check_params(params)
    if _is_batch(prob, direction):
        rows = [prob.check_params(row) for row in zip(*direction, strict=True)]
        return _many_products(prob, params, jax.tree.map(lambda *x: jnp.stack(x), *rows))
    return _one_product(prob, params, prob.check_params(direction))


def _is_batch(prob: Problem, direction: Any) -> bool:
    """All arrays with the same leading axis on top of the problem's shapes; else `check_params` judges."""
    shapes = list(prob.model.shapes(prob).values())
    given = [np.shape(x) for x in direction]
    leading = {shape[:1] for shape in given}
    return len(leading) == 1 and [shape[1:] for shape in given] == shapes


@in_float64
def dense(prob: Problem, params: Variables) -> Float[np.ndarray, "size size"]:
    """The whole Hessian by automatic differentiation, in the order of `ravel_pytree(Params)`.

    Without a bias the last K coordinates are left out; on spheres the coordinates are those of `tangents` of
    the model. The witness of every faster routine; it is refused where the matrix would take more than
    `MEMORY_LIMIT` bytes.

    Raises:
        ValueError: a wrong shape, or too large a problem.
    """
    params = prob.check_params(params)
    check_dense(prob.unknowns)
    whole = np.asarray(_dense(prob, params))
    tangents = prob.model.tangents(params)
    if tangents is None:
        return whole
    tangents = tangents[: len(whole), : prob.size]
    return tangents.T @ whole @ tangents


def finite_dense(prob: Problem, params: Variables) -> np.ndarray:
    """The Hessian in all variables off their bounds, where no entry is NaN or infinite.

    Raises:
        NotFinite: one is.
    """
    matrix = np.asarray(dense(prob, params))
    if not np.isfinite(matrix).all():
        raise NotFinite(
            f"params: expected a point where the Hessian is finite, got NaN or infinity in it; take a point "
            f"where {prob.loss!r} is twice differentiable and the logits do not overflow"
        )
    free = _off_bounds(prob, params)
    return matrix if free is None else np.asarray(matrix[np.ix_(free, free)])


def in_all_variables(prob: Problem, params: Variables, vector: np.ndarray) -> Variables:
    """A vector in the coordinates of `finite_dense` as one of all variables."""
    flat, unravel = ravel_pytree(params)
    whole, free, tangents = np.zeros(flat.size), _off_bounds(prob, params), prob.model.tangents(params)
    if tangents is not None:
        vector = tangents[: prob.unknowns, : prob.size] @ vector
    whole[np.arange(len(vector)) if free is None else free] = vector
    return unravel(jnp.asarray(whole, flat.dtype))


def dimension(prob: Problem, params: Variables) -> int:
    """The number of variables that are off their bounds."""
    free = _off_bounds(prob, params)
    return prob.size if free is None else len(free)


def _off_bounds(prob: Problem, params: Variables) -> np.ndarray | None:
    """The places of the variables off their bounds in the dense Hessian; None where there are no bounds."""
    above = prob.off_bounds(params)
    return None if above is None else np.flatnonzero(np.asarray(ravel_pytree(above)[0])[: prob.size])


class NotFinite(ValueError):  # noqa: N818 (callers catch it by name; users see its message)
    """The gradient or the Hessian of f has an entry that is not a finite number."""


def check_dense(size: int, remedy: str = "ask for which='smallest' or use hvp") -> None:
    """Refuse a dense matrix that does not fit."""
    needed = 8 * size**2
    if needed > MEMORY_LIMIT:
        raise ValueError(
            f"size: a dense {size} x {size} Hessian takes {needed / 2**30:.0f} GiB, expected at most "
            f"{MEMORY_LIMIT / 2**30:.0f} GiB; {remedy}"
        )


@jax.jit
def _dense(prob: Problem, params: Params) -> Array:
    x, unravel = ravel_pytree(params)
    size = prob.unknowns
    full = jax.hessian(lambda y: prob(unravel(jnp.concatenate([y, x[size:]]))))(x[:size])
    return full


#: |grad f| of a critical point, relative to the parts that must cancel in it
CRITICAL = 1e-6


def is_critical(prob: Problem, params: Params) -> tuple[bool, float]:
    """Whether |grad f| is small against its parts G H', lam_W W, W'G, lam_H H and G 1; and |grad f|."""
    norm, allowed = _critical(prob, params)
    return norm <= allowed, norm


def _critical(prob: Problem, params: Params) -> tuple[float, float]:
    norm, parts, G = (float(x) for x in _sizes(prob, params))
    # at the origin the parts vanish, and sums of N terms of size |G| must cancel
    return norm, CRITICAL * (parts + 1e-3 * G)


@partial(_compile.jit, options=_compile.USUAL)
def _sizes(prob: Problem, params: Params) -> tuple[Array, Array, Array]:
    """|grad f|, the sum of the norms of the parts that cancel in it, other than the bias's, and |G|."""
    G = prob.logit_gradient(params)
    fit, penalty = prob.gradients(params, G)
    total = norm(prob.unbound(params, jax.tree.map(jnp.add, fit, penalty)))
    if prob.model.curved:  # what cancels is the part along the rays, which the gradient lacks
        fit = prob.model.ambient(prob, prob.model.onto(prob, params), G)
    without_bias = (*fit._replace(b=jnp.zeros(())), *penalty._replace(b=jnp.zeros(())))
    parts = sum((jnp.linalg.norm(x) for x in without_bias), jnp.zeros(()))
    return total, parts, jnp.linalg.norm(G)


def norm(tree: Variables) -> Array:
    """The Euclidean norm over all variables."""
    return jnp.sqrt(sum((jnp.vdot(x, x) for x in tree), jnp.zeros(())))


def check_critical(prob: Problem, params: Params) -> float:
    """|grad f| at a critical point.

    Raises:
        ValueError: not a critical point, or a gradient that is not finite.
    """
    norm, allowed = _critical(prob, params)
    if not np.isfinite(norm):
        raise ValueError(
            f"params: expected a critical point, got one where |grad f| is {norm}: the logits overflow, or "
            f"{prob.loss!r} has no derivative there; take another point, or mend the loss"
        )
    if norm > allowed:
        raise ValueError(
            f"params: expected a critical point, |grad f| <= {allowed:.1e} here, got |grad f| = {norm:.1e}; "
            "polish it with ufm.landscape.polish(prob, params), or minimise with ufm.solve(prob, params)"
        )
    return norm
