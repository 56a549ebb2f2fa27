"""Cross-entropy."""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from ufm._pytree import pytree_dataclass
from ufm.losses import _two_groups
from ufm.losses._base import Loss, Setting
from ufm.losses._closed import BallLoss, Block, Groups, Odds, SymmetricPoint, ToBall, of_odds
from ufm.losses._logits import log_odds, negative_entropy, relative_entropy, softplus
from ufm.losses._profile import ScalarProfile, sigmoid
from ufm.losses._profile import softplus as log1p_exp


@pytree_dataclass
class CrossEntropy(Loss, pure=True, by_column=True):
    """L = -log p_k = softplus(q).  Convex, shift-invariant.  Paper, equation (3)."""

    name = "ce"
    title = "cross-entropy"
    formula = r"-\log p"
    source = "Zhou et al. 2022"
    convex = True
    shift_invariant = True
    symmetric = True
    of_p = True

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        return softplus(log_odds(z, k))

    def conjugate(self, u: Array, k: ArrayLike) -> Array:
        return negative_entropy(u + jax.nn.one_hot(k, u.shape[0], dtype=u.dtype))

    def fenchel_young(self, z: Array, u: Array, k: ArrayLike) -> Array:
        return relative_entropy(u + jax.nn.one_hot(k, u.shape[0], dtype=u.dtype), z)

    def targets(self, K: int) -> Array:
        return jnp.eye(K)

    def profile(self, K: int) -> ScalarProfile:
        return profile(K)

    def optimum(self, setting: Setting) -> SymmetricPoint:
        return smoothed_optimum(setting, Fraction(0))

    def threshold(self, setting: Setting) -> tuple[float, None]:
        return 1 / setting.K, None

    def block_optimum(self, setting: Setting, groups: Groups) -> Block | None:
        return _two_groups.optimum(setting, groups, 0.0)

    def parting(self, setting: Setting, groups: Groups) -> float | None:
        return _two_groups.parting(setting, groups, 0.0)

    def merging(self, bias: bool) -> float:
        return 1.0

    def smoothing(self) -> float:
        return 0.0

    def in_balls(self, ball: ToBall) -> BallLoss:
        return of_odds(odds(ball), ball(0), ball)


def cross_entropy() -> CrossEntropy:
    """Cross-entropy, L = -log p_k.  Paper, equation (3).

    >>> import ufm, jax.numpy as jnp
    >>> print(round(float(ufm.losses.cross_entropy()(jnp.zeros(3), 0)), 12))  # log 3
    1.098612288668
    """
    return CrossEntropy()


# --- what label smoothing shares ------------------------------------------------------------------


def profile(K: int) -> ScalarProfile:
    """l(a) = log(1 + (K-1) e^-a)."""
    top = math.log(K - 1)
    return ScalarProfile(
        lambda a: log1p_exp(top - a),
        lambda a: -sigmoid(top - a),
        lambda a: sigmoid(top - a) * sigmoid(a - top),
        K,
    )


def smoothed_optimum(s: Setting, alpha: Fraction) -> SymmetricPoint:
    """a = log(1/u - (K-1)) with u = c + alpha/K, the probability of each other class.

    In terms of the room to the threshold, 1/u - (K-1) = 1 + K ((1-alpha)/K - c)/u, which does not cancel; the
    objective is the entropy of (1 - (K-1) u, u, .., u).
    """
    K = s.K
    room = s.below((1 - alpha) / K)
    off = s.c + float(alpha / K)
    if room <= 0:
        return SymmetricPoint(0.0, math.log(K), math.log(K))
    a = math.log1p(K * room / off)
    log_own = math.log1p(-(K - 1) * off) if (K - 1) * off < 0.5 else math.log(off + K * room)
    entropy = -(off + K * room) * log_own - (K - 1) * off * math.log(off)
    return SymmetricPoint(a, entropy, math.log(K))


def odds(ball: ToBall) -> Odds:
    """h = log(1 + o), eta = -1."""
    return Odds(lambda o: o.log1p(), lambda o: ball(-1), lambda o: ball(0))
