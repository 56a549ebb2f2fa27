"""A classifier that is given, as a simplex ETF or any other matrix: only features and bias are free."""

from __future__ import annotations

from types import ModuleType
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ufm import _checks
from ufm._pytree import pytree_dataclass, replace, static
from ufm.models._base import Model, Params, Sizes, Variables
from ufm.models._spheres import diagonal, of_columns

#: what the features may be
FEATURES = ("free", "nonnegative", "sphere")


class Features(NamedTuple):
    """Features and bias, where the classifier is given."""

    H: Float[Array, "d N"]  # features, one column a sample
    b: Float[Array, " K"]  # bias; zeros where the problem has none


@pytree_dataclass
class Fixed(Model):
    """W given, H and b free, Z = W H + b 1', with the penalties lam_H |H|^2 + lam_b |b|^2; see `fixed`."""

    W: Any = "etf"  # (K, d); "etf" until a problem gives the sizes
    scale: Any = 1.0
    radius: Any = 1.0  # |h_j| on a sphere
    features: str = static(default="free")

    name = "fixed"
    variables: ClassVar[type[Any]] = Features

    @property
    def curved(self) -> bool:  # type: ignore[override]
        """The features lie on a sphere."""
        return self.features == "sphere"

    @property
    def constrained(self) -> bool:  # type: ignore[override]
        """They are not free."""
        return self.features != "free"

    @property
    def convex(self) -> bool:  # type: ignore[override]
        """They are free or have bounds."""
        return not self.curved

    def fitted(self, K: int, d: int) -> Fixed:
        """With a W of shape (K, d)."""
        scale = _checks.real("scale", self.scale, above=0.0)
        if isinstance(self.W, str):
            W: Any = projection(K, d) if self.features == "nonnegative" else simplex(K, d)
        else:
            W = _classifier(self.W, (K, d))
        return Fixed(W, scale, self.radius, self.features)

    @property
    def classifier(self) -> Float[Array, "K d"]:
        """scale W."""
        return jnp.asarray(self.scale * jnp.asarray(self.W))

    def shapes(self, prob: Sizes) -> dict[str, tuple[int, ...]]:
        """H (d, columns), b (K,)."""
        return {"H": (prob.d, prob.columns), "b": (prob.K,)}

    def lower(self, prob: Sizes) -> Features | None:
        """H >= 0 where the features are not negative."""
        return Features(jnp.asarray(0.0), jnp.asarray(-jnp.inf)) if self.features == "nonnegative" else None

    def normal(
        self, prob: Sizes, seed: ArrayLike, scale: ArrayLike, random: ModuleType = jax.random
    ) -> Variables:
        """The absolute values of free features where they are not negative, else as for every model."""
        if self.features != "nonnegative":
            return super().normal(prob, seed, scale, random)
        drawn = replace(self, features="free").normal(prob, seed, scale, random)
        return drawn._replace(H=abs(drawn.H))

    def logits(self, prob: Sizes, params: Features) -> Float[Array, "K N"]:
        """W H + b 1'."""
        H, b = self.onto(prob, params)
        Z = self.classifier @ H
        return Z + b[:, None] if prob.bias else Z

    def penalty(self, prob: Sizes, params: Features) -> Float[Array, ""]:
        """lam_H sum_j samples_j |h_j|^2 + lam_b |b|^2; on a sphere without the constant of the features."""
        H, b = params
        square = H * H if prob.samples is None else prob.samples * (H * H)
        total = jnp.zeros(()) if self.curved else prob.lam_H * jnp.sum(square)
        return jnp.asarray(total + prob.lam_b * jnp.sum(b * b) if prob.bias else total)

    def effective(self, prob: Sizes, params: Features) -> Params:
        """The given classifier with the features and the bias."""
        return Params(self.classifier, *self.onto(prob, params))

    def products(self, u: Features, v: Features) -> Any:
        """Of the columns of H."""
        return Features((u.H * v.H).sum(axis=0, keepdims=True), None)  # type: ignore[arg-type]

    def radii(self, prob: Sizes) -> Any:
        """The radius."""
        return Features(self.radius, 1.0)  # type: ignore[arg-type]

    def stretch(self, prob: Sizes) -> Any:
        """Ones: all columns are alike."""
        return Features(1.0, 1.0)  # type: ignore[arg-type]

    def ambient(self, prob: Sizes, params: Features, G: Float[Array, "K N"]) -> Features:
        """W'G and G 1."""
        return Features(self.classifier.T @ G, jnp.sum(G, axis=1) if prob.bias else jnp.zeros_like(params.b))

    def stiffness(self, prob: Any) -> Any:
        """|W|/(N radius), what the sphere's own curvature is at most for a loss with slopes of 1."""
        return jnp.linalg.norm(self.classifier) / (prob.N * self.radius) if self.curved else prob.lam

    def codimension(self, prob: Sizes) -> int:
        """One for each column on a sphere."""
        return prob.columns if self.curved else 0

    def tangents(self, params: Features) -> Float[np.ndarray, "unknowns size"] | None:
        """The complements of the columns of H, and I for b."""
        H, b = (np.asarray(x) for x in params)
        return diagonal(of_columns(H), np.eye(b.size)) if self.curved else None


