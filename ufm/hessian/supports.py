"""The dual bound where H >= 0, with the norm of the dual point found by looking at all supports of h."""

from __future__ import annotations

import math

import numpy as np

from ufm import _compile
from ufm._problem import Params, Problem
from ufm.hessian import dual
from ufm.theory import _copositive

_evaluated, _starts, _gap_at = (
    _compile.jit(f, options=_compile.INSTANT) for f in (dual.evaluate, dual.dual_starts, dual.gap_at)
)


def gap(prob: Problem, params: Params) -> float:
    """f - D at the best dual point, scaled by max |Y h| over h >= 0, |h| = 1; infinite beyond 12 classes."""
    if prob.K > _copositive.ENUMERATED:
        return math.inf
    point = _evaluated(prob, params)
    gaps = [math.inf]
    for U in np.asarray(_starts(prob, point)):
        Y = (np.sqrt(np.asarray(point.counts))[:, None] * U / prob.N).T
        scale = min(1.0, float(prob.lam) / max(_copositive.largest(Y)[0], 1e-300))
        gaps.append(float(_gap_at(prob, point, scale * U)))
    return float(np.nanmin(gaps))
