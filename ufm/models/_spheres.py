"""Classifier rows and features of norm one, or features alone: logits scale <w_k, h_j>."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ufm import _checks
from ufm._pytree import pytree_dataclass, static
from ufm.models._base import Model, Params, Sizes


@pytree_dataclass
class Spheres(Model):
    """|w_k| = |h_j| = 1 and Z = scale W H, without penalties or a bias; see `spheres`."""

    scale: Any = 16.0
    features_only: bool = static(default=False)

    name = "spheres"
    isotropic = True
    curved = True
    constrained = True
    biased = False
    beside = 1

    def fitted(self, K: int, d: int) -> Spheres:
        """With d >= 2: on a line a unit vector cannot move."""
        if d < 2:
            raise ValueError(f"d: expected d >= 2 with model={self!r}, got d={d}; raise d")
        return Spheres(_checks.real("scale", self.scale, above=0.0), self.features_only)

    def shapes(self, prob: Sizes) -> dict[str, tuple[int, ...]]:
        """W (K, d), H (d, columns), and b (K,), which stays zero."""
        return {"W": (prob.K, prob.d), "H": (prob.d, prob.columns), "b": (prob.K,)}

    def logits(self, prob: Sizes, params: Params) -> Float[Array, "K N"]:
        """scale W H."""
        W, H, _ = self.onto(prob, params)
        return jnp.asarray(self.scale * (W @ H))

    def penalty(self, prob: Sizes, params: Params) -> Float[Array, ""]:
        """Zero; lam_W |W|^2 where W is free."""
        return jnp.asarray(prob.lam_W * jnp.sum(params.W**2) if self.features_only else 0.0)

    def effective(self, prob: Sizes, params: Params) -> Params:
        """scale W with the features."""
        W, H, b = self.onto(prob, params)
        return Params(self.scale * W, H, b)

    def products(self, u: Params, v: Params) -> Any:
        """Of the rows of W (K, 1), unless they are free, and of the columns of H (1, columns)."""
        rows = None if self.features_only else (u.W * v.W).sum(axis=1, keepdims=True)
        return Params(rows, (u.H * v.H).sum(axis=0, keepdims=True), None)  # type: ignore[arg-type]

    def radii(self, prob: Sizes) -> Any:
        """Ones."""
        return Params(1.0, 1.0, 1.0)  # type: ignore[arg-type]

    def stretch(self, prob: Sizes) -> Any:
        """A row of W is seen by N samples, a column of H by `samples` of them."""
        samples = 1.0 if prob.samples is None else prob.samples
        N = prob.columns if prob.samples is None else prob.samples.sum()
        return Params(1.0, (samples * prob.K / N) ** 0.5, 1.0)  # type: ignore[arg-type]

    def within(self, params: Params, Q: Float[Array, "d m"]) -> Params:
        """Q'h, and what h has outside of the row space of W along the last column of Q."""
        H = Q.T @ params.H
        rest = jnp.sqrt(jnp.maximum(1 - jnp.sum(H[:-1] ** 2, axis=0), 0.0))
        return Params(params.W @ Q, H.at[-1].set(rest), params.b)

    def ambient(self, prob: Sizes, params: Params, G: Float[Array, "K N"]) -> Params:
        """scale G H' and scale W'G."""
        return Params(self.scale * G @ params.H.T, self.scale * params.W.T @ G, jnp.zeros_like(params.b))

    def stiffness(self, prob: Any) -> Any:
        """scale / sqrt(K N), the curvature where all vectors are equal."""
        return self.scale / (prob.K * prob.N) ** 0.5

    def codimension(self, prob: Sizes) -> int:
        """One for each unit vector."""
        return prob.columns + (0 if self.features_only else prob.K)

    def tangents(self, params: Params) -> Float[np.ndarray, "unknowns size"]:
        """The complements of the rows of W, unless they are free, of the columns of H, and I for b."""
        W, H, b = (np.asarray(x) for x in params)
        on_W = [np.eye(W.size)] if self.features_only else [complement(w) for w in W]
        return diagonal(*on_W, of_columns(H), np.eye(b.size))

    def __repr__(self) -> str:
        scale = f"{float(self.scale):g}" if np.ndim(self.scale) == 0 and np.isreal(self.scale) else "..."
        return f"spheres(scale={scale}{', features_only=True' * self.features_only})"


def complement(x: Float[np.ndarray, " d"]) -> Float[np.ndarray, "d d-1"]:
    """Orthonormal vectors orthogonal to x, from one Householder reflection."""
    v = x / np.linalg.norm(x)
    v[0] += np.copysign(1.0, v[0])
    return np.asarray(np.eye(len(x))[:, 1:] - np.outer(v, v[1:] / abs(v[0])))


def of_columns(H: Float[np.ndarray, "d N"]) -> Float[np.ndarray, "entries size"]:
    """The complements of the columns of H, for its entries row by row."""
    columns = diagonal(*map(complement, H.T))
    found = np.empty_like(columns)
    found[np.arange(H.size).reshape(H.shape).T.ravel()] = columns
    return found


def diagonal(*blocks: np.ndarray) -> np.ndarray:
    """The block-diagonal matrix."""
    from scipy.linalg import block_diag  # here, because `import ufm` does not need scipy

    return np.asarray(block_diag(*blocks))


def spheres(scale: Any = 16.0, *, features_only: bool = False) -> Spheres:
    """The model of unit vectors: |w_k| = |h_j| = 1, logits scale <w_k, h_j>, no bias.

        f(W, H) = (1/N) sum_j L(scale W h_j, y_j)

    The problem's penalties have no part in it: on spheres they would be constants. With `features_only` the
    rows of W are free and lam_W/2 |W|^2 is added. A start off the spheres is scaled to them, and the solution
    says so; W of a solution is scale times the unit rows in `params`.

    Args:
        scale: s > 0, the inverse of a temperature.  It is a leaf: a new value compiles nothing.
        features_only: W is free and penalised; the features alone are unit vectors.

    Raises:
        ValueError: a scale <= 0.  Once a problem gives the sizes: d < 2, or a bias.

    Source: docs/theory.md, section 6.3; Yaras et al. 2022.

    >>> import ufm
    >>> prob = ufm.Problem.balanced("ce", K=4, d=6, n=3, model=ufm.models.spheres(scale=4.0))
    >>> sol = ufm.solve(prob)
    >>> sol.converged, abs(float(sol.objective) - ufm.theory.global_optimum(prob).objective) < 1e-12
    (True, True)
    """
    return Spheres(_checks.real("scale", scale, above=0.0), _checks.boolean("features_only", features_only))