def fixed(
    W: Any = "etf",
    *,
    scale: Any = 1.0,
    features: Literal["free", "nonnegative", "sphere"] = "free",
    radius: Any = 1.0,
) -> Fixed:
    """The model with a given classifier: Z = scale W H + b 1', variables H and b.

        f(H, b) = (1/N) sum_j L(scale W h_j + b, y_j) + lam_H/2 |H|^2 + lam_b/2 |b|^2

    It is convex for every loss that is convex in the logits. The problem's lam_W is not used, and W has no
    part in f's variables. `W`, `scale` and `radius` are leaves: new values compile nothing.

    Args:
        W: (K, d), or "etf": a simplex ETF, W W' = I - 11'/K, which needs d >= K - 1.  For features that are
            not negative it is I - 11'/K itself, padded with zeros, which needs d >= K.
        scale: a number > 0 that multiplies W.
        features: "nonnegative": H >= 0.  "sphere": |h_j| = radius, in place of the penalty of the features.
        radius: a number > 0.

    Raises:
        ValueError: another word; a scale or radius <= 0.  Once a problem gives K and d: a W of another shape,
            not of numbers or with NaN; an ETF that does not fit.

    Source: docs/theory.md, section 6.1.

    >>> import ufm
    >>> sol = ufm.solve_ufm("ce", K=4, d=6, n=3, bias=False, model=ufm.models.fixed("etf", scale=2.0))
    >>> sol.params._fields, sol.converged, bool(sol.metrics.nc1 < 1e-12)
    (('H', 'b'), True, True)
    """
    if isinstance(W, str):
        _checks.choice("W", W, ("etf",))
    _checks.choice("features", features, FEATURES)
    scale, radius = _checks.real("scale", scale, above=0.0), _checks.real("radius", radius, above=0.0)
    return Fixed(W, scale, radius, features)


def simplex(K: int, d: int) -> Float[np.ndarray, "K d"]:
    """A simplex ETF, W W' = I - 11'/K: a basis of the complement of 1, padded with zeros to d columns.

    Raises:
        ValueError: d < K - 1.
    """
    if d < K - 1:
        raise ValueError(
            f"W: expected d >= K - 1 = {K - 1} for the simplex ETF of K={K} classes, got d={d}; raise d, or "
            "give a W (K, d)"
        )
    return np.pad(helmert(K), ((0, 0), (0, d - K + 1))).astype(jnp.result_type(float))


def projection(K: int, d: int) -> Float[np.ndarray, "K d"]:
    """I - 11'/K, padded with zeros to d columns: the simplex ETF that features e_k >= 0 serve.

    Raises:
        ValueError: d < K.
    """
    if d < K:
        raise ValueError(
            f"W: expected d >= K = {K} for the simplex ETF I - 11'/K of features that are not negative, got "
            f"d={d}; raise d, or give a W (K, d)"
        )
    return np.pad(np.eye(K) - 1 / K, ((0, 0), (0, d - K))).astype(jnp.result_type(float))


def helmert(K: int) -> Float[np.ndarray, "K r"]:
    """Orthonormal basis (K, K-1) of the complement of 1: column j is (1, .., 1, -j, 0, ..)/sqrt(j(j+1))."""
    j = np.arange(1.0, K)
    upper = np.triu(np.ones((K, K - 1)))
    upper[np.arange(1, K), np.arange(K - 1)] = -j
    return upper / np.sqrt(j * (j + 1.0))


def _classifier(W: Any, shape: tuple[int, int]) -> Any:
    array = _checks.array_like("W", W)
    if array.shape != shape:
        raise ValueError(f"W: expected the shape (K, d) = {shape}, got {array.shape}; give one row a class")
    if isinstance(array, jax.core.Tracer):
        return array
    array = np.asarray(array)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        what = "NaN or infinity" if array.dtype.kind in "iuf" else f"the dtype {array.dtype}"
        raise ValueError(f"W: expected finite real numbers, got {what}; give another classifier")
    return array.astype(jnp.result_type(float))
