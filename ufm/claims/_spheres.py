"""The statements about fixed norms: unit vectors, bounded factors, features on a sphere."""

from __future__ import annotations

import numpy as np

from ufm import theory
from ufm.claims._measures import COARSEST, Facts, class_logits, etf, tol_gradient, within_class
from ufm.claims._rows import Row
from ufm.hessian.multipliers import multipliers
from ufm.hessian.spectrum import eigenvalues
from ufm.models import NormConstrained
from ufm.theory import NoClosedForm

#: a Hessian up to this size is diagonalised for the comparison with the closed form
DENSE = 800

# --- what they assume -----------------------------------------------------------------------------


def resolved(f: Facts) -> str:
    """Why the structure of the optimum is not known, or not fixed by a gradient of this size."""
    if f.optimum is None:
        return f.no_optimum
    if f.optimum.proved == "upper bound":
        return f"f* is only known to be at most {f.optimum.objective:.15g}: {f.optimum.structure}"
    if _distance(f) <= COARSEST:
        return ""
    return (
        f"a flat landscape: |grad f| = {f.grad_norm:.1e} fixes the vectors to {_distance(f):.1e} of their "
        "norm only; solve with a smaller tol"
    )


def simplex(f: Facts) -> str:
    """Why W need not be a simplex ETF."""
    if "W" not in f.prob.model.variables._fields:
        return "the classifier is given"
    return resolved(f) or ("" if "simplex ETF" in f.best.structure else f"the optimum: {f.best.structure}")


def aligned(f: Facts) -> str:
    """Why features need not point along the rows of W."""
    if resolved(f):
        return resolved(f)
    unequal = f.prob.n is None and "W" in f.prob.model.variables._fields
    tilted = any(word in f.best.structure for word in ("degrees", "tilted"))
    return f"the optimum: {f.best.structure}" if unequal or tilted else ""


def closed_spectrum(f: Facts) -> str:
    """Why the spectrum is not compared."""
    try:
        theory.hessian_spectrum(f.prob)
    except NoClosedForm as reason:
        return str(reason)
    if f.prob.size > DENSE:
        return f"{f.prob.size} unknowns: ufm.landscape.eigenvalues has either end of the spectrum"
    return resolved(f)


def bounded(f: Facts) -> str:
    """Why there are no penalties that amount to the same."""
    if isinstance(f.prob.model, NormConstrained):
        return resolved(f)
    return f"about bounds of |W| and |H|, not the model {f.prob.model!r}"


# --- what they measure ----------------------------------------------------------------------------


def norms(f: Facts) -> float:
    """The largest relative deviation of a norm from its radius."""
    model, params = f.prob.model, f.sol.params
    pairs = zip(model.products(params, params), model.radii(f.prob), strict=True)
    ratios = [np.sqrt(square) / np.asarray(r) for square, r in pairs if square is not None]
    return max(float(np.abs(ratio - 1).max()) for ratio in ratios)


def alignment(f: Facts) -> float:
    """h_j against the row of its class, both of norm one."""
    rows = f.W / np.linalg.norm(f.W, axis=1, keepdims=True)
    features = f.H / np.linalg.norm(f.H, axis=0)
    return float(np.linalg.norm(features - rows.T[:, np.asarray(f.prob.labels)], axis=0).max())


def spectrum(f: Facts) -> float:
    """Eigenvalues against the closed form, relative to the largest."""
    expected = theory.hessian_spectrum(f.prob).expand()
    found = eigenvalues(f.prob, f.sol.params, which="all").expand()
    return float(np.abs(found - expected).max() / expected.max())


def penalties(f: Facts) -> float:
    """The multipliers against the equivalent penalties, relative to the larger one."""
    lam_W, lam_H, *_ = theory.equivalent_penalties(f.prob)
    found = multipliers(f.prob, f.sol.params)
    error = max(abs(float(found.W) - lam_W), abs(float(found.H) - lam_H))
    return error / max(lam_W, lam_H) if max(lam_W, lam_H) > 0 else error


# --- how exact it must be -------------------------------------------------------------------------


def rounding(f: Facts) -> float:
    return f.objective_accuracy


def structure(f: Facts) -> float:
    return float(np.clip(10 * _distance(f), f.structure_accuracy, 10 * COARSEST))


def _distance(f: Facts) -> float:
    """How far the nearest minimiser may be, relative to a vector: |grad f| over the smallest curvature.

    Where the spectrum has no closed form, that is taken as a hundredth of the smallest multiplier.
    """
    try:
        curvature = theory.hessian_spectrum(f.prob).smallest_positive
    except NoClosedForm:
        found = [np.abs(x).min() for x in multipliers(f.prob, f.sol.params) if x is not None]
        curvature = 1e-2 * max(float(min(found)), 1e-300)
    size = min(float(np.linalg.norm(f.W, axis=1).mean()), float(np.linalg.norm(f.H, axis=0).mean()), 1.0)
    return min(f.grad_norm, tol_gradient(f)) / curvature / size


# --- the rows ---------------------------------------------------------------------------------------

#: What holds at the optimum where norms are fixed (docs/theory.md, sections 6.3 and 6.5).
SPHERES = (
    Row("fixed_norms", "every fixed norm is its radius", norms, rounding),
    Row(
        "riemannian_gradient",
        "the gradient on the spheres is zero",
        lambda f: f.grad_norm,
        tol_gradient,
    ),
    Row(
        "features_coincide",
        "the features of a class coincide (NC1)",
        within_class,
        structure,
        resolved,
    ),
    Row("rows_simplex", "W W' is a simplex ETF (NC2)", etf, structure, simplex),
    Row(
        "features_along_rows",
        "h_j / |h_j| = w_k / |w_k| for the class k of j (NC3)",
        alignment,
        structure,
        aligned,
    ),
    Row(
        "sphere_logits",
        "W H + b 1' is the optimum's",
        class_logits,
        structure,
        resolved,
    ),
    Row(
        "riemannian_spectrum",
        "the eigenvalues of the Riemannian Hessian are those of theory.hessian_spectrum",
        spectrum,
        structure,
        closed_spectrum,
    ),
    Row(
        "multipliers",
        "the multipliers of the bounds are the equivalent penalties",
        penalties,
        structure,
        bounded,
    ),
)
