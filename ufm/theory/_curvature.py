"""First and second derivatives of a loss in its logits, at a point of full class symmetry."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ufm.theory._setting import NoClosedForm, Setting, number
from ufm.theory.optima import Optimum
from ufm.theory.profiles import measure, profile_of, sigmoid


class Curvature(NamedTuple):
    """Derivatives of the loss in z at (own, other, .., other), a point that S_{K-1} leaves alone.

    In the orthonormal basis e_k, f = (1 - e_k)/sqrt(K-1) the Hessian is `block`; on the rest it is `rest`.
    """

    u: float  # dL/dz_k
    v: float  # dL/dz_j
    block: np.ndarray  # (2, 2)
    rest: float
    shift_invariant: bool

    def on_ones(self, K: int) -> float:
        """1^T Hess 1/K."""
        one = np.array([1.0, math.sqrt(K - 1)])
        return 0.0 if self.shift_invariant else float(one @ self.block @ one) / K

    def margin(self, K: int) -> float:
        """B1: the curvature along the unit vector of e_k - 1/K."""
        e = np.array([math.sqrt((K - 1) / K), -math.sqrt(1 / K)])
        return float(e @ self.block @ e)

    def mean_gradient(self, K: int) -> float:
        """Eigenvalue of (1/K)[grad L(., 1) .. grad L(., K)] on 1."""
        return 0.0 if self.shift_invariant else (self.u + (K - 1) * self.v) / K


def _along_margin(K: int, slope: float, B1: float, B2: float) -> Curvature:
    """A shift-invariant loss."""
    e = np.array([math.sqrt((K - 1) / K), -math.sqrt(1 / K)])
    return Curvature(slope, -slope / (K - 1), B1 * np.outer(e, e), B2, True)


def _of_p(s: Setting, opt: Optimum) -> Curvature:
    """Functions of the target probability: the slope in the margin, spread over K-1 classes, is B2."""
    profile, K = profile_of(s.loss, s.K), s.K
    slope, second = float(profile.slope(opt.margin)), float(profile.curvature(opt.margin))
    return _along_margin(K, slope, second * K / (K - 1), -slope / (K - 1))


def _ls(s: Setting, opt: Optimum) -> Curvature:
    curve = _of_p(s, opt)
    return curve._replace(rest=float(sigmoid(math.log(s.K - 1) - opt.margin)) / (s.K - 1))


def _mse(s: Setting, opt: Optimum) -> Curvature:
    loss: Any = s.loss
    kappa, beta = number("kappa", loss.kappa), number("beta", loss.beta)
    other = (opt.mean_eigenvalue - opt.margin) / s.K + opt.bias
    u = 2 * kappa * (other + opt.margin - beta)
    return Curvature(u, 2 * other, np.diag([2 * kappa, 2.0]), 2.0, False)


def _by_autodiff(s: Setting, opt: Optimum) -> Curvature:
    K, own = s.K, jnp.arange(s.K) == 0
    z = jnp.where(own, opt.margin, 0.0) + (opt.mean_eigenvalue - opt.margin) / K + opt.bias

    def second(x: Any, y: Any) -> float:
        slope = jax.grad(lambda z: s.loss(z, 0))
        return float(jax.jvp(slope, (z,), (jnp.asarray(x),))[1] @ jnp.asarray(y))

    gradient = np.asarray(jax.grad(lambda z: s.loss(z, 0))(z))
    e, f = np.eye(K)[0], (1 - np.eye(K)[0]) / math.sqrt(K - 1)
    block = np.array([[second(e, e), second(e, f)], [second(f, e), second(f, f)]])
    pair = (np.eye(K)[1] - np.eye(K)[-1]) / math.sqrt(2)
    rest = second(pair, pair) if K > 2 else 0.0
    return Curvature(float(gradient[0]), float(gradient[-1]), block, rest, measure(s.loss, K).shift_invariant)


#: By the name of the loss; a user's loss by autodiff.
CURVATURES: dict[str, Callable[[Setting, Optimum], Curvature]] = {
    "ce": _of_p,
    "ls": _ls,
    "fl": _of_p,
    "mse": _mse,
}


def curvature(s: Setting, opt: Optimum) -> Curvature:
    """Derivatives of the loss at the logits of the optimum.

    Raises:
        NoClosedForm: one of them is not finite.
    """
    found = CURVATURES.get(s.loss.name, _by_autodiff)(s, opt)
    if not np.isfinite([found.u, found.v, found.rest, *found.block.ravel()]).all():
        raise NoClosedForm(
            f"loss: {s.loss!r} has no finite second derivative at the optimum ({opt.structure}, margin "
            f"{opt.margin:.6g}), so the Hessian has no spectrum there"
        )
    return found
