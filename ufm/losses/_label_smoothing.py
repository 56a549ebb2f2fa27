"""Label smoothing: cross-entropy with targets mixed with the uniform distribution."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from ufm import _checks
from ufm._pytree import pytree_dataclass
from ufm.losses import _cross_entropy, _two_groups
from ufm.losses._base import Loss, Setting
from ufm.losses._closed import (
    BallLoss,
    Block,
    Curvature,
    Groups,
    SymmetricPoint,
    ToBall,
    along_margin,
    number,
    of_odds,
)
from ufm.losses._logits import log_odds, negative_entropy, relative_entropy, softplus, target
from ufm.losses._profile import ScalarProfile, sigmoid


@pytree_dataclass
class LabelSmoothing(Loss, pure=True, by_column=True):
    """L = -(1 - alpha) log p_k - (alpha/K) sum_j log p_j.  Convex, shift-invariant.  Paper, equation (4).

    Written as cross-entropy plus alpha (z_k - mean z), which never adds large numbers of opposite sign.
    """

    alpha: Any = 0.1  # the paper's value (Section 4)

    name = "ls"
    title = "label smoothing"
    formula = r"-(1-\alpha) \log p - \frac{\alpha}{K} \sum_j \log p_j"
    source = "Zhou et al. 2022"
    convex = True
    shift_invariant = True
    symmetric = True
    of_p = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _checks.real("alpha", self.alpha, least=0.0, below=1.0))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        tilt = target(z, k) - jnp.mean(z, axis=0)
        return softplus(log_odds(z, k)) + jnp.asarray(self.alpha, z.dtype) * tilt

    def _target(self, k: ArrayLike, K: int, dtype: Any) -> Array:
        alpha = jnp.asarray(self.alpha, dtype)
        return (1 - alpha) * jax.nn.one_hot(k, K, dtype=dtype) + alpha / K

    def conjugate(self, u: Array, k: ArrayLike) -> Array:
        return negative_entropy(u + self._target(k, u.shape[0], u.dtype))

    def fenchel_young(self, z: Array, u: Array, k: ArrayLike) -> Array:
        return relative_entropy(u + self._target(k, u.shape[0], u.dtype), z)

    def targets(self, K: int) -> Array:
        return self._target(jnp.arange(K), K, jnp.result_type(float))

    def profile(self, K: int) -> ScalarProfile:
        return _cross_entropy.profile(K).tilted(number("alpha", self.alpha) * (K - 1) / K)

    def optimum(self, setting: Setting) -> SymmetricPoint:
        return _cross_entropy.smoothed_optimum(setting, Fraction(number("alpha", self.alpha)))

    def threshold(self, setting: Setting) -> tuple[float, None]:
        return float((1 - Fraction(number("alpha", self.alpha))) / setting.K), None

    def block_optimum(self, setting: Setting, groups: Groups) -> Block | None:
        return _two_groups.optimum(setting, groups, number("alpha", self.alpha))

    def parting(self, setting: Setting, groups: Groups) -> float | None:
        return _two_groups.parting(setting, groups, number("alpha", self.alpha))

    def merging(self, bias: bool) -> float:
        return 1 - number("alpha", self.alpha)

    def smoothing(self) -> float:
        return number("alpha", self.alpha)

    def curvature(self, K: int, a: float, m: float, b0: float) -> Curvature:
        """The term that is linear in z does not bend: the rest is that of cross-entropy."""
        return along_margin(self.profile(K), a, rest=float(sigmoid(math.log(K - 1) - a)) / (K - 1))

    def in_balls(self, ball: ToBall) -> BallLoss:
        return of_odds(_cross_entropy.odds(ball), ball(number("alpha", self.alpha)), ball)


def label_smoothing(alpha: ArrayLike = 0.1) -> LabelSmoothing:
    """Cross-entropy with smoothed targets, L = -(1 - alpha) log p_k - (alpha/K) sum_j log p_j.

    `alpha` in [0, 1).  Paper, equation (4).
    """
    return LabelSmoothing(alpha)
