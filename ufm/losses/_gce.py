"""Generalised cross-entropy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from ufm import _checks
from ufm._pytree import pytree_dataclass
from ufm.losses._base import Loss
from ufm.losses._closed import BallLoss, ConvexityRegion, Odds, ToBall, inflection, number, of_odds
from ufm.losses._logits import log_odds, sigmoid, softplus


@jax.custom_jvp
def _expm1(x: Array) -> Array:
    """exp(x) - 1, whose derivative in JAX, that value plus 1, cancels at large -x."""
    return jnp.expm1(x)


_expm1.defjvps(lambda x_dot, _, x: x_dot * jnp.exp(x))


@pytree_dataclass
class GeneralisedCrossEntropy(Loss, pure=True, by_column=True):
    """L = (1 - p_k^q)/q, between cross-entropy (q -> 0) and half the mean absolute error (q = 1)."""

    q: Any = 0.7  # as in the source

    name = "gce"
    title = "generalised CE"
    formula = r"(1 - p^q)/q"
    source = "Zhang and Sabuncu, NeurIPS 2018"
    shift_invariant = True
    symmetric = True
    of_p = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "q", _checks.real("q", self.q, above=0.0))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        q = jnp.asarray(self.q, z.dtype)
        return -_expm1(-q * softplus(log_odds(z, k))) / q

    def convex_at(self, z: Array, k: ArrayLike) -> Array:
        """-dL/da = p^q (1 - p) falls in p where p >= q/(1 + q)."""
        q = jnp.asarray(self.q, z.dtype)
        return sigmoid(-log_odds(z, k)) * (1 + q) >= q

    def region(self) -> ConvexityRegion:
        q = number("q", self.q)
        return inflection(q / (1 + q))

    def in_balls(self, ball: ToBall) -> BallLoss:
        """eta = -p^q, with p = 1/(1 + o)."""
        q = ball(number("q", self.q))
        odds = Odds(
            lambda o: (1 - (1 + o) ** -q) / q,
            lambda o: -((1 + o) ** -q),
            lambda o: -q * (1 + o) ** (1 - q),
        )
        return of_odds(odds, ball(0), ball)


def generalised_cross_entropy(q: ArrayLike = 0.7) -> GeneralisedCrossEntropy:
    """Generalised cross-entropy, L = (1 - p_k^q)/q; `q` > 0.  Zhang and Sabuncu, NeurIPS 2018."""
    return GeneralisedCrossEntropy(q)
