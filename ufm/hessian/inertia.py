"""The inertia of the Hessian: how many eigenvalues are negative, zero and positive, exactly.

Unused directions and fluctuations are counted from their few distinct eigenvalues (`_structure`). In the
core, the blocks of the clusters are eliminated (Haynsworth 1968): In(core) = sum In(D_m) + In(S), with
S = B - sum C_m' D_m^{-1} C_m of size K r + K. Directions in which a D_m is nearly singular stay in S.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh

from ufm import _checks
from ufm._precision import in_float64
from ufm._problem import Problem, Variables
from ufm.hessian import layers
from ufm.hessian.product import check_dense, finite_dense, is_critical, norm
from ufm.hessian.structure import Structure, split, structure


class _Counts(NamedTuple):
    neg: int
    zero: int
    pos: int


class Inertia(_Counts):
    """(neg, zero, pos): adds up to `prob.size`.

    Attributes:
        symmetry: the zeros that there must be: 1 for a common shift of a free bias that the loss does not
            feel, and at a critical point r (r-1)/2 + r (d-r) for the rotations of the features.
        accidental: the other zeros.
        tolerance: what counts as zero.
        near: eigenvalues so close to the tolerance, from either side, that the count depends on it.
    """

    symmetry: int
    tolerance: float
    near: tuple[float, ...]

    def __new__(
        cls,
        neg: int,
        zero: int,
        pos: int,
        symmetry: int = 0,
        tolerance: float = 0.0,
        near: tuple[float, ...] = (),
    ) -> Inertia:
        self = super().__new__(cls, int(neg), int(zero), int(pos))
        self.symmetry, self.tolerance, self.near = int(symmetry), float(tolerance), near
        return self

    @property
    def accidental(self) -> int:
        """Zeros that no symmetry explains."""
        return self.zero - self.symmetry

    def __repr__(self) -> str:
        zeros = f"{self.symmetry} by symmetry" + (f", {self.accidental} not" if self.accidental else "")
        return f"Inertia(neg={self.neg}, zero={self.zero} ({zeros}), pos={self.pos})"


class InertiaWarning(UserWarning):
    """The count depends on the tolerance."""


@in_float64
def inertia(prob: Problem, params: Variables, *, tol: float | None = None) -> Inertia:
    """Negative, zero and positive eigenvalues of the Hessian of f in (W, H, b).

    Exact up to the decision of what is zero. At a critical point the zeros of the symmetries are counted by
    their formula and projected out first, so that the tolerance decides of no other eigenvalue than the
    accidental ones. Features within a class need not coincide, and any loss, counts and d will do. Where
    variables have bounds (`models.nonnegative`) it is the Hessian of those that are off their bounds, and the
    three numbers add up to how many these are.

    Args:
        params: a point, `Params(W, H, b)`.
        tol: eigenvalues within it count as zero.  Default: rounding of the largest eigenvalue, and what
            the distance from the critical point (|grad f|) may hide.

    Warns:
        InertiaWarning: an eigenvalue is so close to `tol` that the count depends on it.

    Raises:
        ValueError: a wrong shape, a value or a Hessian that is not finite, a negative `tol`.

    Source: Haynsworth, Linear Algebra Appl. 1 (1968); for the zeros docs/theory.md, section 4.6.

    >>> import ufm
    >>> prob = ufm.Problem.balanced(loss="ce", K=4, d=6, n=2)
    >>> inertia(prob, prob.zeros())  # the origin: d (K-1) directions of escape
    Inertia(neg=18, zero=1 (1 by symmetry), pos=57)
    """
    params = prob.check_params(params)
    critical, norm = is_critical(prob, params)
    if not prob.decomposes:
        return _of_dense(prob, params, critical, norm, tol)
    at = structure(prob, params)
    return count(at, norm if critical else None, tol)


def count(at: Structure, grad_norm: float | None, tol: float | None = None) -> Inertia:
    """The inertia at a structured point; `grad_norm` is None where it is not critical."""
    critical = grad_norm is not None
    orbit = _orbit(at, critical)
    tangent = orbit.shape[1]
    head, signs = _eliminate(at, orbit)
    fluctuations, repeats = at.inner_fluctuations()
    outer, times, still = _outer(at, critical)
    everything = np.concatenate([head, signs, fluctuations, outer])
    weights = np.concatenate([np.ones(len(head) + len(signs)), repeats, times]).astype(np.int64)
    size = float(np.hypot(np.linalg.norm(at.W), np.linalg.norm(at.h)))
    zero, tol, near = _zeros(everything, weights, grad_norm or 0.0, size, tol)
    symmetry = tangent + still
    negative = int(weights[(everything < 0) & ~zero].sum())
    zeros = symmetry + int(weights[zero].sum())
    return Inertia(negative, zeros, at.prob.size - negative - zeros, symmetry, tol, near)


def _of_dense(
    prob: Problem, params: Variables, critical: bool, grad_norm: float, tol: float | None
) -> Inertia:
    """From all eigenvalues: those of layers, else of the whole matrix, whose structure is not known."""
    parts = layers.spectrum(prob, params)
    if parts is None:
        values = np.linalg.eigvalsh(finite_dense(prob, params))
        parts = values, np.ones(len(values), np.int64)
    values, times = parts
    size = float(norm(params))
    zero, tol, near = _zeros(values, times, grad_norm if critical else 0.0, size, tol)
    negative, zeros = int(times[(values < 0) & ~zero].sum()), int(times[zero].sum())
    symmetry = min(zeros, _symmetries(prob, params, critical))
    return Inertia(negative, zeros, int(times.sum()) - negative - zeros, symmetry, tol, near)


def _symmetries(prob: Problem, params: Variables, critical: bool) -> int:
    """The dimension of the orbit under rotations (r d - r(r+1)/2 at rank r) and shifts of the bias.

    At a critical point of a deep model all factors have the same rank, and each inner dimension counts.
    """
    rotations, inner = 0, prob.model.inner(prob)
    if critical and inner:
        at = prob.model.effective(prob, params)
        rows = np.concatenate([np.asarray(at.W), np.asarray(at.H).T])
        r = int(np.linalg.matrix_rank(rows, tol=1e-10 * max(float(np.linalg.norm(rows)), 1.0)))
        rotations = sum(r * d - r * (r + 1) // 2 for d in inner)
    return rotations + int(prob.shift_is_free)


def _zeros(
    values: np.ndarray, weights: np.ndarray, grad_norm: float, size: float, tol: float | None
) -> tuple[np.ndarray, float, tuple[float, ...]]:
    """Which eigenvalues count as zero, the tolerance, and the eigenvalues near it, of which it warns.

    Args:
        grad_norm: |grad f|, or 0 where the point is not critical.  size: the norm of the variables.
    """
    if tol is None:
        tol = 1e-12 * float(np.abs(values).max(initial=0.0)) + 100 * grad_norm / max(size, 1.0)
    tol = float(_checks.real("tol", tol, least=0.0))
    close = (np.abs(values) > tol / 100) & (np.abs(values) <= 100 * tol)
    near = tuple(float(x) for x in np.sort(values[close & (weights > 0)]))
    if near:
        listed = ", ".join(f"{x:.1e}" for x in near[:5]) + (" ..." if len(near) > 5 else "")
        warnings.warn(
            f"inertia: eigenvalues {listed} are near the tolerance {tol:.1e} that makes them zero; "
            "polish the point (ufm.landscape.polish) or give tol",
            InertiaWarning,
            stacklevel=4,
        )
    return np.abs(values) <= tol, tol, near


def _orbit(at: Structure, critical: bool) -> np.ndarray:
    """The symmetries' null vectors in (W, b): W Omega for skew Omega where critical, and the shift b ~ 1."""
    K, r = at.W.shape
    i, j = np.triu_indices(r if critical else 0, 1)
    moves = np.zeros((len(i), K, r))
    index = np.arange(len(i))
    moves[index, :, i] = -at.W[:, j].T
    moves[index, :, j] += at.W[:, i].T
    flat = moves.reshape(len(i), K * r).T
    if not at.prob.bias:
        return flat
    flat = np.concatenate([flat, np.zeros((K, len(i)))])
    if not at.prob.shift_is_free:
        return flat
    shift = np.concatenate([np.zeros(K * r), np.ones(K)])
    return np.column_stack([flat, shift])


