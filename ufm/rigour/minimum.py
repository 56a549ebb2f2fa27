"""The scalar problem of Theorem 1, min over a >= 0 of l(a) + C a, by branch and bound in ball arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from ufm.rigour import balls
from ufm.rigour.balls import Ball, BallLoss, ball


class Minimum(NamedTuple):
    """The least value, and between which margins it is taken."""

    value: Ball
    left: Fraction
    right: Fraction


def scalar_minimum(loss: BallLoss, K: int, C: Ball, digits: int) -> Minimum:
    """Enclose F* = min over a >= 0 of F(a) = l(a) + C a, to `digits` digits, and its minimisers.

    On an interval where F' has one sign F is least at an end; else F >= F(centre) - max |F'| width/2. An
    interval that cannot hold a value below the best one seen is dropped, the others are halved.
    """
    best, cells = _start(loss, K, C)
    floor, goal = ball(0), best * ball(10) ** -digits * 100  # F >= 0
    for _ in range(64 + 4 * digits):
        bounds = [_on_interval(loss, K, C, *cell) for cell in cells]
        best = min([best, *(taken.upper() for _, taken in bounds if taken.is_finite())])
        kept = [(cell, low) for cell, (low, _) in zip(cells, bounds, strict=True) if not low > best]
        cells = [cell for cell, _ in kept]
        if all(low.is_finite() for _, low in kept):
            floor = min(low.lower() for _, low in kept)
        if best - floor < goal:
            break
        halves = [(left, (left + right) / 2, right) for left, right in cells]
        cells = [half for left, mid, right in halves for half in ((left, mid), (mid, right))]
    return Minimum(floor.union(best), cells[0][0], cells[-1][1])


def _start(loss: BallLoss, K: int, C: Ball) -> tuple[Ball, list[tuple[Fraction, Fraction]]]:
    """A value that F takes, and intervals that cover every a with F(a) <= that value."""
    value = _profile(loss, K, C)
    best = min(value(ball(Fraction(i, 4)))[0].upper() for i in range(200))
    slope = C + loss.tilt * (K - 1) / K
    reach = math.ceil(4 * float((best / slope).upper())) + 1
    return best, [(Fraction(i, 4), Fraction(i + 1, 4)) for i in range(reach)]


def _profile(loss: BallLoss, K: int, C: Ball) -> Callable[[Ball], tuple[Ball, Ball]]:
    """F and F'."""

    def both(a: Ball) -> tuple[Ball, Ball]:
        assert loss.profile is not None
        value, slope = loss.profile(a, K)
        return value + C * a, slope + C

    return both


def _on_interval(loss: BallLoss, K: int, C: Ball, left: Fraction, right: Fraction) -> tuple[Ball, Ball]:
    """A lower bound of F on the interval, and a value taken there."""
    F = _profile(loss, K, C)
    centre, half = ball((left + right) / 2), ball((right - left) / 2)
    slope = F(centre + balls.flint().arb(0, half))[1]
    if slope > 0 or slope < 0:
        value = F(ball(left if slope > 0 else right))[0]
        return value, value
    value = F(centre)[0]
    return value - slope.abs_upper() * half, value
