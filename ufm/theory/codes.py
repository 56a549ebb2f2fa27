"""Structures for fewer dimensions than the simplex ETF needs: orthogonal blocks of symmetric codes."""

from __future__ import annotations

import math

import numpy as np

from ufm._precision import in_float64
from ufm._problem import Problem
from ufm.losses._base import Setting
from ufm.losses._closed import NoClosedForm
from ufm.theory import _codes, _rank_bound
from ufm.theory._codes import Blocks
from ufm.theory._setting import setting
from ufm.theory.optima import Optimum, collapsed_optimum, least_margin


@in_float64
def code_optimum(prob: Problem, structure: str) -> Optimum:
    """The critical point whose classes form orthogonal blocks of the given codes.

    Blocks i of K_i classes with unit vectors X_i, in orthogonal subspaces: Z = W H has the blocks
    a_i X_i X_i', and b is constant on each. The margins a and the bias minimise F of docs/theory.md, section
    4.5, a convex function; whether the point is a minimum of f or a saddle, `ufm.landscape.inertia` tells.

    Args:
        prob: cross-entropy or label smoothing, equal counts, any bias.
        structure: blocks that together have K classes, joined by +: "simplex 3 + polygon 5 + point". Codes:
            simplex m (m - 1 dimensions), polygon m (2), cross-polytope m (m/2), icosahedron (12 classes, 3
            dimensions), point (one class at the origin); the words pair, triangle, tetrahedron, square,
            pentagon, hexagon, heptagon, octahedron stand for a code with its size.

    Returns: an `Optimum` with `proved` = "upper bound", `lower_bound` = what no point lies below, and W, H, b
        in `.params`.

    Raises:
        ValueError: an unknown code, a number of classes that it does not have, or that do not add up to K.
        NoClosedForm: another loss or model, unequal counts; more dimensions than d.

    Source: docs/theory.md, section 4.5; symmetric criticality: Palais 1979.

    >>> import ufm
    >>> prob = ufm.Problem.balanced("ce", K=6, d=2, n=1, lam_W=0.01, lam_H=0.01)
    >>> for structure in ("hexagon", "pentagon + point"):
    ...     point = ufm.theory.code_optimum(prob, structure)
    ...     print(f"{point.objective:.12f}", int(ufm.landscape.inertia(prob, point.params).neg))
    0.450666531473 3
    0.402001189694 0
    """
    s, codes = setting(prob), _codes.parse(structure)
    classes, dimension = sum(code.size for code in codes), sum(code.dimension for code in codes)
    if classes != s.K:
        raise ValueError(
            f"structure: expected blocks with K={s.K} classes together, got {classes} in {structure!r}"
        )
    if dimension > s.d:
        raise NoClosedForm(
            f"d: {structure!r} needs d >= {dimension}, got d={s.d}; raise d or take fewer blocks"
        )
    return _record(s, _codes.minimum(s, codes))


@in_float64
def lowest_code(prob: Problem) -> Optimum:
    """The lowest point of `code_optimum` over the arrangements that fill d dimensions.

    Up to three blocks (two for K > 16) and at most one point. Nothing says that no other structure is lower:
    for K = 8, d = 3 one is known (`ufm.landscape.best_known`).

    Raises:
        NoClosedForm: as `code_optimum`; no arrangement of K classes fills d dimensions, as for d >= K.

    Source: docs/theory.md, sections 4.5 and 5.3.

    >>> import ufm
    >>> ufm.theory.lowest_code(ufm.Problem.balanced("ce", K=6, d=4, n=2)).structure
    'simplex 4 + simplex 2'
    """
    s = setting(prob)
    found = _codes.lowest(s)
    if not found:
        raise NoClosedForm(
            f"d: no arrangement of K={s.K} classes in orthogonal codes fills d={s.d} dimensions at these "
            "penalties; theory.global_optimum has the optimum for d >= K - 1"
        )
    return _record(s, found[0])


def _record(s: Setting, found: Blocks) -> Optimum:
    factors, b = found.factors, found.bias
    Z = (factors.U * factors.sigma) @ factors.V.T + b[:, None]
    few = s.d < s.K - 1
    bound = _rank_bound.of_rank(s.K, s.d, _rank_bound.slope(s)) if few else collapsed_optimum(s).objective
    return Optimum(
        objective=found.value,
        margin=least_margin(Z),
        regime="trivial" if not factors.rank else "non-trivial",
        structure=_codes.named(found.codes),
        proved="upper bound",
        theorem="symmetric criticality: the minimum over margins and bias",
        remark=f"a critical point; nothing is below {bound:.15g}, between the two nothing is proved",
        mean_eigenvalue=np.nan,
        bias=float(b.mean()),
        b=b,
        trivial=math.log(s.K),
        lower_bound=bound,
        factors=factors,
        setting=s,
    )