def _eliminate(at: Structure, orbit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the Schur complement off `orbit`, and those of the blocks that were eliminated.

    An eigenvalue of the complement is that of the core times 1 + |D^{-1} C x|^2 >= 1 where it is small: the
    sign is exact, and the factor is taken out again so that the tolerance means the same everywhere.
    """
    check_dense(len(orbit), "the Schur complement is of size K r + K: lower the rank or K")
    S, C = at.head(), at.couplings()
    D, V = np.linalg.eigh(at.fluctuations)
    C = np.einsum("mpq,mpx->mqx", V, C, optimize=True)
    D, C = D.ravel(), C.reshape(D.size, len(S))
    solid = np.abs(D) > 1e-3 * at.lam_H  # for a convex loss all are >= lam_H
    ratio = C[solid] / D[solid, None]
    S = S - C[solid].T @ ratio
    kept = int((~solid).sum())
    if kept:
        S = np.block([[S, C[~solid].T], [C[~solid], np.diag(D[~solid])]])
        ratio = np.concatenate([ratio, np.zeros((len(ratio), kept))], axis=1)
        orbit = np.concatenate([orbit, np.zeros((kept, orbit.shape[1]))])
    return _off_null(S, orbit, ratio), D[solid]


def _off_null(S: np.ndarray, null: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Eigenvalues of S but those of its known null vectors, the small ones over 1 + |ratio x|^2."""
    known = null.shape[1]
    if known:  # lifted to the top of the spectrum, where they are identified by count
        T = np.linalg.qr(null)[0]
        S = S + 2 * (1 + np.linalg.norm(S)) * T @ T.T
    values = np.linalg.eigvalsh(S)[: len(S) - known]
    small = 1e-3 * float(np.abs(values).max(initial=0.0))
    low, high = np.searchsorted(values, [-small, small])
    if high > low:
        _, x = eigh(S, subset_by_index=(int(low), int(high) - 1))
        values[low:high] /= 1 + np.square(ratio @ x).sum(axis=0)
    return values


def _outer(at: Structure, critical: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Eigenvalues of the unused directions, their multiplicities, and the zeros that are rotations.

    At a critical point G has the singular value lam on the active directions: those zeros are exact, and
    the other singular values are found in their complement.
    """
    values, times = at.outer()
    if not critical or at.unused == 0 or at.r == 0:
        return values, times, 0
    U = np.linalg.qr(at.W, mode="complete")[0][:, at.r :]
    reduced = np.sqrt(at.sizes)[:, None] * (at.G @ U)
    low, high = split(np.linalg.svd(reduced, compute_uv=False), at.lam_W, at.lam_H)
    sums = np.full(at.r, at.lam_W + at.lam_H)
    values = np.concatenate([low, high, sums, [at.lam_H]])
    times = np.full(len(values), at.unused)
    times[-1] *= at.prob.N - at.prob.K
    return values, times, at.unused * at.r
