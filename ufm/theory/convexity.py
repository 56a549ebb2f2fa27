"""Where a loss is convex in its logits: Corollary 2 in exact form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import lambertw

from ufm import _checks, losses
from ufm._precision import in_float64
from ufm.losses import Loss
from ufm.theory._setting import NoClosedForm, number
from ufm.theory.focal import p_infl
from ufm.theory.optima import Proof
from ufm.theory.profiles import ScalarProfile, is_of_p, probability, profile_of

#: Root of log p + 2 (1-p) = 0, 0.203187869980: sufficient for every gamma; the paper rounds it up to 0.21.
PAPER_FOCAL = float(-lambertw(-2 * np.exp(-2.0)).real / 2)


class ConvexityRegion(NamedTuple):
    """The loss is convex in z on {p_k >= p_min}, and for p_min > 0 on no larger set of this form."""

    p_min: float
    paper: float | None  # the paper's sufficient value, where it has one
    proved: Proof
    reason: str


@in_float64
def convexity_region(loss: str | Loss | Callable[..., Any], K: int) -> ConvexityRegion:
    """The target probability from which on the loss is convex in the logits.

    For L = h(p_k) and S(p) = -h'(p) p (1-p): the Hessian is positive semidefinite if and only if
    S'(p_k) <= 0, whatever K and the other logits, as (e_k - p)^T (diag p - pp^T)^+ (e_k - p) = (1 - p_k)/p_k.
    focal: p_min = p_infl(gamma), 0.0575 at gamma = 3. cross-entropy, label smoothing, MSE: 0.

    Raises:
        NoClosedForm: a user's loss that is neither declared convex nor a function of p_k alone.
        ValueError: a name or function that is no loss; K < 2.

    Source: Zhou et al. 2022, Corollary 2 and Appendix D; their 0.21 is sufficient only: they drop a positive
    term and round 0.203187869980 up.
    """
    loss, K = losses.get(loss), _checks.integer("K", K, least=2)
    loss = losses.check(loss, K)
    if loss.name == "fl":
        gamma = number("gamma", loss.hyperparameters["gamma"])
        reason = (
            "the inflection of the scalar profile, exact; the paper's 0.21 (0.203187869980) is sufficient"
        )
        return ConvexityRegion(p_infl(gamma), PAPER_FOCAL, "proved", reason)
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
