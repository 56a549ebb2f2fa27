"""Mean absolute error."""

from __future__ import annotations

from jax import Array
from jax.typing import ArrayLike

from ufm._pytree import pytree_dataclass
from ufm.losses._base import Loss
from ufm.losses._closed import BallLoss, ConvexityRegion, Odds, ToBall, inflection, of_odds
from ufm.losses._logits import log_odds, sigmoid


@pytree_dataclass
class MeanAbsoluteError(Loss, pure=True, by_column=True):
    """L = 2 (1 - p_k), the 1-norm of e_k - softmax(z)."""

    name = "mae"
    title = "MAE"
    formula = r"2 (1 - p)"
    source = "Ghosh, Kumar and Sastry, AAAI 2017"
    remark = "the 1-norm of e_k - softmax(z)"
    shift_invariant = True
    symmetric = True
    of_p = True

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        return 2 * sigmoid(log_odds(z, k))

    def convex_at(self, z: Array, k: ArrayLike) -> Array:
        """-dL/da = 2 p (1 - p) falls in p where p >= 1/2."""
        return log_odds(z, k) <= 0

    def region(self) -> ConvexityRegion:
        return inflection(0.5)

    def in_balls(self, ball: ToBall) -> BallLoss:
        """eta = -2 p."""
        odds = Odds(lambda o: 2 * o / (1 + o), lambda o: -2 / (1 + o), lambda o: ball(-2))
        return of_odds(odds, ball(0), ball)


def mean_absolute_error() -> MeanAbsoluteError:
    """Mean absolute error, L = 2 (1 - p_k).  Ghosh, Kumar and Sastry, AAAI 2017."""
    return MeanAbsoluteError()
