"""Features after a rectifier: two factors, H >= 0."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from ufm._pytree import pytree_dataclass
from ufm.models._base import Params, Sizes, Variables
from ufm.models.free import Free


@pytree_dataclass
class NonNegative(Free):
    """Equation (7) under H >= 0, entry by entry; see `nonnegative`."""

    name = "nonnegative"
    bilinear = False
    isotropic = False
    constrained = True

    def lower(self, prob: Sizes) -> Params:
        """H >= 0."""
        return Params(jnp.asarray(-jnp.inf), jnp.asarray(0.0), jnp.asarray(-jnp.inf))

    def normal(
        self, prob: Sizes, seed: ArrayLike, scale: ArrayLike, random: ModuleType = jax.random
    ) -> Variables:
        """The absolute values of the features that a free model starts with, and its W."""
        drawn = Free().normal(prob, seed, scale, random)
        return drawn._replace(H=abs(drawn.H))

    def chain(self, prob: Sizes, params: Variables) -> tuple[tuple[Any, Array], ...]:
        """(): H is not free."""
        return ()


def nonnegative() -> NonNegative:
    """The model whose features have passed a rectifier: equation (7) under H >= 0.

        f(W, H, b) = (1/N) sum_j L(W h_j + b, y_j) + lam_W/2 |W|^2 + lam_H/2 |H|^2 + lam_b/2 |b|^2,  H >= 0

    At a minimum the conditions of Karush, Kuhn and Tucker hold: with the gradient G of the mean loss in the
    logits, G H' + lam_W W = 0, G 1 + lam_b b = 0, and W'G + lam_H H >= 0, H >= 0 with product 0. A solution's
    `grad_norm` is the norm of what violates them, H - max(H - (W'G + lam_H H), 0) in place of the gradient in
    H. `solver="newton"` becomes a projected Newton method.

    Source: docs/theory.md, section 6.4.

    >>> import ufm
    >>> sol = ufm.solve_ufm("ce", K=4, d=6, n=3, model="nonnegative")
    >>> sol.converged, float(sol.H.min()), bool(sol.metrics.nc1 < 1e-12)
    (True, 0.0, True)
    """
    return NonNegative()
