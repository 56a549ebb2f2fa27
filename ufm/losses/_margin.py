"""Cross-entropy with an additive margin."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ufm import _checks
from ufm._pytree import pytree_dataclass
from ufm.losses._base import Loss
from ufm.losses._closed import number
from ufm.losses._logits import log_odds, negative_entropy, own, relative_entropy, softplus
from ufm.losses._profile import ScalarProfile, sigmoid
from ufm.losses._profile import softplus as log1p_exp


@pytree_dataclass
class AdditiveMargin(Loss, pure=True, by_column=True):
    """L = -log p_k(z - margin e_k) = softplus(q + margin).  Convex, shift-invariant."""

    margin: Any = 1.0

    name = "margin"
    title = "additive margin"
    formula = r"-\log p(z - m e_k)"
    source = "Wang, Cheng, Liu and Liu, IEEE Signal Processing Letters 2018"
    remark = "the margin on the logits themselves; there on cosines, which are then scaled"
    convex = True
    shift_invariant = True
    symmetric = True
    of_p = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "margin", _checks.real("margin", self.margin))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        return softplus(log_odds(z, k) + jnp.asarray(self.margin, z.dtype))

    def conjugate(self, u: Array, k: ArrayLike) -> Array:
        shift = jnp.asarray(self.margin, u.dtype) * jnp.sum(jnp.where(own(u, k), u, 0.0))
        return negative_entropy(u + jax.nn.one_hot(k, u.shape[0], dtype=u.dtype)) + shift

    def fenchel_young(self, z: Array, u: Array, k: ArrayLike) -> Array:
        target = jax.nn.one_hot(k, u.shape[0], dtype=u.dtype)
        return relative_entropy(u + target, z - jnp.asarray(self.margin, z.dtype) * target)

    def targets(self, K: int) -> Array:
        return jnp.eye(K)

    def profile(self, K: int) -> ScalarProfile:
        """That of cross-entropy at a - margin."""
        top = math.log(K - 1) + number("margin", self.margin)
        return ScalarProfile(
            lambda a: log1p_exp(top - np.asarray(a)),
            lambda a: -sigmoid(top - np.asarray(a)),
            lambda a: sigmoid(top - np.asarray(a)) * sigmoid(np.asarray(a) - top),
            K,
        )


def additive_margin(margin: ArrayLike = 1.0) -> AdditiveMargin:
    """Cross-entropy of logits whose target is lowered by `margin`, L = -log p_k(z - margin e_k).

    Wang, Cheng, Liu and Liu, IEEE Signal Processing Letters 2018.
    """
    return AdditiveMargin(margin)
