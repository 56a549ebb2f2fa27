"""The coordinates in which a solver runs on a product of layers, Z = W_M ... W_1 H + b 1'.

With q = M + 1 factors A_0 = H, A_j = W_j of penalties lam_j, and lam = (prod lam_j)^(1/q), the solver has

    B_j = stretch_j Q_j' A_j Q_(j-1),   stretch_j = sqrt(lam_j/lam),   prod stretch_j = 1,

which leave Z alone and all carry the penalty lam. The columns of Q_j (d_j, r), r = min(d_j, K), are an
orthonormal basis of the row space of the factor above, from the classifier down. What a factor writes outside
of it is read by none and incurs only its penalty: it vanishes at the optimum. Gradients and Hessians leave
the subspace invariant. A step then costs what it costs in K dimensions, whatever the widths.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm._problem import Problem, Variables
from ufm.solvers import Solver


class Layers(NamedTuple):
    """Coordinates y, the fields of the model; see the module's docstring."""

    problem: Problem  # narrower, and with one penalty where a solver balances; its variables are `params(y)`
    root: Array | None  # (columns,) square root of the samples of each column, None: ones
    stretch: Array  # (q,) of H, W_1, ..., W_M
    bases: tuple[Array, ...] | None  # Q_0, ..., Q_(M-1); None: identities

    def params(self, y: Any) -> Variables:
        """The variables of `problem`."""
        return y if self.root is None else y._replace(H=y.H / self.root)

    def coordinates(self, params: Variables) -> Any:
        """The inverse of `params`."""
        return params if self.root is None else params._replace(H=params.H * self.root)

    def objective(self, y: Any) -> Array:
        return self.problem(self.params(y))

    def residual(self, y: Any, g: Any) -> Array:
        """|grad f| in the variables of the problem as it was given, from the gradient g at y."""
        *layers, H, b = g
        squares = jnp.stack([jnp.sum(x * x) for x in (H, *layers)])
        return jnp.sqrt(jnp.sum(self.stretch**2 * squares) + jnp.sum(b * b))

    def expanded(self, prob: Problem, y: Any, reduced: bool) -> Variables:
        """The variables of the problem as it was given."""
        *layers, H, b = self.params(y)
        factors = [x / s for x, s in zip((H, *layers), self.stretch, strict=True)]
        if self.bases is not None:
            above = (*self.bases, None)
            factors = [x if Q is None else Q @ x for x, Q in zip(factors, above, strict=True)]
            factors[1:] = [x @ Q.T for x, Q in zip(factors[1:], self.bases, strict=True)]
        H, *layers = factors
        return prob.model.variables(*layers, H[:, prob.labels] if reduced else H, b)


def turns(prob: Problem, solver: Solver, reduced: bool) -> bool:
    """Whether a solver runs in narrower layers than the problem has."""
    return (solver.rotate or reduced) and max(prob.model.inner(prob)) > prob.K


def bases(prob: Problem, params: Variables, solver: Solver, reduced: bool) -> tuple[Array, ...] | None:
    """The bases of `layers_of`, computed by numpy, which spares the compiled program their factorisations."""
    if not turns(prob, solver, reduced):
        return None
    *layers, H, _ = (np.asarray(x) for x in params)
    return tuple(jax.device_put(Q) for Q in _row_spaces(class_means(prob, H).T, layers, np))


def class_means(prob: Problem, H: np.ndarray) -> np.ndarray:
    """(K, d): the mean feature of each class, by numpy."""
    member = np.asarray(prob.labels) == np.arange(prob.K)[:, None]
    weight = member if prob.samples is None else member * np.asarray(prob.samples)
    return np.asarray((weight @ H.T) / weight.sum(axis=1, keepdims=True), H.dtype)


def layers_of(
    prob: Problem, params: Variables, solver: Solver, reduced: bool, Q: tuple[Array, ...] | None = None
) -> tuple[Layers, Any]:
    """The coordinates of a problem and the start in them; `Q` are the `bases`, if they are known already."""
    base, H = (prob.means(), prob.class_means(params.H)) if reduced else (prob, params.H)
    *layers, _, b = params
    lam = jnp.stack([jnp.asarray(x, H.dtype) for x, _ in prob.model.chain(prob, params)])
    mean = jnp.exp(jnp.mean(jnp.log(lam)))
    stretch = jnp.sqrt(lam / mean) if solver.balance else jnp.ones_like(lam)
    root = None if base.samples is None else jnp.sqrt(base.samples).astype(H.dtype)
    if turns(prob, solver, reduced):
        Q = tuple(_row_spaces(prob.class_means(params.H), layers, jnp)) if Q is None else Q
        H, *layers = _inside((H, *layers), Q)
    H, *layers = (s * x for s, x in zip(stretch, (H, *layers), strict=True))
    F = H if root is None else root * H
    model = prob.model.narrowed([len(x) for x in layers[:-1]], mean if solver.balance else lam[1:])
    problem = base.replace(d=len(H), lam_H=mean if solver.balance else lam[0], model=model)
    return Layers(problem, root, stretch, Q), prob.model.variables(*layers, F, b)


def _inside(factors: Any, Q: Any) -> list[Any]:
    """Q_j' A_j Q_(j-1)."""
    H, *layers = factors
    turned = [x @ q for x, q in zip(layers, Q, strict=True)]
    return [q.T @ x for x, q in zip((H, *turned[:-1]), Q, strict=True)] + turned[-1:]


def _row_spaces(means: Any, layers: Any, xp: Any) -> list[Any]:
    """Q_0, ..., Q_(M-1), found from the classifier down; `means` (d, K) are the features' class means."""
    inputs = [means]  # of each layer
    for W in layers[:-1]:
        inputs.append(W @ inputs[-1])
    found: list[Any] = []
    above = layers[-1]
    for W, x in zip((*layers[-2::-1], None), inputs[::-1], strict=True):
        found.append(row_space(above, x.T[: len(above)], xp))
        above = None if W is None else found[-1].T @ W
    return found[::-1]


def row_space(W: Any, means: Any, xp: Any) -> Any:
    """(d, K): an orthonormal basis of the rows of W, (K, d); `xp` is numpy or jax.numpy.

    If they are linearly dependent, it is completed with the class means of the features, (K, d), so that a
    start with W = 0 keeps the directions in which W will grow.
    """
    U = xp.linalg.eigh(W @ W.T)[1]
    across = U.T @ W  # singular values times right singular vectors
    square = xp.sum(across**2, axis=1)  # eigh's own eigenvalues are rounded at eps times the largest
    largest = xp.max(square)
    active = square > (8 * len(W) * np.finfo(W.dtype).eps) ** 2 * largest
    rows = xp.where(active, 1 / xp.where(active, square, 1.0), 0.0)
    lacking = xp.where(active, 0.0, 1.0)[:, None]  # the combinations of classes that W lacks
    missing = lacking * (U.T @ means)
    missing = missing - ((missing @ across.T) * rows) @ across  # orthogonal to the rows of W
    size = xp.sqrt(xp.sum(missing**2))
    scale = xp.sqrt(xp.where(largest > 0, largest, 1.0)) / xp.where(size > 0, size, 1.0)
    # in combinations of their own, so that what is scaled up from rounding leaves the rows of W alone
    return xp.linalg.qr((W + U @ (scale * missing - lacking * across)).T)[0]
