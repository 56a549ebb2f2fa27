"""The statements about features that are not negative: assumptions, measurements, and tolerances."""

from __future__ import annotations

import numpy as np

from ufm.claims import _measures
from ufm.claims._measures import Facts, ratio

# --- what they assume -----------------------------------------------------------------------------


def nonzero(f: Facts) -> str:
    """Why no neuron is active."""
    noise = 1e-6 + 100 * f.distance
    return "" if f.row_norm > noise else "W = 0 and H = 0 up to the solver's tolerance"


def has_bias(f: Facts) -> str:
    """Why there is no equation of the bias."""
    return "" if f.prob.bias else "the problem has no bias"


def collapses(f: Facts) -> str:
    """Why the features of a class need not coincide."""
    if not f.prob.loss.convex:
        return f"{f.prob.loss!r} is not declared convex: features of a class may differ"
    return nonzero(f)


def known(f: Facts) -> str:
    """Why the structure of the optimum is not known, or is zero."""
    if f.optimum is None:
        return f.no_optimum
    return "the global optimum is W = 0, H = 0" if f.optimum.regime == "trivial" else ""


def orthogonal(f: Facts) -> str:
    """Why the class means need not be orthogonal."""
    if known(f):
        return known(f)
    shared = abs(f.best.mean_eigenvalue) > abs(f.best.margin) * (1 + 1e-12)  # false for unequal counts
    return f"the optimum has {f.best.structure}" if shared else ""


def simplex(f: Facts) -> str:
    """Why W need not be a simplex ETF."""
    if known(f) or (f.prob.n is not None and f.best.mean_eigenvalue == 0):
        return known(f)
    return f"the optimum is no simplex ETF: {f.best.structure}"


# --- what they measure ----------------------------------------------------------------------------


def stationary_W(f: Facts) -> float:
    """|G H' + lam_W W|."""
    return float(np.linalg.norm(f.gradient.W))


def complementary(f: Facts) -> float:
    """|H - max(H - (W'G + lam_H H), 0)|."""
    return float(np.linalg.norm(f.gradient.H))


def stationary_b(f: Facts) -> float:
    """|G 1 + lam_b b|."""
    return float(np.linalg.norm(f.gradient.b))


def neuron_balance(f: Facts) -> float:
    """lam_W |W e_i|^2 against lam_H |row i of H|^2, relative to the largest neuron."""
    above = f.lam_W * np.square(f.W).sum(axis=0)
    return ratio(np.abs(above - f.lam_H * np.square(f.H).sum(axis=1)).max(), above.max())


def _means(f: Facts) -> np.ndarray:
    return np.asarray(f.prob.class_means(f.H))


def orthogonal_means(f: Facts) -> float:
    """The Gram matrix of the class means off its diagonal."""
    gram = _means(f).T @ _means(f)
    return ratio(np.linalg.norm(gram - np.diag(np.diag(gram))), np.linalg.norm(gram))


def simplex_etf(f: Facts) -> float:
    """The Gram matrices of W and of the class means less their mean, each against that of a simplex ETF."""
    K, means = f.prob.K, _means(f)
    centred = (means - means.mean(axis=1, keepdims=True)).T
    form = (np.eye(K) - 1 / K) / (K - 1) ** 0.5
    errors = []
    for rows in (f.W, centred):
        gram = rows @ rows.T
        size = float(np.linalg.norm(gram))
        errors.append(ratio(np.linalg.norm(gram - size * form), size))
    return max(errors)


def centred_duality(f: Facts) -> float:
    """W against the class means less their mean, both of norm one."""
    means = _means(f)
    centred = (means - means.mean(axis=1, keepdims=True)).T
    return float(np.linalg.norm(f.W / np.linalg.norm(f.W) - centred / np.linalg.norm(centred)))


# --- how exact it must be -------------------------------------------------------------------------


def tol_balance(f: Facts) -> float:
    """W'grad_W - grad_H H' on the diagonal is the difference: the gradient bounds it."""
    excused = min(f.grad_norm, _measures.tol_gradient(f))
    size = float(np.linalg.norm(f.W)) + float(np.linalg.norm(f.H))
    largest = f.lam_W * float(np.square(f.W).sum(axis=0).max())
    return float(np.clip(size * excused / max(largest, 1e-300), f.structure_accuracy, _measures.COARSEST))
