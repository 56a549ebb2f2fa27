"""The exponential loss of all margins."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ufm._pytree import pytree_dataclass
from ufm.losses._base import Loss
from ufm.losses._closed import BallLoss, Odds, ToBall, of_odds
from ufm.losses._logits import log_odds
from ufm.losses._profile import ScalarProfile


@pytree_dataclass
class Exponential(Loss, pure=True, by_column=True):
    """L = sum_{j != k} e^{z_j - z_k} = (1 - p_k)/p_k, the odds against class k.  Convex, shift-invariant."""

    name = "exponential"
    title = "exponential"
    formula = r"\sum_{j \ne k} e^{z_j - z_k}"
    source = "Mukherjee and Schapire, JMLR 14, 2013"
    convex = True
    shift_invariant = True
    symmetric = True
    of_p = True

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        return jnp.exp(log_odds(z, k))

    def profile(self, K: int) -> ScalarProfile:
        def value(a: float | np.ndarray) -> float | np.ndarray:
            return (K - 1) * np.exp(-np.asarray(a))

        return ScalarProfile(value, lambda a: -value(a), value, K)

    def in_balls(self, ball: ToBall) -> BallLoss:
        """eta = -1/p = -(1 + o) and eta' = 1/p^2."""
        odds = Odds(lambda o: o, lambda o: -(1 + o), lambda o: (1 + o) * (1 + o))
        return of_odds(odds, ball(0), ball)


def exponential() -> Exponential:
    """The exponential loss of all margins, L = sum_{j != k} e^{z_j - z_k}.

    Mukherjee and Schapire, JMLR 14, 2013.
    """
    return Exponential()
