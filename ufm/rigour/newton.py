"""Interval Newton for the critical points of equation (7), modulo its symmetries, in ball arithmetic.

The reduced problem. At a point whose features coincide within groups of one label, and whose joint row space
of W and column space of H has rank r, put W = A Q', h_j = Q B_m for the samples j of group m (Q'Q = I_r):

    f_r(A, B, b) = sum_m (w_m/N) L(A B_m + b, y_m) + (lam_W |A|^2 + lam_H sum_m w_m |B_m|^2 + lam_b |b|^2)/2,

w_m samples in group m. A critical point of f_r expands to one of f: f_r is f on the fixed points of a
compact group of isometries that leave f invariant (permutations within the groups; rotations that fix the
range of Q), and there the gradient of f is fixed by the group too, hence tangent to the fixed points.

The gauge. f_r is invariant under A -> A R, B -> R'B, and, for a shift-invariant loss with lam_b = 0, under
b -> b + s 1. T(x) holds a basis of the tangent space of that orbit; grad f_r(x) is orthogonal to it at
every x. With T0 near T(x0), fixed and exact, solve for x and multipliers w

    Phi(x, w) = (grad f_r(x) + T0 w, T0'(x - x0)) = 0.

At a zero, 0 = T(x)' grad f_r(x) = -T(x)' T0 w: so w = 0, and x is critical, once T(x)' T0 is proved regular.

The test. C is a floating inverse of DPhi. On the cube of radius rho around (x0, 0), in the maximum norm, if
|C Phi(x0, 0)| + |I - C DPhi(cube)| rho < rho, then v -> v - C Phi(v) maps the cube into its interior and
contracts there, and C is regular: Phi has exactly one zero in the cube (Krawczyk).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ufm.rigour import balls
from ufm.rigour.balls import Ball, BallLoss, Matrix, Vector, ball


class Reduced(NamedTuple):
    """f_r: exact data, as balls."""

    loss: BallLoss
    labels: tuple[int, ...]  # (M,) of the groups
    weights: tuple[int, ...]  # (M,) samples in each group
    K: int
    r: int
    lam_W: Ball
    lam_H: Ball
    lam_b: Ball
    bias: bool
    shift: bool  # invariant under b -> b + s 1

    @property
    def M(self) -> int:
        """Groups."""
        return len(self.labels)

    @property
    def N(self) -> int:
        """Samples."""
        return sum(self.weights)

    @property
    def size(self) -> int:
        """Unknowns: A (K, r), B (r, M) column by column, b (K,)."""
        return self.r * (self.K + self.M) + self.K * self.bias

    @property
    def gauge(self) -> int:
        """Dimension of the orbit where A and B together have rank r."""
        return self.r * (self.r - 1) // 2 + int(self.shift)

    def split(self, x: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A (K, r), B (r, M), b (K,) of unknowns x (size,)."""
        x, inner, end = np.asarray(x), self.r * self.K, self.r * (self.K + self.M)
        b = x[end:] if self.bias else np.full(self.K, x[0] * 0 if x.size else 0.0)
        return x[:inner].reshape(self.K, self.r), x[inner:end].reshape(self.M, self.r).T, b


def join(problem: Reduced, A: Any, B: Any, b: Any) -> np.ndarray:
    """Unknowns x (size,) of A, B and b."""
    parts = [np.ravel(A), np.ravel(np.asarray(B).T)]
    return np.concatenate([*parts, np.ravel(b)] if problem.bias else parts)


# --- the objective and two derivatives, in balls --------------------------------------------------


def objects(x: Vector) -> np.ndarray:
    """(size,)"""
    array = np.empty(len(x), dtype=object)
    array[:] = x
    return array


