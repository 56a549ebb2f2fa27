"""Symmetric cross-entropy."""

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

LOG_0 = -4.0  # what the source reads log 0 as


@pytree_dataclass
class SymmetricCrossEntropy(Loss, pure=True, by_column=True):
    """L = -alpha log p_k + 4 beta (1 - p_k): cross-entropy, and that with labels and predictions exchanged.

    The second term is -beta sum_j p_j log y_j with one-hot y, where log 0 is read as -4.
    """

    alpha: Any = 0.1  # as in the source
    beta: Any = 1.0

    name = "sce"
    title = "symmetric CE"
    formula = r"-\alpha \log p + 4 \beta (1 - p)"
    source = "Wang, Ma, Chen, Luo, Yi and Bailey, ICCV 2019"
    remark = "log 0 read as A = -4"
    shift_invariant = True
    symmetric = True
    of_p = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _checks.real("alpha", self.alpha, above=0.0))
        object.__setattr__(self, "beta", _checks.real("beta", self.beta, least=0.0))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        alpha, reverse = (jnp.asarray(x, z.dtype) for x in (self.alpha, -LOG_0 * self.beta))
        q = log_odds(z, k)
        return alpha * softplus(q) + reverse * sigmoid(q)

    def convex_at(self, z: Array, k: ArrayLike) -> Array:
        """-dL/da = (1 - p)(alpha + B p) with B = 4 beta falls in p where B (1 - 2p) <= alpha."""
        alpha, reverse = (jnp.asarray(x, z.dtype) for x in (self.alpha, -LOG_0 * self.beta))
        return reverse * (1 - 2 * sigmoid(-log_odds(z, k))) <= alpha

    @property
    def _numbers(self) -> tuple[float, float]:
        return number("alpha", self.alpha), -LOG_0 * number("beta", self.beta)

    def region(self) -> ConvexityRegion:
        alpha, reverse = self._numbers
        return inflection((reverse - alpha) / (2 * reverse) if reverse > alpha else 0.0)

    def in_balls(self, ball: ToBall) -> BallLoss:
        """eta = -alpha - B p."""
        alpha, reverse = map(ball, self._numbers)
        odds = Odds(
            lambda o: alpha * o.log1p() + reverse * o / (1 + o),
            lambda o: -alpha - reverse / (1 + o),
            lambda o: -reverse,
        )
        return of_odds(odds, ball(0), ball)


def symmetric_cross_entropy(alpha: ArrayLike = 0.1, beta: ArrayLike = 1.0) -> SymmetricCrossEntropy:
    """Symmetric cross-entropy, L = -alpha log p_k + 4 beta (1 - p_k); `alpha` > 0, `beta` >= 0.

    Wang, Ma, Chen, Luo, Yi and Bailey, ICCV 2019.
    """
    return SymmetricCrossEntropy(alpha, beta)
