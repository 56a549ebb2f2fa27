"""The statements about a product of layers: what they assume, what they measure, and how exact it must be."""

from __future__ import annotations

import math
import warnings

import jax.numpy as jnp
import numpy as np

from ufm import theory
from ufm._problem import Variables
from ufm.claims._measures import COARSEST, Facts, tol_gradient
from ufm.hessian import layers
from ufm.hessian.inertia import InertiaWarning
from ufm.hessian.product import hvp

# --- what they assume -----------------------------------------------------------------------------


def several(f: Facts) -> str:
    """Why there are not several layers at a critical point."""
    if len(f.chain) < 3:
        return "one layer: the statements about two free factors apply"
    if f.grad_norm > 10 * tol_gradient(f):
        return f"no critical point: |grad f| = {f.grad_norm:.1e}"
    return ""


def nonzero(f: Facts) -> str:
    """Why there are no active directions."""
    return several(f) or ("" if _rank(f) else "all factors are zero: no active direction")


def has_null_directions(f: Facts) -> str:
    """Why no factor has a direction that both of its neighbours leave out."""
    return several(f) or ("" if _null_directions(f) else "every factor has full rank: no such direction")


def isolated(f: Facts) -> str:
    """Why the rotations need not be the only directions in which f is constant."""
    if several(f) or not f.prob.loss.shift_invariant:
        return (
            several(f) or f"about losses of differences of logits, not {f.prob.loss!r}: projectors may turn"
        )
    core = layers.spectrum(f.prob, f.sol.params)
    return "" if core is not None else "the Hessian is too large to count its eigenvalues"


# --- what they measure ----------------------------------------------------------------------------


def schatten(f: Facts) -> float:
    """The penalty of the factors against the least that their product costs."""
    penalty = sum(lam * float(np.sum(A**2)) for lam, A in f.chain) / 2
    return abs(penalty - theory.schatten_penalty(f.prob, f.W @ f.H)) / penalty


def pairs(f: Facts) -> float:
    """G V S^(1-2/q) = -lam U and U'G S^(1-2/q) = -lam V' where Z = W H = U S V', over lam."""
    q, r, lam = len(f.chain), _rank(f), _mean_penalty(f)
    Q, R = np.linalg.qr(f.H.T)
    U, S, Vt = np.linalg.svd(f.W @ R.T, full_matrices=False)
    U, S, V = U[:, :r], S[:r] ** (1 - 2 / q), Q @ Vt[:r].T
    residual = max(np.linalg.norm(f.G @ V * S + lam * U), np.linalg.norm(f.G.T @ U * S + lam * V))
    return float(residual / lam)


def null_directions(f: Facts) -> float:
    """|Hess v - lam_j v|/lam_j for one direction v of each factor that its neighbours leave out."""
    worst = 0.0
    for lam, v in _null_directions(f):
        image = hvp(f.prob, f.sol.params, v)
        off = [np.linalg.norm(np.asarray(a) - lam * np.asarray(b)) for a, b in zip(image, v, strict=True)]
        worst = max(worst, math.hypot(*off) / lam)
    return worst


def zero_modes(f: Facts) -> float:
    """How many zero eigenvalues no symmetry explains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InertiaWarning)
        return float(f.point.inertia.accidental)


def _rank(f: Facts) -> int:
    return layers.rank([A for _, A in f.chain])


def _mean_penalty(f: Facts) -> float:
    """(lam_H lam_1 ... lam_M)^(1/q)."""
    return math.exp(sum(math.log(lam) for lam, _ in f.chain) / len(f.chain))


def _null_directions(f: Facts) -> list[tuple[float, Variables]]:
    """A unit direction u v' of each factor, u outside of its range and v outside of its row space."""
    r, found = _rank(f), []
    names = ["H", *(name for name in f.sol.params._fields if name not in ("H", "b"))]
    zero = f.prob.zeros()
    for name, (lam, A) in zip(names, f.chain, strict=True):
        if min(A.shape) > r:
            U, _, Vt = np.linalg.svd(A, full_matrices=False)
            found.append((lam, zero._replace(**{name: jnp.asarray(np.outer(U[:, -1], Vt[-1]))})))
    return found


# --- how exact it must be -------------------------------------------------------------------------


def tolerance(f: Facts) -> float:
    """|grad f| over what the factors' smallest active singular value makes of it."""
    r = _rank(f)
    smallest = min(np.linalg.svd(A, compute_uv=False)[r - 1] for _, A in f.chain) if r else 1.0
    size = _mean_penalty(f) * min(float(smallest), 1.0)
    excused = min(f.grad_norm, tol_gradient(f))
    return float(np.clip(10 * excused / size, f.structure_accuracy, COARSEST))
