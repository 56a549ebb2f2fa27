"""What every model has in common: its variables, what they mean, and what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ufm import _checks
from ufm._pytree import pytree_dataclass


class Params(NamedTuple):
    """Classifier, features and bias: the variables of equation (7), and what every model amounts to."""

    W: Float[Array, "K d"]  # classifier, one row a class
    H: Float[Array, "d N"]  # features, one column a sample
    b: Float[Array, " K"]  # bias; zeros where the problem has none


#: a start that is off the constraints by this many epsilon or less, relative to its size, is on them
ROUNDING = 1000.0
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
        curved: some parts of the variables lie on spheres, see `products`. `logits`, `penalty` and
            `effective` put them there, so that f is constant along their rays: at a feasible point its
            gradient is the Riemannian one, and its Hessian between tangents is the Riemannian Hessian.
        beside: how many directions a solver on spheres needs beside the row space of W; None: all, and
            `within` gives the point in fewer ones.
        constrained: not every value of the variables is feasible, see `nearest`.
        biased: a problem has a bias unless it asks for none; False: it has none and may not ask for one.
        layered: W is a product of free layers, `chain`, and `narrowed` gives the model with other widths.
    """

    name = "model"
    variables: ClassVar[type[Any]] = Params
    two_factors = False
    bilinear = False
    isotropic = False
    convex = False
    curved = False
    beside: ClassVar[int | None] = None
    constrained = False
    biased = True
    layered = False

    def fitted(self, K: int, d: int) -> Model:
        """The model in a problem of these sizes.

        Raises:
            ValueError: it does not fit.
        """
        return self

    def has_bias(self, asked: Any) -> bool:
        """Whether a problem has a bias that asks for one (None: it does not say).

        Raises:
            ValueError: it asks for one, and the model has none.
        """
        if asked is None:
            return self.biased
        if _checks.boolean("bias", asked) and not self.biased:
            raise ValueError(
                f"bias: expected False with model={self!r}, whose logits have none, got {asked!r}; drop it"
            )
        return bool(asked)

    def shapes(self, prob: Sizes) -> dict[str, tuple[int, ...]]:
        """The shape of each variable, by the name of its field."""
        raise NotImplementedError

    def logits(self, prob: Sizes, params: Variables) -> Float[Array, "K N"]:
        """Logits, one column for each column of the features: the long axis last, as processors like it."""
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

    def chain(self, prob: Sizes, params: Variables) -> tuple[tuple[Any, Array], ...]:
        """The free factors of W H, from H on, each with its penalty; () if one of them is not free."""
        return ()

    def narrowed(self, widths: Sequence[int], lam: Any) -> Model:
        """The model with layers of other widths and penalties."""
        raise NotImplementedError

    def inner(self, prob: Sizes) -> tuple[int, ...]:
        """The dimensions between two factors that may be rotated without a change of f."""
        return (prob.d,) if self.isotropic else ()

    # --- spheres ----------------------------------------------------------------------------------------

    def products(self, u: Variables, v: Variables) -> Variables:
        """<u_i, v_i> of each part on a sphere, shaped to broadcast against it; None for free variables."""
        return self.variables(*[None] * len(self.variables._fields))

    def radii(self, prob: Sizes) -> Variables:
        """The radii of these spheres, shaped to broadcast; anything where a part is free."""
        raise NotImplementedError

    def stretch(self, prob: Sizes) -> Variables:
        """Factors of the variables, in a named tuple, that make the curvatures of all parts alike."""
        raise NotImplementedError

    def stiffness(self, prob: Any) -> Any:
        """The size of the curvatures of f against which a negative one is judged."""
        return prob.lam

    def codimension(self, prob: Sizes) -> int:
        """How many spheres there are: each takes a dimension from the variables."""
        return 0

    def within(self, params: Variables, Q: Float[Array, "d m"]) -> Variables:
        """A point with the same logits in the coordinates of the columns of Q, which span the rows of W."""
        raise NotImplementedError

    def ambient(self, prob: Sizes, params: Variables, G: Float[Array, "K N"]) -> Variables:
        """The gradient of the mean loss as if nothing lay on a sphere, from G, that in the logits."""
        raise NotImplementedError

    def multipliers(self, prob: Sizes, params: Variables, G: Float[Array, "K N"]) -> Variables:
        """-<ambient gradient, x>/|x|^2 of each sphere: as a penalty it makes the gradient of x zero."""
        at = self.onto(prob, params)
        along, squares = self.products(self.ambient(prob, at, G), at), self.products(at, at)
        return jax.tree.map(lambda a, square: -a / square, along, squares)

    def nearest(self, prob: Sizes, params: Variables) -> Variables:
        """The nearest feasible point, of numpy arrays."""
        return self.retract(prob, params)

    def retract(self, prob: Sizes, params: Variables) -> Variables:
        """Back from a step: what is below its bound is lifted to it, parts on spheres go along their rays."""
        return self.onto(prob, params) if self.curved else at_least(params, self.lower(prob))

    def onto(self, prob: Sizes, params: Variables) -> Variables:
        """The point on the spheres: each part along its ray, a free one as it is."""
        if not self.curved:
            return params
        squares = self.products(params, params)
        return by_part(lambda square, x, r: x * (r / square**0.5), squares, params, self.radii(prob))

    def feasible(self, prob: Sizes, params: Variables) -> tuple[Variables, bool]:
        """The nearest feasible point, and whether it is another one than `params`.

        Raises:
            ValueError: a part that has no nearest point: zero, on a sphere.
        """
        if not self.constrained:
            return params, False
        given = jax.tree.map(np.asarray, params)
        with np.errstate(divide="ignore", invalid="ignore"):  # reported below, with the name of the argument
            nearest = self.nearest(prob, given)
        for name, part in zip(given._fields, nearest, strict=True):
            if not np.isfinite(part).all():
                raise ValueError(
                    f"{name}: expected vectors that are not zero with model={self!r}, got one of norm 0, "
                    "which has no nearest point of another norm; start from ufm.init(prob)"
                )
        accuracy = ROUNDING * float(np.finfo(given.b.dtype).eps) if self.curved else 0.0
        moved = {
            name
            for name, x, y in zip(given._fields, given, nearest, strict=True)
            if np.abs(x - y).max(initial=0.0) > accuracy * np.abs(y).max(initial=0.0)
        }
        return (jax.device_put(nearest) if moved else params), bool(moved & set(self.given()))

    def given(self) -> tuple[str, ...]:
        """The variables that do not follow from the others."""
        return tuple(self.variables._fields)

    def tangent(self, at: Variables, step: Variables) -> Variables:
        """The part of a step that changes the direction of each part on a sphere."""
        if not self.curved:
            return step
        ratio = jax.tree.map(jnp.divide, self.products(at, step), self.products(at, at))
        return by_part(lambda r, v, x: v - r * x, ratio, step, at)

    def tangents(self, params: Variables) -> Float[np.ndarray, "unknowns size"] | None:
        """An orthonormal basis of the tangents, in the order of `ravel_pytree`; None: the identity."""
        return None

    # --- points -----------------------------------------------------------------------------------------

    def zeros(self, prob: Sizes) -> Variables:
        """All variables zero."""
        return self.variables(**{name: jnp.zeros(shape) for name, shape in self.shapes(prob).items()})

    def normal(
        self, prob: Sizes, seed: ArrayLike, scale: ArrayLike, random: ModuleType = jax.random
    ) -> Variables:
        """Independent N(0, scale^2) entries, and a bias of zero; from `jax.random` or `ufm._threefry`.

        Parts that lie on spheres are then uniform there.
        """
        shapes = self.shapes(prob)
        names = [name for name in shapes if name != "b"]
        keys = random.split(random.key(seed), len(names))
        drawn = {n: scale * random.normal(key, shapes[n]) for n, key in zip(names, keys, strict=True)}
        return self.onto(prob, self.variables(**drawn, b=np.zeros(shapes["b"], jnp.result_type(float))))

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


def by_part(f: Callable[..., Any], scalars: Variables, tree: Variables, *others: Variables) -> Variables:
    """f(scalar, part, *others) of every part of a tree; a part stays as it is where the scalar is None."""

    def changed(scalar: Any, part: Any, *rest: Any) -> Any:
        return part if scalar is None else f(scalar, part, *rest)

    return jax.tree.map(changed, scalars, tree, *others, is_leaf=lambda x: x is None)
