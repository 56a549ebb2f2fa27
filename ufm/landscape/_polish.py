"""From near a critical point, saddle or degenerate, to the point itself: Newton on the gradient.

The Hessian of equation (7) is singular at every critical point but the origin (rotations of the features, a
free shift of the bias, sometimes whole manifolds of critical points), so the step is the one of least norm,

    step = -H (H^2 + mu^2)^{-1} grad,

with mu far below every eigenvalue that matters. The work is done on the class means (or on the clusters of
features that coincide) and in at most K feature directions: its cost does not depend on n or d.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import LinearOperator, minres

from ufm import _checks
from ufm._precision import in_float64
from ufm._problem import Params, Problem, Variables
from ufm.hessian.certificate import _as_leaves
from ufm.hessian.structure import Structure, _derivatives, decompose

#: features of a class closer than this, relative to the largest, are polished as one: a start need not be
#: critical to more than its square root of rounding
CLUSTER = 1e-6
#: directions smaller than this, relative to the largest, are none
NEGLIGIBLE = 1e-9
#: unknowns up to which the Newton matrix is diagonalised at once; beyond, MINRES comes first (K=10: 10
#: against 20 ms a step, and seconds where a threaded LAPACK meets busy cores)
SMALL = 100
#: unknowns up to which it is diagonalised at all (1500: 1 s on one core)
DENSE = 1500
#: mu over the largest eigenvalue, tried in this order until the gradient falls
DAMPING = (1e-11, 1e-8, 1e-6, 1e-4, 1e-2, 1.0)


class Polished(NamedTuple):
    """A critical point to rounding, or how close Newton came."""

    params: Params
    grad_norm: float  # |grad f| over W, H and b
    steps: int
    converged: bool  # grad_norm <= max(tol, floor)
    floor: float  # what rounding leaves of a gradient whose parts cancel
    message: str  # cause and remedy where it did not converge

    def __repr__(self) -> str:
        state = "converged" if self.converged else self.message
        return f"Polished: |grad f| = {self.grad_norm:.1e} after {self.steps} Newton steps, {state}"


@in_float64
def polish(prob: Problem, params: Variables, *, tol: float = 1e-12, max_steps: int = 100) -> Polished:
    """The critical point nearest in Newton's sense, saddles and degenerate ones included.

    For convex losses the features of a class are replaced by their mean, which is where they are at every
    critical point (h -> L(W h + b, k) + lam_H/2 |h|^2 is strictly convex); for others those that coincide to
    1e-6 are kept together.  The rank is cut to min(K, d): W and H have the same row and column space there.

    Args:
        params: W (K, d), H (d, N), b (K,), near a critical point (|grad f| of 1e-3 of its parts will do).
        tol: the |grad f| asked for; where rounding allows less, that is taken.
        max_steps: of Newton; a regular point takes 2 to 6, a degenerate one halves its distance each step.

    Returns: `Polished`; not converged is said in `.converged` and `.message`, never raised.

    Raises:
        ValueError: params of a wrong shape, an integer dtype or a value that is not finite; tol <= 0.

    >>> import jax, ufm
    >>> prob = ufm.Problem.balanced("ce", K=4, d=6, n=2, lam_W=0.01, lam_H=0.02)
    >>> near = jax.tree.map(lambda x: x + 1e-3, ufm.theory.global_optimum(prob).params)
    >>> ufm.landscape.polish(prob, near).converged
    True
    """
    prob.need_free_factors("polishing")
    params = prob.check_params(params)
    prob = _as_leaves(prob)
    tol = float(_checks.real("tol", tol, above=0.0))
    max_steps = _checks.integer("max_steps", max_steps, least=1)
    with np.errstate(over="ignore", invalid="ignore"):  # a start may overflow: its norm says so
        at, steps = _newton(_start(prob, params), tol, max_steps)
        clean = at.trimmed() if np.isfinite(at.norm) else at
    at = clean if clean.norm <= max(at.norm, tol) else at
    done = at.norm <= max(tol, at.floor) and at.at.finite
    why = f"|grad f| = {at.norm:.1e} falls no further: start nearer to the point, or raise max_steps"
    if not np.isfinite(at.norm):
        why = "not finite: the start is too far from any critical point"
    elif not at.at.finite:
        why = f"the Hessian is not finite: {prob.loss!r} has no second derivative here; start somewhere else"
    return Polished(at.params(), at.norm, steps, bool(done), at.floor, "" if done else why)


@dataclasses.dataclass(frozen=True)
class _Point:
    """A structured point, its bias and its gradient in the coordinates of `Structure.core`."""

    at: Structure
    b: np.ndarray  # (K,)
    gradient: np.ndarray  # (core_size,)
    floor: float

    @property
    def norm(self) -> float:
        """|grad f| in W, H, b: clusters move in units of sqrt(m), so this is the full one."""
        return float(np.linalg.norm(self.gradient))

    def params(self) -> Params:
        at, b = self.at, self.b
        if at.prob.shift_is_free:
            b = b - b.mean()  # the shift is free: the bias of least norm
        return Params(jnp.asarray(at.W @ at.Q.T), jnp.asarray(at.Q @ at.h[at.cluster].T), jnp.asarray(b))

    def moved(self, step: np.ndarray) -> _Point:
        """After a step in the core's coordinates."""
        at = self.at
        K, r, M = at.prob.K, at.r, at.M
        dW, dh = step[: K * r].reshape(K, r), step[-M * r or len(step) :].reshape(M, r)
        db = step[K * r : K * r + K] if at.prob.bias else 0.0
        h = at.h + dh / np.sqrt(at.sizes)[:, None]
        return _point(at.prob, at.Q, at.W + dW, h, self.b + db, at.sizes, at.cluster)

    def trimmed(self) -> _Point:
        """Without the directions that have become negligible."""
        at = self.at
        turn = _directions(at.prob, at.W, at.h, at.sizes)
        return _point(at.prob, at.Q @ turn, at.W @ turn, at.h @ turn, self.b, at.sizes, at.cluster)


