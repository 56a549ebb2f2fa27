"""The layer-peeled model: two free factors, with bounds on their mean squares in place of penalties."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ufm import _checks
from ufm._pytree import pytree_dataclass
from ufm._sheet import printed
from ufm.models._base import Model, Params, Sizes
from ufm.models._spheres import complement, diagonal


@printed
class Bounded(NamedTuple):
    """Two factors with what each leaves of its bound."""

    W: Float[Array, "K d"]  # classifier, one row a class
    H: Float[Array, "d N"]  # features, one column a sample
    slack: Float[Array, " 2"]  # |W|^2 + slack_1^2 = K E_W, |H|^2 + slack_2^2 = N E_H
    b: Float[Array, " K"]  # bias; zeros where the problem has none


@pytree_dataclass
class NormConstrained(Model):
    """|W|^2 <= K E_W, |H|^2 <= N E_H and Z = W H + b 1', with the penalty lam_b |b|^2; `norm_constrained`.

    Each factor with its slack lies on a sphere. The slack has no part in the logits, so a critical point has
    slack zero or multiplier zero, and the curvature along a slack is the multiplier: at a second-order point
    it is not negative.
    """

    E_W: Any = 1.0
    E_H: Any = 1.0

    name = "norm_constrained"
    variables: ClassVar[type[Any]] = Bounded
    isotropic = True
    curved = True
    constrained = True
    beside = 0

    def fitted(self, K: int, d: int) -> NormConstrained:
        """With bounds above zero."""
        return norm_constrained(E_W=self.E_W, E_H=self.E_H)

    def shapes(self, prob: Sizes) -> dict[str, tuple[int, ...]]:
        """W (K, d), H (d, columns), slack (2,), b (K,)."""
        return {"W": (prob.K, prob.d), "H": (prob.d, prob.columns), "slack": (2,), "b": (prob.K,)}

    def logits(self, prob: Sizes, params: Bounded) -> Float[Array, "K N"]:
        """W H + b 1'."""
        W, H, _, b = self.onto(prob, params)
        Z = W @ H
        return Z + b[:, None] if prob.bias else Z

    def penalty(self, prob: Sizes, params: Bounded) -> Float[Array, ""]:
        """lam_b |b|^2."""
        return jnp.asarray(prob.lam_b * jnp.sum(params.b**2) if prob.bias else 0.0)

    def effective(self, prob: Sizes, params: Bounded) -> Params:
        """The factors and the bias."""
        W, H, _, b = self.onto(prob, params)
        return Params(W, H, b)

    def products(self, u: Bounded, v: Bounded) -> Any:
        """Of each factor with its slack."""
        W = (u.W * v.W).sum() + u.slack[0] * v.slack[0]
        H = (u.H * v.H).sum() + u.slack[1] * v.slack[1]
        xp = np if isinstance(u.slack, np.ndarray) else jnp
        return Bounded(W, H, xp.stack([W, H]), None)  # type: ignore[arg-type]

    def radii(self, prob: Sizes) -> Any:
        """sqrt(K E_W) and sqrt(N E_H).

        Raises:
            ValueError: columns that stand for several samples each.
        """
        if prob.samples is not None:
            raise ValueError(
                f"samples: expected one column for each sample with model={self!r}, got columns that stand "
                "for several; use a problem without samples"
            )
        W, H = (prob.K * self.E_W) ** 0.5, (prob.columns * self.E_H) ** 0.5
        return Bounded(W, H, jnp.stack([jnp.asarray(W), jnp.asarray(H)]), 1.0)  # type: ignore[arg-type]

    def stretch(self, prob: Sizes) -> Any:
        """To the unit sphere."""
        W, H, both, _ = self.radii(prob)
        return Bounded(1 / W, 1 / H, 1 / both, 1.0)  # type: ignore[arg-type]

    def within(self, params: Bounded, Q: Float[Array, "d m"]) -> Bounded:
        """Q'H, with what it loses of the norm in the slack."""
        W, H, (left_W, left_H), b = params
        inside = Q.T @ H
        lost = jnp.maximum(jnp.sum(H**2) - jnp.sum(inside**2), 0.0)
        lost = jnp.where(lost > 1e-13 * jnp.sum(H**2), lost, 0.0)  # the root of a rounding would be no zero
        left_H = jnp.where(lost > 0, jnp.hypot(left_H, jnp.sqrt(lost)), left_H)
        return Bounded(W @ Q, inside, jnp.stack([left_W, left_H]), b)

    def given(self) -> tuple[str, ...]:
        """All but the slack."""
        return "W", "H", "b"

    def ambient(self, prob: Sizes, params: Bounded, G: Float[Array, "K N"]) -> Bounded:
        """G H', W'G, 0 and G 1."""
        b = jnp.sum(G, axis=1) if prob.bias else jnp.zeros_like(params.b)
        return Bounded(G @ params.H.T, params.W.T @ G, jnp.zeros_like(params.slack), b)

    def stiffness(self, prob: Any) -> Any:
        """1/sqrt(K N), of the size of |G|_op at the origin."""
        return (prob.K * prob.N) ** -0.5

    def codimension(self, prob: Sizes) -> int:
        """One for each factor."""
        return 2

    def nearest(self, prob: Sizes, params: Bounded) -> Bounded:
        """Factors within their bounds stay as they are, with the slack that belongs to them."""
        radii = [float(r) for r in self.radii(prob)[:2]]
        sizes = [float(square) ** 0.5 for square in self.products(params, params)[:2]]
        if all(abs(size / r - 1) <= 1e-13 for size, r in zip(sizes, radii, strict=True)):
            return params
        W, W_left = _inside(params.W, radii[0], float(params.slack[0]))
        H, H_left = _inside(params.H, radii[1], float(params.slack[1]))
        return Bounded(W, H, np.array([W_left, H_left], W.dtype), params.b)  # type: ignore[arg-type]

    def tangents(self, params: Bounded) -> Float[np.ndarray, "unknowns size"]:
        """The complements of (W, slack_1) and (H, slack_2), and I for b."""
        W, H, slack, b = (np.asarray(x) for x in params)
        on_W = complement(np.append(W, slack[0]))
        on_H = complement(np.append(H, slack[1]))
        m, n = W.size, H.size
        order = np.r_[:m, m + 1 : m + 1 + n, m, m + 1 + n]  # both slacks stand behind H
        return diagonal(diagonal(on_W, on_H)[order], np.eye(b.size))

    def __repr__(self) -> str:
        shown = [f"{float(x):g}" if np.ndim(x) == 0 and np.isreal(x) else "..." for x in (self.E_W, self.E_H)]
        return f"norm_constrained(E_W={shown[0]}, E_H={shown[1]})"


