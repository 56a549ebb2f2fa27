"""Poly-1: cross-entropy with another weight of the first term of its expansion in 1 - p."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from ufm import _checks
from ufm._pytree import pytree_dataclass
from ufm.losses._base import Loss
from ufm.losses._closed import BallLoss, ConvexityRegion, Odds, ToBall, inflection, number, of_odds
from ufm.losses._logits import log_odds, sigmoid, softplus


@pytree_dataclass
class Poly1(Loss, pure=True, by_column=True):
    """L = -log p_k + epsilon (1 - p_k).  Convex in z for epsilon <= 1 only."""

    epsilon: Any = 1.0

    name = "poly1"
    title = "Poly-1"
    formula = r"-\log p + \epsilon (1 - p)"
    source = "Leng et al., ICLR 2022"
    shift_invariant = True
    symmetric = True
    of_p = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", _checks.real("epsilon", self.epsilon, least=-1.0))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        q = log_odds(z, k)
        return softplus(q) + jnp.asarray(self.epsilon, z.dtype) * sigmoid(q)

    def convex_at(self, z: Array, k: ArrayLike) -> Array:
        """-dL/da = (1 - p)(1 + epsilon p) falls in p where epsilon (1 - 2p) <= 1."""
        return jnp.asarray(self.epsilon, z.dtype) * (1 - 2 * sigmoid(-log_odds(z, k))) <= 1

    def region(self) -> ConvexityRegion:
        epsilon = number("epsilon", self.epsilon)
        return inflection((1 - 1 / epsilon) / 2 if epsilon > 1 else 0.0)

    def in_balls(self, ball: ToBall) -> BallLoss:
        """eta = -1 - epsilon p."""
        epsilon = ball(number("epsilon", self.epsilon))
        odds = Odds(
            lambda o: o.log1p() + epsilon * o / (1 + o), lambda o: -1 - epsilon / (1 + o), lambda o: -epsilon
        )
        return of_odds(odds, ball(0), ball)


def poly1(epsilon: ArrayLike = 1.0) -> Poly1:
    """Poly-1, L = -log p_k + epsilon (1 - p_k); `epsilon` >= -1.  Leng et al., ICLR 2022."""
    return Poly1(epsilon)
