"""Weston and Watkins' hinges, squared."""

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
class SquaredWestonWatkins(Loss, pure=True, by_column=True):
    """L = sum_{j != k} max(0, m + z_j - z_k)^2, m = `margin`.  Convex, shift-invariant."""

    margin: Any = 1.0

    name = "ww"
    title = "squared WW hinge"
    formula = r"\sum_{j \ne k} \max(0, m + z_j - z_k)^2"
    source = "Weston and Watkins, ESANN 1999"
    remark = "squared, margin 1; there plain, margin 2"
    convex = True
    shift_invariant = True
    symmetric = True
    of_p = False
    smooth = False
    fails = ("T4",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "margin", _checks.real("margin", self.margin, above=0.0))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        return jnp.sum(hinges(z, k, self.margin) ** 2, axis=0)


def weston_watkins(margin: ArrayLike = 1.0) -> SquaredWestonWatkins:
    """Weston and Watkins' hinges, squared, L = sum_{j != k} max(0, m + z_j - z_k)^2; `margin` m > 0.

    Weston and Watkins, ESANN 1999.
    """
    return SquaredWestonWatkins(margin)
