"""Cross-entropy of normalised logits."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from ufm import _checks
from ufm._pytree import pytree_dataclass
from ufm.losses._base import Loss
from ufm.losses._logits import log_odds, softplus


@pytree_dataclass
class LogitNorm(Loss, pure=True, by_column=True):
    """L = -log p_k(z/(T |z|)), T = `temperature`; log K at z = 0, where it has no derivative."""

    temperature: Any = 1.0

    name = "logitnorm"
    title = "logit-norm CE"
    formula = r"-\log p(z/(T \|z\|))"
    source = "Wei et al., ICML 2022"
    remark = "temperature 1 by default; there a hyperparameter, far below 1"
    symmetric = True
    of_p = False
    smooth = False
    fails = ("T1", "T3", "T4", "T6")

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", _checks.real("temperature", self.temperature, above=0.0))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        square = jnp.sum(z * z, axis=0, keepdims=True)
        norm = jnp.sqrt(
            jnp.where(square > 0, square, 1.0)
        )  # the inner `where` keeps the gradient at 0 finite
        return softplus(log_odds(z / (norm * jnp.asarray(self.temperature, z.dtype)), k))


def logit_norm(temperature: ArrayLike = 1.0) -> LogitNorm:
    """Cross-entropy of normalised logits, L = -log p_k(z/(T |z|)); `temperature` T > 0.

    Wei et al., ICML 2022.
    """
    return LogitNorm(temperature)
