"""Cross-entropy at a temperature."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from ufm import _checks
from ufm._pytree import pytree_dataclass
from ufm.losses import _cross_entropy
from ufm.losses._base import Loss
from ufm.losses._closed import number
from ufm.losses._logits import log_odds, softplus
from ufm.losses._profile import ScalarProfile


@pytree_dataclass
class Temperature(Loss, pure=True, by_column=True):
    """L = -log p_k(z/T), T = `temperature`.  Convex, shift-invariant."""

    temperature: Any = 0.5

    name = "temperature"
    title = "temperature CE"
    formula = r"-\log p(z/T)"
    source = "Hinton, Vinyals and Dean 2015"
    remark = "the same temperature in training and in use"
    convex = True
    shift_invariant = True
    symmetric = True
    of_p = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", _checks.real("temperature", self.temperature, above=0.0))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        return softplus(log_odds(z / jnp.asarray(self.temperature, z.dtype), k))

    def profile(self, K: int) -> ScalarProfile:
        """That of cross-entropy at a/T."""
        ce, T = _cross_entropy.profile(K), number("temperature", self.temperature)
        return ScalarProfile(
            lambda a: ce.value(a / T), lambda a: ce.slope(a / T) / T, lambda a: ce.curvature(a / T) / T**2, K
        )


def temperature_cross_entropy(temperature: ArrayLike = 0.5) -> Temperature:
    """Cross-entropy at a temperature, L = -log p_k(z/T); `temperature` T > 0.

    Hinton, Vinyals and Dean 2015.
    """
    return Temperature(temperature)
