"""Crammer and Singer's hinge."""

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
class CrammerSinger(Loss, pure=True, by_column=True):
    """L = max_{j != k} max(0, m + z_j - z_k), m = `margin`.  Convex, shift-invariant."""

    margin: Any = 1.0

    name = "cs"
    title = "CS hinge"
    formula = r"\max_{j \ne k} \max(0, m + z_j - z_k)"
    source = "Crammer and Singer, JMLR 2, 2001"
    convex = True
    shift_invariant = True
    symmetric = True
    of_p = False
    smooth = False
    fails = ("T4", "T5")

    def __post_init__(self) -> None:
        object.__setattr__(self, "margin", _checks.real("margin", self.margin, above=0.0))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        return jnp.max(hinges(z, k, self.margin), axis=0)


def crammer_singer(margin: ArrayLike = 1.0) -> CrammerSinger:
    """Crammer and Singer's hinge, L = max_{j != k} max(0, m + z_j - z_k); `margin` m > 0.

    Crammer and Singer, JMLR 2, 2001.
    """
    return CrammerSinger(margin)