def product(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """X Y through the library's matrix product."""
    if 0 in (*X.shape, *Y.shape):
        return np.full((X.shape[0], Y.shape[1]), ball(0), dtype=object)
    return balls.table(balls.matrix(X) * balls.matrix(Y))


def _logits(A: np.ndarray, B: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(K, M)"""
    Z: np.ndarray = product(A, B) + b[:, None]
    return Z


def objective(problem: Reduced, x: Vector) -> Ball:
    """f_r(x)."""
    A, B, b = problem.split(objects(x))
    Z, zero = _logits(A, B, b), ball(0)
    groups = enumerate(zip(problem.labels, problem.weights, strict=True))
    fit = sum((w * problem.loss.value(list(Z[:, m]), k) for m, (k, w) in groups), zero) / problem.N
    size_H = sum((w * balls.squares(B[:, m]) for m, w in enumerate(problem.weights)), zero)
    penalty = problem.lam_W * balls.squares(A) + problem.lam_H * size_H + problem.lam_b * balls.squares(b)
    return fit + penalty / 2


def gradient(problem: Reduced, x: Vector) -> Vector:
    """grad f_r(x), (size,)."""
    A, B, b = problem.split(objects(x))
    G, weights = _slopes(problem, _logits(A, B, b)), np.array(problem.weights, dtype=object)
    in_A = product(G, B.T) + problem.lam_W * A
    in_B = product(A.T, G) + problem.lam_H * B * weights
    return list(join(problem, in_A, in_B, G.sum(axis=1) + problem.lam_b * b))


def _slopes(problem: Reduced, Z: np.ndarray) -> np.ndarray:
    """G (K, M): (w_m/N) grad L, summed over the samples of a group."""
    G = np.empty(Z.shape, dtype=object)
    for m, (k, w) in enumerate(zip(problem.labels, problem.weights, strict=True)):
        G[:, m] = [w * g / problem.N for g in problem.loss.gradient(list(Z[:, m]), k)]
    return G


def hessian(problem: Reduced, x: Vector) -> np.ndarray:
    """Hess f_r(x), (size, size).

    With S_m = (w_m/N) Hess L: AA sum_m S_m x B_m B_m' + lam_W, BB A'S_m A + lam_H w_m, AB S_m A x B_m + G.
    """
    K, r, M = problem.K, problem.r, problem.M
    A, B, b = problem.split(objects(x))
    Z = _logits(A, B, b)
    G, inner, end = _slopes(problem, Z), r * K, r * (K + M)
    full = np.full((problem.size, problem.size), ball(0), dtype=object)
    curves = np.empty((K, K, M), dtype=object)
    for m, (k, w) in enumerate(zip(problem.labels, problem.weights, strict=True)):
        curves[:, :, m] = np.array(problem.loss.hessian(list(Z[:, m]), k), dtype=object) * w / problem.N
        if r:
            _feature_blocks(problem, full, A, B, G, curves[:, :, m], m)
    if r:
        pairs = np.array([B[a] * B[c] for a in range(r) for c in range(r)], dtype=object)  # (r r, M)
        AA = product(curves.reshape(K * K, M), pairs.T).reshape(K, K, r, r)
        full[:inner, :inner] = AA.transpose(0, 2, 1, 3).reshape(inner, inner)
        full[range(inner), range(inner)] += problem.lam_W
    if problem.bias:
        if r:
            Ab = product(curves.reshape(K * K, M), B.T).reshape(K, K, r)
            full[:inner, end:] = Ab.transpose(0, 2, 1).reshape(inner, K)
            full[end:, :inner] = full[:inner, end:].T
        full[end:, end:] = curves.sum(axis=2)
        full[range(end, end + K), range(end, end + K)] += problem.lam_b
    return full


def _feature_blocks(
    problem: Reduced, full: np.ndarray, A: np.ndarray, B: np.ndarray, G: np.ndarray, S: np.ndarray, m: int
) -> None:
    """The rows and columns of B_m: with itself, with A and with b."""
    K, r = problem.K, problem.r
    inner, end = r * K, r * (K + problem.M)
    rows = slice(inner + m * r, inner + (m + 1) * r)
    SA = product(S, A)  # (K, r)
    full[rows, rows] = product(A.T, SA)
    full[range(rows.start, rows.stop), range(rows.start, rows.stop)] += problem.lam_H * problem.weights[m]
    cross = (SA[:, None, :] * B[None, :, m, None]).reshape(inner, r)  # (k a, c)
    for a in range(r):
        cross[a::r, a] += G[:, m]
    full[:inner, rows], full[rows, :inner] = cross, cross.T
    if problem.bias:
        full[rows, end:], full[end:, rows] = SA.T, SA


def tangents(problem: Reduced, x: Any) -> np.ndarray:
    """T(x), (size, gauge): d/dR of (A R, R'B) for each pair of dimensions, then the shift of b."""
    A, B, _ = problem.split(np.asarray(x))
    zero, columns = A.ravel()[:1].sum() * 0 if A.size else 0.0, []
    nothing = np.full(problem.K, zero)
    for a in range(problem.r):
        for c in range(a + 1, problem.r):
            dA, dB = np.full_like(A, zero), np.full_like(B, zero)
            dA[:, c], dA[:, a], dB[c], dB[a] = A[:, a], -A[:, c], B[a], -B[c]
            columns.append(join(problem, dA, dB, nothing))
    if problem.shift:
        columns.append(join(problem, np.full_like(A, zero), np.full_like(B, zero), nothing + 1.0))
    return np.stack(columns, axis=1) if columns else np.empty((problem.size, 0), dtype=A.dtype)


# --- Newton ---------------------------------------------------------------------------------------


class Polished(NamedTuple):
    """Where Newton's method ended, in balls of radius zero, with what the test needs."""

    x: Vector  # (size,)
    frame: np.ndarray  # T0 (size, gauge), floats
    inverse: np.ndarray | None  # C, floats; None where DPhi is singular in floating point
    moved: float  # distance from the start
    singular: float  # 1/condition of DPhi at x


#: DPhi counts as singular below this ratio of |1/DPhi^-1| to |DPhi|: its inverse in float64 would have no
#: correct digit left, and then no test succeeds
SINGULAR = 1e-13
#: bits that hold a float and its rounding
FLOATING = 64


def _derivative(problem: Reduced, x: Vector, frame: np.ndarray) -> np.ndarray:
    """DPhi at x, as floats."""
    t = frame.shape[1]
    with balls.flint().ctx.workprec(FLOATING):
        H = balls.middle(hessian(problem, x))
    return np.block([[H, frame], [frame.T, np.zeros((t, t))]])


def _frame(problem: Reduced, x: np.ndarray) -> np.ndarray:
    """T0: an orthonormal basis of the orbit's tangent space, in floating point."""
    T = tangents(problem, x)
    return np.linalg.qr(T)[0] if T.shape[1] else T


def polish(problem: Reduced, start: Vector, *, reach: float, steps: int = 20) -> Polished:
    """Newton's method in float64 from `start`, then with the last inverse at the working precision.

    Newton keeps to the slice through `start`, so that it does not move along the orbit. It stops where a
    step is so small that the inverse need not be renewed, and where it has left the ball of radius `reach`.
    """
    x, moved = start, 0.0
    frame = _frame(problem, balls.middle(start))
    inverse, ratio = _inverse(_derivative(problem, x, frame))
    for _ in range(steps):
        if inverse is None:
            break
        slope = np.append(balls.middle(gradient(problem, x)), np.zeros(frame.shape[1]))
        step = (inverse @ slope)[: len(x)]
        x = [(a - s).mid() for a, s in zip(x, step.tolist(), strict=True)]
        moved = float(np.linalg.norm(balls.middle([a - s for a, s in zip(x, start, strict=True)])))
        if not moved <= reach or np.linalg.norm(step) <= 1e-10 * (1 + np.linalg.norm(balls.middle(x))):
            break
        inverse, ratio = _inverse(_derivative(problem, x, frame))
    if inverse is not None and moved <= reach:
        x = _refine(problem, x, inverse, frame.shape[1])
    return Polished(x, frame, inverse, moved, ratio)


def _inverse(J: np.ndarray) -> tuple[np.ndarray | None, float]:
    """The inverse and 1/(|J| |J^-1|) in the 1-norm; no inverse below `SINGULAR`."""
    if not J.size:
        return J, 1.0
    if not np.isfinite(J).all():
        return None, 0.0
    try:
        inverse = np.linalg.inv(J)
    except np.linalg.LinAlgError:
        return None, 0.0
    ratio = 1 / float(np.linalg.norm(J, 1) * np.linalg.norm(inverse, 1))
    return (inverse if ratio > SINGULAR else None), ratio


def _refine(problem: Reduced, x: Vector, inverse: np.ndarray, gauge: int) -> Vector:
    """x - C Phi(x) at the working precision, until the step no longer shrinks."""
    if not problem.size:
        return x
    C, last = balls.matrix(inverse), None
    for _ in range(100):
        slope = [g.mid() for g in gradient(problem, x)] + [ball(0)] * gauge
        step = balls.table(C * balls.matrix(objects(slope)[:, None]))[: len(x), 0]
        size = balls.largest(step)
        if not size.is_finite() or (last is not None and not balls.below(size, last / 4)):
            break
        x, last = [(a - s).mid() for a, s in zip(x, step, strict=True)], size
    return x


class Enclosure(NamedTuple):
    """A cube around the polished point that holds one critical point modulo symmetry, or why not."""

    x: Vector  # balls of radius rho
    rho: Ball
    contraction: Ball  # |I - C DPhi| over the cube, at most
    gauge: Ball  # |I - D T(x)'T0| over the cube, at most
    why: str  # empty where the test succeeded


def enclose(problem: Reduced, at: Polished) -> Enclosure:
    """Krawczyk's test around the polished point, and the proof that the multipliers vanish."""
    inverse, zero = at.inverse, ball(0)
    if inverse is None:
        return Enclosure(at.x, zero, zero, zero, _singular(at))
    if not problem.size:
        return Enclosure(at.x, zero, zero, zero, "")
    C = balls.matrix(inverse)
    slope = objects(gradient(problem, at.x) + [zero] * problem.gauge)
    residual = balls.largest(balls.table(C * balls.matrix(slope[:, None])).ravel())
    rho = (4 * residual + ball(2) ** -balls.flint().ctx.prec).upper()  # above zero where x is exact
    cube = [balls.flint().arb(a, rho) for a in at.x]
    frame = at.frame.astype(object)
    corner = np.full((problem.gauge, problem.gauge), zero, dtype=object)
    with balls.flint().ctx.workprec(FLOATING):  # the two norms need no digits, only to be below 1
        J = balls.matrix(np.block([[hessian(problem, cube), frame], [frame.T, corner]]))
        contraction = balls.row_sums(_identity(len(slope)) - C * J)
        gauge = _gauge_defect(problem, cube, frame)
    why = _verdict(at, residual + contraction * rho < rho, gauge < 1)
    return Enclosure(cube, rho, contraction, gauge, why)


def _identity(size: int) -> Matrix:
    return balls.matrix(np.eye(size, dtype=int))


def _gauge_defect(problem: Reduced, cube: Vector, frame: np.ndarray) -> Ball:
    """|I - D T(x)'T0| for all x of the cube, D a floating inverse: below 1, T(x)'T0 is regular."""
    if not problem.gauge:
        return ball(0)
    overlap = product(tangents(problem, objects(cube)).T, frame)
    D, _ = _inverse(balls.middle(overlap))
    if D is None:
        return balls.flint().arb.pos_inf()
    return balls.row_sums(_identity(problem.gauge) - balls.matrix(D) * balls.matrix(overlap))


def _singular(at: Polished) -> str:
    return (
        "the Hessian has a zero mode that no symmetry explains (its condition number modulo symmetry is "
        f"{1 / max(at.singular, 1e-300):.1e}, in floating point): interval Newton needs an isolated point"
    )


def _verdict(at: Polished, contracts: Any, regular: Any) -> str:
    if not contracts:
        return (
            "interval Newton does not contract around the point where Newton's method ended (the condition "
            f"number of the Hessian modulo symmetry is {1 / at.singular:.1e} there)"
        )
    if not regular:
        return "the orbit's tangent space turns too far from the slice: its projection is not proved regular"
    return ""
