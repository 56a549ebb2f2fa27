"""Taylor cross-entropy: the first terms of the expansion of -log p in 1 - p."""

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
from ufm.losses._logits import log_odds, sigmoid

MOST = 10  # terms that are compiled, whatever number of them counts


@pytree_dataclass
class TaylorCrossEntropy(Loss, pure=True, by_column=True):
    """L = sum_{i <= t} (1 - p_k)^i/i with t = `terms`."""

    terms: Any = 2.0  # the source's choice

    name = "taylor"
    title = "Taylor CE"
    formula = r"\sum_{i \le t} (1 - p)^i/i"
    source = "Feng et al., IJCAI 2020"
    remark = "the first t terms of -log p = sum_i (1 - p)^i/i"
    shift_invariant = True
    symmetric = True
    of_p = True

    def __post_init__(self) -> None:
        terms = _checks.real("terms", self.terms, least=1.0)
        if not isinstance(terms, jax.core.Tracer) and (terms > MOST or terms % 1):
            raise ValueError(f"terms: expected a whole number from 1 to {MOST}, got {self.terms!r}")
        object.__setattr__(self, "terms", terms)

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        u, terms = sigmoid(log_odds(z, k)), jnp.asarray(self.terms, z.dtype)
        total = jnp.zeros((), z.dtype)
        for i in range(MOST, 0, -1):  # Horner's scheme
            total = u * (total + jnp.where(i <= terms, jnp.asarray(1 / i, z.dtype), 0.0))
        return total

    def convex_at(self, z: Array, k: ArrayLike) -> Array:
        """-dL/da = u - u^(t+1) with u = 1 - p rises in u where (t + 1) u^t <= 1."""
        terms = jnp.asarray(self.terms, z.dtype)
        return sigmoid(log_odds(z, k)) <= (terms + 1) ** (-1 / terms)

    def region(self) -> ConvexityRegion:
        terms = number("terms", self.terms)
        return inflection(1 - (terms + 1) ** (-1 / terms))

    def in_balls(self, ball: ToBall) -> BallLoss:
        """eta = -p sum_{i < t} (1 - p)^i = (1 - p)^t - 1 and eta' = -t (1 - p)^(t-1)."""
        t = int(number("terms", self.terms))
        odds = Odds(
            lambda o: sum(((o / (1 + o)) ** i / i for i in range(1, t + 1)), ball(0)),
            lambda o: (o / (1 + o)) ** t - 1,
            lambda o: -t * (o / (1 + o)) ** (t - 1),
        )
        return of_odds(odds, ball(0), ball)


def taylor_cross_entropy(terms: ArrayLike = 2) -> TaylorCrossEntropy:
    """Taylor cross-entropy, L = sum_{i <= t} (1 - p_k)^i/i; `terms` t from 1 to 10.

    Feng et al., IJCAI 2020.
    """
    return TaylorCrossEntropy(terms)
