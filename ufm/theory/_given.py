"""The optimum for any given W, a convex smooth loss, any counts and every bias: Newton's method.

Features of a class coincide and lie in the row space of W = U S V': h_k = V x_k, with A = U S

    f = sum_k n_k/N [L(A x_k + b, k) + N lam_H/2 |x_k|^2] + lam_b/2 |b|^2,

strongly convex in the x_k, which couple through b alone. Newton's step eliminates them: with L' and L'' at
class k, H_k = A'L''A + N lam_H I and C_k = L''A, the step of b solves

    (sum_k n_k/N (L'' - C_k H_k^-1 C_k') + lam_b I) db = -(sum_k n_k/N (L' - C_k H_k^-1 g_k) + lam_b b),

g_k = A'L' + N lam_H x_k. For squared error it is the whole way, h_k = (W'D_k W + N lam_H/2)^-1 W'D_k (beta
e_k - b) with D_k = diag(1, .., kappa, .., 1). The value is certified by strong convexity and Fenchel's dual.

Source: docs/theory.md, section 6.1.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ufm import _compile
from ufm.losses import Loss
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm


class Given(NamedTuple):
    """The minimiser and its value."""

    value: float
    trivial: float  # at H = 0, with the best bias
    means: Float[np.ndarray, "d K"]
    b: Float[np.ndarray, " K"]


def minimum(s: Setting, counts: np.ndarray, W: Float[np.ndarray, "K d"]) -> Given:
    """The global minimum for a loss that is convex and smooth.

    Raises:
        NoClosedForm: the loss is neither; the bias runs away, because the infimum is not attained.
    """
    if not (s.loss.convex and s.loss.smooth):
        raise NoClosedForm(f"loss: expected a convex and smooth loss, got {s.loss!r}; ufm.solve takes any")
    U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
    r = max(1, int((sigma > 1e-14 * sigma.max(initial=0.0)).sum()))
    x, b, value = _newton(s, counts / s.N, U[:, :r] * sigma[:r])
    _, _, trivial = _newton(s, counts / s.N, np.zeros((s.K, 1)))
    return Given(value, trivial, Vt[:r].T @ x.T, b)


def _jets(loss: Loss, Z: Array) -> tuple[Array, Array, Array]:
    """Value (K,), gradient (K, K) and Hessian (K, K, K) of row k as the logits of class k."""
    k = jnp.arange(len(Z))
    return jax.vmap(loss)(Z, k), jax.vmap(jax.grad(loss))(Z, k), jax.vmap(jax.hessian(loss))(Z, k)


_derivatives = _compile.jit(_jets, options=_compile.INSTANT)


class _Point(NamedTuple):
    x: np.ndarray  # (K, r)
    b: np.ndarray  # (K,)
    value: float
    slope: tuple[np.ndarray, np.ndarray]  # in x and b
    bend: np.ndarray  # (K, K, K)

    @property
    def size(self) -> float:
        """|grad f|."""
        return float(np.hypot(np.linalg.norm(self.slope[0]), np.linalg.norm(self.slope[1])))


def _at(s: Setting, share: np.ndarray, A: np.ndarray, x: np.ndarray, b: np.ndarray) -> _Point:
    loss, gradient, bend = map(np.asarray, _derivatives(s.loss, jnp.asarray(x @ A.T + b)))
    ridge = s.N * s.lam_H
    value = share @ (loss + ridge / 2 * np.sum(x**2, axis=1)) + s.lam_b / 2 * b @ b
    of_x = share[:, None] * (gradient @ A + ridge * x)
    of_b = share @ gradient + s.lam_b * b if s.bias else np.zeros(s.K)
    return _Point(x, b, float(value), (of_x, of_b), bend)


def _newton(s: Setting, share: np.ndarray, A: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    p = _at(s, share, A, np.zeros((s.K, A.shape[1])), np.zeros(s.K))
    for _ in range(200):
        if p.size <= 1e-15 * (1 + abs(p.value)):
            break
        dx, db = _step(s, share, A, p)
        for scale in 0.5 ** np.arange(30):
            new = _at(s, share, A, p.x + scale * dx, p.b + scale * db)
            # near rounding the value no longer tells a good step: there the gradient does
            if new.value < p.value - 1e-14 * (1 + abs(p.value)) or new.size < p.size / 2:
                p = new
                break
        else:
            break
    if not p.size <= 1e-9 * (1 + abs(p.value)):
        raise NoClosedForm(
            f"loss: Newton's method for {s.loss!r} stops at |gradient| = {p.size:.1e}; its infimum may not "
            "be attained (try lam_b > 0); ufm.solve and ufm.landscape.certificate take it"
        )
    return p.x, p.b - (p.b.mean() if s.loss.shift_invariant else 0.0), p.value


def _step(s: Setting, share: np.ndarray, A: np.ndarray, p: _Point) -> tuple[np.ndarray, np.ndarray]:
    """Newton's step in x and b; of least norm where a common shift of the bias changes nothing."""
    C = p.bend @ A  # (K, K, r)
    H = np.swapaxes(C, 1, 2) @ A + s.N * s.lam_H * np.eye(A.shape[1])
    g = p.slope[0] / share[:, None]
    alone = np.linalg.solve(H, g[:, :, None])[:, :, 0]
    if not s.bias:
        return -alone, np.zeros(s.K)
    across = np.linalg.solve(H, np.swapaxes(C, 1, 2))  # (K, r, K)
    curvature = np.einsum("k,kij->ij", share, p.bend - C @ across) + s.lam_b * np.eye(s.K)
    slope = p.slope[1] - np.einsum("k,kir,kr->i", share, C, alone)
    db = -np.linalg.lstsq(curvature, slope, rcond=1e-13)[0]
    return -alone - across @ db, db