def _point(
    prob: Problem,
    Q: np.ndarray,
    W: np.ndarray,
    h: np.ndarray,
    b: np.ndarray,
    sizes: np.ndarray,
    cluster: np.ndarray,
) -> _Point:
    labels = np.empty(len(sizes), np.asarray(prob.labels).dtype)
    labels[cluster] = np.asarray(prob.labels)
    Z = h @ W.T + (b if prob.bias else 0.0)
    G, A = (np.asarray(x) for x in _derivatives(prob, jnp.asarray(Z), jnp.asarray(labels)))
    at = Structure(prob, Q, W, h, sizes, cluster, G, A, 0.0)
    parts = [(sizes[:, None] * G).T @ h, at.lam_W * W]
    on_h = [G @ W, at.lam_H * h]
    flat = [(parts[0] + parts[1]).ravel()]
    if prob.bias:
        parts += [sizes @ np.abs(G), float(prob.lam_b) * b]
        flat.append(sizes @ G + parts[-1])
    root = np.sqrt(sizes)[:, None]
    flat.append((root * (on_h[0] + on_h[1])).ravel())
    scale = sum(np.linalg.norm(x) for x in (*parts, root * on_h[0], root * on_h[1]))
    return _Point(at, b, np.concatenate(flat), 8 * np.finfo(float).eps * float(scale))


def _start(prob: Problem, params: Params) -> _Point:
    """Class means or clusters, in the at most min(K, d) largest directions."""
    W, H, b = (np.asarray(x, np.float64) for x in params)
    labels = np.asarray(prob.labels).astype(np.int64)
    cluster = labels if prob.collapses else decompose(prob, params, CLUSTER).cluster
    sizes = np.bincount(cluster)
    order = np.argsort(cluster, kind="stable")
    h = np.add.reduceat(H.T[order], np.cumsum(sizes) - sizes, axis=0) / sizes[:, None]
    Q = _directions(prob, W, h, sizes)
    return _point(prob, Q, W @ Q, h @ Q, b if prob.bias else np.zeros_like(b), sizes, cluster)


def _directions(prob: Problem, W: np.ndarray, h: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(d, r): orthonormal, the directions that the rows of W and h fill, at most K of them."""
    up = (float(prob.lam_W) / float(prob.lam_H)) ** 0.25  # both blocks in units in which they are equal
    rows = np.concatenate([up * W, np.sqrt(sizes)[:, None] * h / up])
    if min(rows.shape) == 0:
        return np.zeros((W.shape[1], 0))
    _, s, Vt = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(Vt[: min(prob.K, int((s > max(NEGLIGIBLE * s[0], 1e-150)).sum()))].T)


def _newton(point: _Point, tol: float, max_steps: int) -> tuple[_Point, int]:
    """Steps until the gradient is at its floor; within `tol` only steps that still halve it count."""
    for count in range(max_steps):
        # a step more costs nothing where the problem is small
        enough = point.floor / 8 if len(point.gradient) <= SMALL else point.floor
        if not (np.isfinite(point.norm) and point.at.finite) or point.norm <= enough:
            return point, count
        fall = 0.5 if point.norm <= tol else 0.999
        best = point
        for step in _steps(point):
            trial = point.moved(step)
            if trial.norm < best.norm:
                best = trial
            if best.norm <= 0.5 * point.norm:
                break
        if not best.norm <= fall * point.norm:
            return (best if best.norm < point.norm else point), count + 1
        point = best
    return point, max_steps


def _steps(point: _Point) -> Iterator[np.ndarray]:
    """Steps of least norm, the boldest first."""
    g = point.gradient
    if len(g) > SMALL:
        # MINRES stays in the range of a singular H, so it finds the step of least norm by itself
        operator: Any = LinearOperator((len(g), len(g)), matvec=_product(point), dtype=np.float64)
        yield -minres(operator, g, rtol=1e-7, maxiter=1000)[0]
    if len(g) <= DENSE:
        values, vectors = np.linalg.eigh(point.at.core())
        seen, top = vectors.T @ g, float(np.abs(values).max(initial=0.0))
        for damping in DAMPING:
            yield -vectors @ (values / (values**2 + (damping * top) ** 2 + 1e-300) * seen)


def _product(point: _Point) -> Callable[[np.ndarray], np.ndarray]:
    """x -> core x, without the matrix."""
    at = point.at
    K, r, M = at.prob.K, at.r, at.M
    root, lam_b = np.sqrt(at.sizes)[:, None], float(at.prob.lam_b)
    head = K * r + (K if at.prob.bias else 0)

    def product(x: np.ndarray) -> np.ndarray:
        dW, dh = x[: K * r].reshape(K, r), x[head:].reshape(M, r) / root
        db = x[K * r : head] if at.prob.bias else 0.0
        R = np.einsum("mkl,ml->mk", at.A, at.h @ dW.T + dh @ at.W.T + db)
        on_W = (at.sizes[:, None] * R).T @ at.h + (at.sizes[:, None] * at.G).T @ dh + at.lam_W * dW
        on_h = root * (R @ at.W + at.G @ dW + at.lam_H * dh)
        on_b = [at.sizes @ R + lam_b * db] if at.prob.bias else []
        return np.concatenate([on_W.ravel(), *on_b, on_h.ravel()])

    return product
