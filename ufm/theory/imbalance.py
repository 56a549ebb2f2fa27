"""Where structure appears as the penalties fall, with unequal counts or weights, in x = N sqrt(lam_W lam_H).

Each threshold is where a slope of the mean loss, at the minimum with that part held at zero, is lam: the
optimality condition of the block program in `theory._blocks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import brentq

from ufm._sheet import printed
from ufm.losses._base import Setting
from ufm.losses._closed import Block, Groups, Proof
from ufm.theory import _blocks
from ufm.theory._blocks import Parts, Program


@printed
class GroupThresholds(NamedTuple):
    """Thresholds in x = N sqrt(lam_W lam_H) of G groups of equal count and weight, largest count first."""

    counts: Int[np.ndarray, " G"]  # n_g
    sizes: Int[np.ndarray, " G"]  # K_g, the classes that have n_g samples each
    x_merge: Float[np.ndarray, " G"]  # at and above it the classes of a group coincide; nan: one class
    x_means: float  # at and above it the mean of every group is zero: only simplexes inside groups are left
    x_vanish: Float[np.ndarray, " G"]  # at and above it the features and the classifier of a group are zero
    x_zero: float  # at and above it W = 0 and H = 0
    x: float  # of the problem
    weights: Float[np.ndarray, " G"]  # w_g, ones without class weights
    proved: Proof  # "numerical" where x_means or x_merge are taken as the only root of their condition

    @property
    def phase(self) -> str:
        """ "I": all classes are apart.  "II": the classes of some group coincide, groups are apart.
        "III": the means of all groups are zero.  "IV": W = 0 and H = 0.
        """
        if self.x >= self.x_zero:
            return "IV"
        if self.x >= self.x_means:
            return "III"
        return "II" if np.any(self.x >= self.x_merge) else "I"

    @property
    def collapses(self) -> bool:
        """Whether the global optimum is not zero."""
        return self.x < self.x_zero


def group_thresholds(s: Setting, groups: Groups) -> GroupThresholds:
    """Of a problem whose classes form these groups.

    Raises:
        NoClosedForm: the loss has no class symmetry, is not convex or not smooth.
    """
    p = _blocks.program(s, groups)
    start = _blocks.from_zero(p, s.bias)
    at_zero, scale = _blocks.slopes(p, start), p.loss.merging(s.bias)
    zero = at_zero.largest
    if scale is None:
        merge = [_merge(p, s.bias, g, zero, at_zero) for g in range(len(groups.sizes))]
    else:
        merge = scale * groups.weights * np.sqrt(groups.counts) / s.N
    alone = scale is not None and not s.bias and not p.loss.shift_invariant  # MSE: the logits are diagonal
    means = zero if alone else _means(p, s, groups, zero, at_zero)
    apart = np.where(groups.sizes > 1, merge, np.nan)
    return GroupThresholds(
        counts=groups.counts,
        weights=groups.weights,
        sizes=groups.sizes,
        x_merge=s.N * apart,
        x_means=s.N * means,
        x_vanish=s.N * (np.asarray(merge) if alone else np.fmax(apart, means)),
        x_zero=s.N * zero,
        x=s.N * float(p.lam),
        proved="proved" if alone else "numerical",
    )


class Levels(NamedTuple):
    """What is known of `GroupThresholds` without solving the program of a part."""

    groups: Groups
    x_merge: Float[np.ndarray, " G"]  # nan: one class, or not known in closed form
    x_zero: float
    x: float  # of the problem


def levels(s: Setting, groups: Groups) -> Levels:
    """The thresholds that figures draw, in some milliseconds.

    Raises:
        NoClosedForm: as `group_thresholds`.
    """
    p = _blocks.program(s, groups)
    zero = _blocks.slopes(p, _blocks.from_zero(p, s.bias)).largest
    scale = p.loss.merging(s.bias)
    merge = np.nan if scale is None else scale * groups.weights * np.sqrt(groups.counts)
    return Levels(groups, np.where(groups.sizes > 1, merge, np.nan), s.N * zero, s.N * float(p.lam))


def _means(p: Program, s: Setting, groups: Groups, zero: float, at_zero: _blocks.Slopes) -> float:
    """lam at which the means of the groups leave zero."""
    known = p.loss.parting(s, groups)
    if known is not None:
        return min(known / s.N, zero)
    return _root(p, Parts(mean=False, bias=s.bias), lambda x: x.mean, zero, at_zero)


def _merge(p: Program, bias: bool, g: int, zero: float, at_zero: _blocks.Slopes) -> float:
    """lam at which the classes of group g begin to differ."""
    if p.sizes[g] == 1:
        return math.nan
    others = np.arange(len(p.sizes)) != g
    return _root(p, Parts(spread=others, bias=bias), lambda x: float(x.spread[g]), zero, at_zero)


def _root(
    p: Program, parts: Parts, slope: Callable[[_blocks.Slopes], float], zero: float, at_zero: _blocks.Slopes
) -> float:
    """lam at which a slope, at the minimum with its part held at zero, is lam; at most `zero`."""
    if slope(at_zero) >= zero * (1 - 1e-14):
        return zero

    def excess(log_lam: float) -> float:
        lam = math.exp(log_lam)
        there: Block = _blocks.solve(p._replace(lam=np.asarray(lam)), parts)
        return slope(_blocks.slopes(p, there)) / lam - 1

    high = math.log(zero)
    low = high - 0.5
    while excess(low) <= 0:
        high, low = low, low - 1.0
    return math.exp(float(brentq(excess, low, high, xtol=1e-14, rtol=1e-14)))
