"""Trust-region Newton-CG."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm.solvers._base import (
    STALLED,
    Objective,
    Point,
    Tree,
    axpy,
    curvature,
    dot,
    evaluate,
    noise,
    scale,
    select,
)


class _CG(NamedTuple):
    """State of Steihaug's conjugate gradients for min_p g'p + p'Hp/2, |p| <= radius."""

    p: Tree  # the step so far
    r: Tree  # residual -g - H p
    d: Tree  # search direction
    rr: Array  # |r|^2
    pp: Array  # |p|^2, and p'd, d'd below, by recurrence: no further reductions over the unknowns
    pd: Array
    dd: Array
    decrease: Array  # of the model
    at_boundary: Array
    steps: Array


def steihaug(hvp: Callable[[Tree], Tree], g: Tree, radius: Array, stop: Array, limit: int) -> _CG:
    """Conjugate gradients to |r| <= stop, or to the trust region's boundary or a negative curvature.

    Steihaug, SIAM J. Numer. Anal. 20 (1983); recurrences of Conn, Gould & Toint (2000), section 7.5.1.
    The gradient is orthogonal to the O(d) null space, and so is every iterate: a singular H does no harm.
    """
    r = scale(-1.0, g)
    rr = dot(r, r)
    zero = jnp.zeros_like(rr)
    start = _CG(scale(0.0, g), r, r, rr, zero, zero, rr, zero, jnp.asarray(False), jnp.asarray(0))

    def going(s: _CG) -> Array:
        return (s.rr > stop**2) & ~s.at_boundary & (s.steps < limit)

    def iterate(s: _CG) -> _CG:
        Hd = hvp(s.d)
        curvature = dot(s.d, Hd)
        alpha = s.rr / jnp.where(curvature > 0, curvature, 1.0)
        pp_next = s.pp + 2 * alpha * s.pd + alpha**2 * s.dd
        leaves = (curvature <= 0) | (pp_next >= radius**2)
        room = radius**2 - s.pp
        to_boundary = room / (s.pd + jnp.sqrt(jnp.maximum(s.pd**2 + s.dd * room, 0.0)))
        alpha = jnp.where(leaves, to_boundary, alpha)
        r = axpy(-alpha, Hd, s.r)
        rr = dot(r, r)
        beta = rr / s.rr
        return _CG(
            p=axpy(alpha, s.d, s.p),
            r=r,
            d=axpy(beta, s.d, r),
            rr=rr,
            pp=s.pp + 2 * alpha * s.pd + alpha**2 * s.dd,
            pd=beta * (s.pd + alpha * s.dd),
            dd=rr + beta**2 * s.dd,
            decrease=s.decrease + alpha * s.rr - alpha**2 * curvature / 2,
            at_boundary=leaves,
            steps=s.steps + 1,
        )

    return jax.lax.while_loop(going, iterate, start)


class Trust(NamedTuple):
    """Newton's memory."""

    radius: Array
    products: Array  # Hessian-vector products so far


@dataclasses.dataclass(frozen=True)
class Newton:
    """Trust-region Newton-CG with exact Hessian-vector products.

    One linearisation of the gradient a step serves all its products, which reuse the softmax.
    Fast at the end: conjugate gradients are solved to |r| <= |g| clip(|g|^power, least, forcing).
    A step on round-off level is accepted if the gradient shrinks.

    No step takes the variables below `keep` times their norm while that norm is above 1. Where a loss is
    saturated its curvature vanishes, the Hessian is that of the penalties, and the full step would land
    on the origin, a strict saddle. Below norm 1 no logit exceeds 1/2 and nothing is saturated.
    """

    forcing: float = 0.3
    power: float = 0.5
    least: float = 1e-6
    cg_steps: int = 500  # a step: enough for every conditioning met; the radius and forcing end it sooner
    keep: float = 0.1  # binds for saturated starts and on the way to a collapsed optimum only
    polish: bool = True
    balance: bool = True
    rotate: bool = True

    name = "newton"
    max_steps = 1000
    patience = 200

    def init(self, f: Objective, at: Point) -> Trust:
        return Trust(jnp.sqrt(dot(at.y, at.y)) + 1.0, jnp.asarray(0))

    def step(self, f: Objective, at: Point, memory: Trust) -> tuple[Point, Trust, Array]:
        hvp = curvature(f, at.y)
        size = jnp.sqrt(dot(at.g, at.g))
        forcing = jnp.clip(size**self.power, self.least, self.forcing)
        cg = self._bounded(steihaug(hvp, at.g, memory.radius, size * forcing, self.cg_steps), at)
        new = evaluate(f, axpy(1.0, cg.p, at.y))

        rounding = cg.decrease <= noise(at.f)
        shrinks = dot(new.g, new.g) < dot(at.g, at.g)
        ratio = (at.f - new.f) / jnp.where(cg.decrease > 0, cg.decrease, 1.0)
        finite = jnp.isfinite(new.f) & jnp.isfinite(dot(new.g, new.g))
        accept = finite & jnp.where(rounding, shrinks, ratio > 1e-4)
        good = accept & (rounding | (ratio > 0.75))
        poor = ~accept | (~rounding & (ratio < 0.25))
        length = jnp.sqrt(dot(cg.p, cg.p))
        radius = jnp.where(poor, length / 4, memory.radius)
        radius = jnp.where(good & cg.at_boundary, 3 * memory.radius, radius)

        y_size = jnp.sqrt(dot(at.y, at.y))
        stuck = ~accept & (
            (rounding & ~cg.at_boundary) | (length <= np.finfo(at.f.dtype).eps * jnp.maximum(y_size, 1e-3))
        )
        memory = Trust(radius, memory.products + cg.steps)
        return select(accept, new, at), memory, jnp.where(stuck, STALLED, 0)

    def _bounded(self, cg: _CG, at: Point) -> _CG:
        """The step, shortened to t p where y + p would be shorter than `keep` |y| (see the class).

        The model's decrease at t p is -t g'p + t^2 (m + g'p), with m the decrease at p.
        """
        yy = dot(at.y, at.y)
        short = (yy > 1.0) & (yy + 2 * dot(at.y, cg.p) + cg.pp < self.keep**2 * yy)
        t = jnp.where(short, 1.0 - self.keep, 1.0)
        slope = dot(at.g, cg.p)
        decrease = jnp.where(short, -t * slope + t**2 * (cg.decrease + slope), cg.decrease)
        return cg._replace(p=scale(t, cg.p), decrease=decrease)
