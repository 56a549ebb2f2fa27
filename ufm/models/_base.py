"""What every model has in common: its variables, what they mean, and what is known about it."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ufm._pytree import pytree_dataclass


class Params(NamedTuple):
    """Classifier, features and bias: the variables of equation (7), and what every model amounts to."""

    W: Float[Array, "K d"]  # classifier, one row a class
    H: Float[Array, "d N"]  # features, one column a sample
    b: Float[Array, " K"]  # bias; zeros where the problem has none


#: the variables of a model: a named tuple of arrays with a field `b` for the bias
Variables: TypeAlias = Any


class Sizes(Protocol):
    """What a model reads of the problem that it belongs to."""

    @property
    def K(self) -> int:
        """Number of classes."""

    @property
    def d(self) -> int:
        """Feature dimension."""

    @property
    def columns(self) -> int:
        """Number of columns of the features."""

    @property
    def samples(self) -> Any:
        """(columns,) samples that each column stands for; None where each stands for one."""

    @property
    def lam_W(self) -> Any:
        """Penalty of the classifier."""

    @property
    def lam_H(self) -> Any:
        """Penalty of the features."""

    @property
    def lam_b(self) -> Any:
        """Penalty of the bias."""

    @property
    def bias(self) -> bool:
        """Whether there is a bias."""


@pytree_dataclass
class Model:
    """A model of classifier and features: what is free, how logits follow from it, and what it costs.

    Fast paths (balancing, rotation, closed forms, the exact decomposition of the Hessian, the dual bound) ask
    the facts below before they run. Where the answer is no, the generic path runs: automatic differentiation
    of the objective, a dense Hessian or products with it.

    Attributes:
        name: what it is called in `Problem(model=...)`.
        variables: the named tuple of its variables, with a field `b` for the bias.
        two_factors: the variables are W, H and b, the logits W H + b 1', with the penalties of equation (7).
        bilinear: two factors, both free.
        isotropic: f(W Q, Q'H, b) = f(W, H, b) for every orthogonal Q (d, d).
        convex: the logits are affine in the variables, which are penalised by lam_H samples_j |h_j|^2 and
            lam_b |b|^2, so that f is convex wherever the loss is.
        layered: W is a product of free layers, `chain`, and `narrowed` gives the model with other widths.
    """

    name = "model"
    variables: ClassVar[type[Any]] = Params
    two_factors = False
    bilinear = False
    isotropic = False
    convex = False
    layered = False

    def fitted(self, K: int, d: int) -> Model:
        """The model in a problem of these sizes.

        Raises:
            ValueError: it does not fit.
        """
        return self

    def shapes(self, prob: Sizes) -> dict[str, tuple[int, ...]]:
        """The shape of each variable, by the name of its field."""
        raise NotImplementedError

    def logits(self, prob: Sizes, params: Variables) -> Float[Array, "N K"]:
        """Logits with one row for each column of the features."""
        raise NotImplementedError

    def penalty(self, prob: Sizes, params: Variables) -> Float[Array, ""]:
        """Twice what the variables cost: lam_W |W|^2 + lam_H |H|^2 + lam_b |b|^2 in equation (7)."""
        raise NotImplementedError

    def effective(self, prob: Sizes, params: Variables) -> Params:
        """The classifier, features and bias that the variables amount to."""
        raise NotImplementedError

    def lower(self, prob: Sizes) -> Variables | None:
        """A bound below each variable, 0 or -inf, in shapes that broadcast; None where all are free."""
        return None

    def nearest(self, prob: Sizes, params: Variables) -> Variables:
        """The nearest point that the model allows, where a solver starts."""
        return at_least(params, self.lower(prob))

    def chain(self, prob: Sizes, params: Variables) -> tuple[tuple[Any, Array], ...]:
        """The free factors of W H, from H on, each with its penalty; () if one of them is not free."""
        return ()

    def narrowed(self, widths: Sequence[int], lam: Any) -> Model:
        """The model with layers of other widths and penalties."""
        raise NotImplementedError

    def inner(self, prob: Sizes) -> tuple[int, ...]:
        """The dimensions between two factors that may be rotated without a change of f."""
        return (prob.d,) if self.isotropic else ()

    def zeros(self, prob: Sizes) -> Variables:
        """All variables zero."""
        return self.variables(**{name: jnp.zeros(shape) for name, shape in self.shapes(prob).items()})

    def normal(
        self, prob: Sizes, seed: ArrayLike, scale: ArrayLike, random: ModuleType = jax.random
    ) -> Variables:
        """Independent N(0, scale^2) entries, and a bias of zero; from `jax.random` or `ufm._threefry`."""
        shapes = self.shapes(prob)
        names = [name for name in shapes if name != "b"]
        keys = random.split(random.key(seed), len(names))
        drawn = {n: scale * random.normal(key, shapes[n]) for n, key in zip(names, keys, strict=True)}
        return self.variables(**drawn, b=np.zeros(shapes["b"], jnp.result_type(float)))

    def __repr__(self) -> str:
        return self.name


def at_least(params: Variables, lower: Variables | None) -> Variables:
    """The nearest point within the bounds."""
    return params if lower is None else jax.tree.map(jnp.maximum, params, lower)


def unbound(params: Variables, gradient: Variables, lower: Variables | None) -> Variables:
    """y - max(y - gradient, lower): the gradient where it is not held back by a bound.

    It is zero exactly where the conditions of Karush, Kuhn and Tucker hold: a variable at its bound has a
    gradient >= 0, any other one the gradient 0.
    """
    if lower is None:
        return gradient
    return jax.tree.map(lambda y, g, low: y - jnp.maximum(y - g, low), params, gradient, lower)