def _inside(x: Any, radius: float, slack: float) -> tuple[Any, float]:
    """The nearest matrix of at most that norm, and the slack up to its sign."""
    size = float(np.linalg.norm(x))
    if size >= radius:
        return x * (radius / size), 0.0
    return x, float(np.copysign(np.sqrt(radius**2 - size**2), slack))


def norm_constrained(*, E_W: Any = 1.0, E_H: Any = 1.0) -> NormConstrained:
    """The layer-peeled model: |W|^2 <= K E_W and |H|^2 <= N E_H in place of the penalties of W and H.

        f(W, H, b) = (1/N) sum_j L(W h_j + b, y_j) + lam_b/2 |b|^2

    Its variables are W, H, b and a slack for each bound. The problem's lam_W and lam_H have no part in it;
    `theory.equivalent_penalties` gives those of the same minimiser, and `landscape.multipliers` measures them
    at a point. A start beyond a bound is scaled to it, and the solution says so.

    Args:
        E_W, E_H: numbers > 0, the mean squares of the rows of W and of the features at most.  They are
            leaves: new values compile nothing.

    Raises:
        ValueError: a bound <= 0.

    Source: docs/theory.md, section 6.5; Fang et al. 2021.

    >>> import ufm
    >>> prob = ufm.Problem.balanced("ce", K=4, d=6, n=3, model=ufm.models.norm_constrained(E_W=2.0, E_H=1.0))
    >>> sol = ufm.solve(prob)
    >>> sol.converged, abs(float(sol.objective) - ufm.theory.global_optimum(prob).objective) < 1e-12
    (True, True)
    """
    return NormConstrained(_checks.real("E_W", E_W, above=0.0), _checks.real("E_H", E_H, above=0.0))
