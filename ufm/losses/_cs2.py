"""Crammer and Singer's hinge, squared."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from ufm import _checks
from ufm._pytree import pytree_dataclass
from ufm.losses._base import Loss
from ufm.losses._logits import hinges


@pytree_dataclass
class SquaredCrammerSinger(Loss, pure=True, by_column=True):
    """L = max_{j != k} max(0, m + z_j - z_k)^2, m = `margin`.  Convex, shift-invariant."""

    margin: Any = 1.0

    name = "cs2"
    title = "squared CS hinge"
    formula = r"\max_{j \ne k} \max(0, m + z_j - z_k)^2"
    source = "Lee and Lin, Neural Computation 25, 2013"
    remark = "Crammer and Singer's, squared"
    convex = True
    shift_invariant = True
    symmetric = True
    of_p = False
    smooth = False
    fails = ("T4",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "margin", _checks.real("margin", self.margin, above=0.0))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        return jnp.max(hinges(z, k, self.margin), axis=0) ** 2


def squared_crammer_singer(margin: ArrayLike = 1.0) -> SquaredCrammerSinger:
    """Crammer and Singer's hinge, squared, L = max_{j != k} max(0, m + z_j - z_k)^2; `margin` m > 0.

    Lee and Lin, Neural Computation 25, 2013.
    """
    return SquaredCrammerSinger(margin)
