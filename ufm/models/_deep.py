"""A deep linear classifier: logits W_M ... W_1 H + b 1', with a penalty for each factor."""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ufm import _checks
from ufm._pytree import pytree_dataclass, static
from ufm.models._base import Model, Params, Sizes, Variables


@functools.cache
def factors(layers: int) -> type[Any]:
    """The named tuple of W1, ..., W<layers>, H and b, one class for each number of layers."""
    return namedtuple(f"Deep{layers}", [*(f"W{m}" for m in range(1, layers + 1)), "H", "b"])


@pytree_dataclass
class Deep(Model):
    """Z = W_M ... W_1 H + b 1', penalised by sum_m lam_m |W_m|^2 + lam_H |H|^2 + lam_b |b|^2; see `deep`."""

    lam: Any = None  # (M,) penalties of W_1 .. W_M; None: the problem's lam_W for each
    layers: int = static(default=3)
    widths: Any = static(default=None)  # (M - 1) integers; None: d for each

    name = "deep"
    layered = True

    @property
    def variables(self) -> type[Any]:  # type: ignore[override]
        """A named tuple with the fields W1, ..., WM, H and b."""
        return factors(self.layers)

    def shapes(self, prob: Sizes) -> dict[str, tuple[int, ...]]:
        """W1 (widths[0], d), W2 (widths[1], widths[0]), ..., WM (K, widths[-1]), H (d, columns), b (K,)."""
        inner = (prob.d,) * (self.layers - 1) if self.widths is None else self.widths
        sizes = (prob.d, *inner, prob.K)
        shapes = {f"W{m}": (sizes[m], sizes[m - 1]) for m in range(1, self.layers + 1)}
        return shapes | {"H": (prob.d, prob.columns), "b": (prob.K,)}

    def penalties(self, prob: Sizes) -> Float[Array, " M"]:
        """The penalty of each layer."""
        return jnp.broadcast_to(jnp.asarray(prob.lam_W if self.lam is None else self.lam), (self.layers,))

    def logits(self, prob: Sizes, params: Variables) -> Float[Array, "K N"]:
        """W_M ... W_1 H + b 1'."""
        Z = self.classifier(params) @ params.H
        return Z + params.b[:, None] if prob.bias else Z

    def classifier(self, params: Variables) -> Float[Array, "K d"]:
        """W_M ... W_1."""
        return functools.reduce(jnp.matmul, params[: self.layers][::-1])

    def penalty(self, prob: Sizes, params: Variables) -> Float[Array, ""]:
        """sum_m lam_m |W_m|^2 + lam_H sum_j samples_j |h_j|^2 + lam_b |b|^2."""
        H, b = params[self.layers :]
        square = H * H if prob.samples is None else prob.samples * (H * H)
        total = prob.lam_H * jnp.sum(square)
        for lam, W in zip(self.penalties(prob), params[: self.layers], strict=True):
            total += lam * jnp.sum(W * W)
        return jnp.asarray(total + prob.lam_b * jnp.sum(b * b) if prob.bias else total)

    def chain(self, prob: Sizes, params: Variables) -> tuple[tuple[Any, Array], ...]:
        """H, W_1, ..., W_M."""
        layers = zip(self.penalties(prob), params[: self.layers], strict=True)
        return (prob.lam_H, params.H), *layers

    def narrowed(self, widths: Sequence[int], lam: Any) -> Deep:
        """As many layers with these widths inside and penalties."""
        return Deep(lam, self.layers, tuple(widths))

    def inner(self, prob: Sizes) -> tuple[int, ...]:
        """d and the widths."""
        return prob.d, *(rows for rows, _ in list(self.shapes(prob).values())[: self.layers - 1])

    def effective(self, prob: Sizes, params: Variables) -> Params:
        """The classifier W_M ... W_1 with the features and the bias."""
        return Params(self.classifier(params), params.H, params.b)


def deep(
    layers: int = 3, *, lam: ArrayLike | Sequence[float] | None = None, widths: Sequence[int] | None = None
) -> Deep:
    """The model with a deep linear classifier: Z = W_M ... W_1 H + b 1', every factor free.

        f = (1/N) sum_j L(z_j, y_j) + sum_m lam_m/2 |W_m|^2 + lam_H/2 |H|^2 + lam_b/2 |b|^2

    Its variables are a named tuple of W1, ..., WM, H and b; a solution's W is the product. With `layers=1` it
    is the model of two free factors. From two layers on the origin is a strict local minimum in the factors,
    which small starts fall into.

    Args:
        layers: M >= 1.
        lam: (M,) penalties > 0 of W_1, ..., W_M, or one for all.  Default: the problem's lam_W for each.
            They are leaves: new values compile nothing.
        widths: (M - 1) widths of the inner layers, from the features to the logits.  Default: d for each.
            The smallest bounds the rank of the logits.

    Raises:
        ValueError: layers or a width < 1; a penalty <= 0; not one penalty for each layer, not one width for
            each inner layer.

    Source: docs/theory.md, section 6.2.

    >>> import ufm
    >>> model = ufm.models.deep(layers=2, lam=[0.01, 0.02], widths=[5])
    >>> prob = ufm.Problem.balanced("ce", K=3, d=4, n=2, model=model)
    >>> [(name, x.shape) for name, x in prob.zeros()._asdict().items()]
    [('W1', (5, 4)), ('W2', (3, 5)), ('H', (4, 6)), ('b', (3,))]
    """
    layers = _checks.integer("layers", layers, least=1)
    return Deep(_penalties(lam, layers), layers, _widths(widths, layers))


def _penalties(lam: Any, layers: int) -> Any:
    if lam is None or isinstance(lam, jax.core.Tracer):
        return lam
    array = np.asarray(_checks.array_like("lam", lam))
    if array.shape not in ((), (layers,)):
        raise ValueError(
            f"lam: expected one penalty or {layers}, one for each layer, got the shape {array.shape}"
        )
    return np.array([_checks.real("lam", x, above=0.0) for x in np.broadcast_to(array, layers).tolist()])


def _widths(widths: Any, layers: int) -> tuple[int, ...] | None:
    if widths is None:
        return None
    given = list(widths) if np.iterable(widths) else [widths]
    if len(given) != layers - 1:
        raise ValueError(
            f"widths: expected {layers - 1}, one for each inner layer of layers={layers}, got {widths!r}"
        )
    return tuple(_checks.integer("widths", x, least=1) for x in given)
