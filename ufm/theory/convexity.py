"""Where a loss is convex in its logits: Corollary 2 in exact form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import brentq

from ufm import _checks, losses
from ufm._precision import in_float64
from ufm.losses import Loss
from ufm.losses._closed import ConvexityRegion as ConvexityRegion
from ufm.losses._closed import NoClosedForm
from ufm.losses._profile import ScalarProfile, probability
from ufm.theory.profiles import is_of_p, profile_of


@in_float64
def convexity_region(loss: str | Loss | Callable[..., Any], K: int) -> ConvexityRegion:
    """The target probability from which on the loss is convex in the logits.

    For L = h(p_k) and S(p) = -h'(p) p (1-p): the Hessian is positive semidefinite if and only if
    S'(p_k) <= 0, whatever K and the other logits, as (e_k - p)^T (diag p - pp^T)^+ (e_k - p) = (1 - p_k)/p_k.
    focal: p_min = p_infl(gamma), 0.0575 at gamma = 3. cross-entropy, label smoothing, MSE: 0.

    Raises:
        NoClosedForm: a user's loss that is neither declared convex nor a function of p_k alone.
        ValueError: a name or function that is not a loss; K < 2.

    Source: Zhou et al. 2022, Corollary 2 and Appendix D; their 0.21 is sufficient only: they drop a positive
    term and round 0.203187869980 up.
    """
    loss, K = losses.get(loss), _checks.integer("K", K, least=2)
    loss = losses.check(loss, K)
    known = loss.region()
    if known is not None:
        return known
    if loss.convex:
        return ConvexityRegion(0.0, None, "proved", f"{loss!r} is convex in the logits")
    if not is_of_p(loss, K):
        raise NoClosedForm(
            f"loss: {loss!r} is neither declared convex nor a function of the target probability alone, so "
            "where it is convex is no question of p_k"
        )
    p_min = _last_inflection(profile_of(loss, K))
    return ConvexityRegion(p_min, None, "numerical", "the last sign change of S'(p), found on a grid")


def _last_inflection(profile: ScalarProfile) -> float:
    """The probability above which l'' >= 0: log-odds from -40 to 40, where float64 ends."""
    a = np.linspace(-40.0, 40.0, 4001) + profile.odds(0.0)
    curve = np.asarray(profile.curvature(a))
    if not np.isfinite(curve).all():
        bad = float(a[int(np.argmin(np.isfinite(curve)))])
        raise NoClosedForm(
            f"loss: expected a finite second derivative at every margin, got none at {bad:.6g}"
        )
    concave = np.flatnonzero(curve < -1e-13 * np.abs(curve).max())
    if concave.size == 0:
        return 0.0
    last = int(concave[-1])
    if last == a.size - 1:
        return 1.0
    root = brentq(lambda x: float(profile.curvature(x)), a[last], a[last + 1], xtol=1e-14, rtol=1e-15)
    return probability(float(root), profile.K)
