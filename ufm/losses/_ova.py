"""One-versus-all: a logistic loss for each class."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from ufm._pytree import pytree_dataclass
from ufm.losses._base import Loss
from ufm.losses._logits import own, softplus


@pytree_dataclass
class OneVersusAll(Loss, pure=True, by_column=True):
    """L = log(1 + e^{-z_k}) + sum_{j != k} log(1 + e^{z_j}).  Convex, not shift-invariant."""

    name = "ova"
    title = "one-vs-all"
    formula = r"\log(1+e^{-z_k}) + \sum_{j \ne k} \log(1+e^{z_j})"
    source = "Zhang, JMLR 5, 2004"
    remark = "the one-versus-all form with the logistic loss; of networks also: binary cross-entropy"
    convex = True
    symmetric = True
    of_p = False
    fails = ("T1",)

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        return jnp.sum(softplus(jnp.where(own(z, k), -z, z)), axis=0)


def one_vs_all() -> OneVersusAll:
    """A logistic loss for each class, also called binary cross-entropy.  Zhang, JMLR 5, 2004."""
    return OneVersusAll()
