"""Class weights: a loss times a number of the sample's class."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ufm import _checks
from ufm._pytree import pytree_dataclass, replace
from ufm.losses._base import Loss


@pytree_dataclass
class Weighted(Loss, pure=True, by_column=True):
    """w_k L(z, k).

    It inherits the facts that positive weights leave alone (convexity, invariance to a common shift) and the
    conjugate, (w L)*(u) = w L*(u/w). It has no closed form of its own and treats the classes differently.
    """

    loss: Loss
    weights: Float[Array | np.ndarray, " K"]

    symmetric = False
    of_p = False

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        return self._of(z, k) * self.loss(z, k)

    def columns(self, Z: Array, k: Array | np.ndarray) -> Array:
        return self._of(Z, k) * self.loss.columns(Z, k)

    def _of(self, z: Array, k: ArrayLike) -> Array:
        return jnp.asarray(self.weights, z.dtype)[k]

    def conjugate(self, u: Array, k: ArrayLike) -> Array:
        w = self._of(u, k)
        return w * self.loss.conjugate(u / w, k)

    def fenchel_young(self, z: Array, u: Array, k: ArrayLike) -> Array:
        w = self._of(z, k)
        return w * self.loss.fenchel_young(z, u / w, k)

    def targets(self, K: int) -> Array | None:
        targets = self.loss.targets(K)
        return None if targets is None else jnp.asarray(self.weights, targets.dtype)[:, None] * targets

    def convex_at(self, z: Array, k: ArrayLike) -> Array:
        return self.loss.convex_at(z, k)

    def typical_margin(self) -> float:
        return self.loss.typical_margin()

    @property
    def has_conjugate(self) -> bool:
        """Whether the loss carries its conjugate."""
        return self.loss.has_conjugate

    @property
    def infimum(self) -> Any:  # type: ignore[override]
        """A lower bound of w_k L over all classes."""
        least = self.loss.infimum
        if least == 0:
            return 0.0
        extreme = jnp.min(jnp.asarray(self.weights)) if least > 0 else jnp.max(jnp.asarray(self.weights))
        return least * extreme if isinstance(extreme, jax.core.Tracer) else float(least * extreme)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Those of the loss that is weighted."""
        return self.loss.hyperparameters

    def __repr__(self) -> str:
        w = self.weights
        if isinstance(w, jax.core.Tracer) or not hasattr(w, "min"):
            return f"weighted {self.loss!r}"
        return f"{self.loss!r} with class weights {float(w.min()):g}..{float(w.max()):g}"


for _name in ("name", "title", "formula", "source", "convex", "shift_invariant", "smooth", "sums_classes"):
    setattr(Weighted, _name, property(attrgetter(f"loss.{_name}")))


def weighted(loss: Loss, weights: Any, K: int) -> Loss:
    """`loss` with class weights w (K,), w_k L(z, k); `loss` itself for None.

    Raises:
        ValueError: weights of another length, not positive or not finite; a loss that is weighted already.
    """
    if weights is None:
        return loss
    if isinstance(loss, Weighted):
        raise ValueError(f"class_weights: expected a loss without weights, got {loss!r}")
    return Weighted(loss, check_weights(weights, K))


def check_weights(weights: Any, K: int) -> Any:
    """Class weights (K,) as float64, all positive; a tracer of that shape passes unread.

    Raises:
        ValueError: another length, a weight that is not positive, not finite or not a real number.
    """
    array = _checks.array_like("class_weights", weights)
    if array.shape != (K,):
        raise ValueError(
            f"class_weights: expected (K,) = ({K},) numbers > 0, got shape {array.shape}; give one a class"
        )
    if isinstance(array, jax.core.Tracer):
        return array
    array = np.asarray(array)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"class_weights: expected real numbers > 0, got dtype {array.dtype}")
    wrong = ~(np.isfinite(array) & (array > 0))
    if wrong.any():
        k = int(wrong.argmax())
        raise ValueError(
            f"class_weights: expected finite numbers > 0, got {array[k]} for class {k}; leave a class out "
            "instead of giving it no weight"
        )
    return array.astype(np.float64)


def without_weights(loss: Loss) -> Loss:
    """The loss that is weighted, or `loss` itself."""
    return loss.loss if isinstance(loss, Weighted) else loss


def weights_of(loss: Loss) -> Any:
    """The class weights (K,) of a loss, None where it has none."""
    return loss.weights if isinstance(loss, Weighted) else None


def exchanged_inside(loss: Weighted, inside: Loss) -> Weighted:
    """The same weights of another loss."""
    return loss if inside is loss.loss else replace(loss, loss=inside)
