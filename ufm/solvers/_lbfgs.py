"""L-BFGS."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ufm.solvers._base import STALLED, Objective, Point, Tree, axpy, dot, evaluate, noise, scale, select


class _Pairs(NamedTuple):
    """L-BFGS's memory: a ring of the last steps s and gradient changes y, newest at `stored - 1`."""

    s: Tree  # leaves (m, ...)
    y: Tree
    rho: Array  # (m,) 1 / s'y, zero where empty
    stored: Array  # how many so far


class _Line(NamedTuple):
    """State of the line search: a bracket [low, high] and the last trial."""

    t: Array
    low: Array
    high: Array
    trial: Point
    done: Array
    steps: Array


@dataclasses.dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with a weak-Wolfe line search by bisection (Lewis & Overton 2013).

    Near the optimum, where differences of f are rounding, sufficient decrease is judged by slopes (the
    approximate Wolfe condition of Hager & Zhang 2005): gradients reach 1e-10 where f has no digits left.
    """

    history: int = 20  # pairs kept; 10 to 30 made no difference on K=10, d=64, n=10
    line_steps: int = 40

    name = "lbfgs"
    polish = False
    balance = True
    rotate = True
    max_steps = 20_000
    patience = 200

    def init(self, f: Objective, at: Point) -> _Pairs:
        ring = jax.tree.map(lambda x: jnp.zeros((self.history, *x.shape), x.dtype), at.y)
        return _Pairs(ring, ring, jnp.zeros(self.history, at.f.dtype), jnp.asarray(0))

    def step(self, f: Objective, at: Point, memory: _Pairs) -> tuple[Point, _Pairs, Array]:
        p = scale(-1.0, self._two_loop(at.g, memory))
        slope = dot(at.g, p)
        length = jnp.sqrt(dot(at.g, at.g))
        first = jnp.where(memory.stored == 0, 1 / jnp.maximum(length, 1.0), 1.0)
        line = self._search(f, at, p, slope, first)
        new = line.trial
        s, y = axpy(-1.0, at.y, new.y), axpy(-1.0, at.g, new.g)
        sy = dot(s, y)
        keep = line.done & (sy > 0)
        slot = memory.stored % self.history
        pairs = _Pairs(
            _store(memory.s, s, slot, keep),
            _store(memory.y, y, slot, keep),
            jnp.where(keep, memory.rho.at[slot].set(1 / jnp.where(keep, sy, 1.0)), memory.rho),
            memory.stored + keep.astype(memory.stored.dtype),
        )
        # a failed search with pairs in store starts afresh from steepest descent; without any it is over
        forget = ~line.done
        pairs = pairs._replace(
            rho=jnp.where(forget, 0.0, pairs.rho), stored=jnp.where(forget, 0, pairs.stored)
        )
        stuck = forget & (memory.stored == 0)
        return select(line.done, new, at), pairs, jnp.where(stuck, STALLED, 0)

    def _two_loop(self, g: Tree, memory: _Pairs) -> Tree:
        """The inverse-Hessian estimate applied to g (Nocedal 1980)."""
        order = (memory.stored - 1 - jnp.arange(self.history)) % self.history  # newest first

        def pick(ring: Tree, i: Array) -> Tree:
            return jax.tree.map(lambda x: x[i], ring)

        def backward(q: Tree, i: Array) -> tuple[Tree, Array]:
            a = memory.rho[i] * dot(pick(memory.s, i), q)
            return axpy(-a, pick(memory.y, i), q), a

        q, a = jax.lax.scan(backward, g, order)
        newest = pick(memory.y, order[0])
        yy = dot(newest, newest)
        q = scale(jnp.where(memory.stored > 0, 1 / jnp.where(yy > 0, memory.rho[order[0]] * yy, 1.0), 1.0), q)

        def forward(q: Tree, ia: tuple[Array, Array]) -> tuple[Tree, None]:
            i, a = ia
            b = memory.rho[i] * dot(pick(memory.y, i), q)
            return axpy(a - b, pick(memory.s, i), q), None

        return jax.lax.scan(forward, q, (order[::-1], a[::-1]))[0]

    def _search(self, f: Objective, at: Point, p: Tree, slope: Array, first: Array) -> _Line:
        def going(s: _Line) -> Array:
            return ~s.done & (s.steps < self.line_steps)

        def trial(s: _Line) -> _Line:
            new = evaluate(f, axpy(s.t, p, at.y))
            slope_t = dot(new.g, p)
            finite = jnp.isfinite(new.f) & jnp.isfinite(slope_t)
            enough = new.f <= at.f + 1e-4 * s.t * slope
            enough |= (new.f <= at.f + noise(at.f)) & (slope_t <= -(1 - 2e-4) * slope)
            enough &= finite & (slope < 0)
            flat = slope_t >= 0.9 * slope
            low = jnp.where(enough & ~flat, s.t, s.low)
            high = jnp.where(enough, s.high, s.t)
            t = jnp.where(jnp.isinf(high), 2 * s.t, (low + high) / 2)
            return _Line(t, low, high, new, enough & flat, s.steps + 1)

        zero = jnp.zeros_like(at.f)
        start = _Line(first, zero, jnp.full_like(at.f, jnp.inf), at, jnp.asarray(False), jnp.asarray(0))
        return jax.lax.while_loop(going, trial, start)


def _store(ring: Tree, value: Tree, slot: Array, keep: Array) -> Tree:
    return jax.tree.map(lambda x, v: x.at[slot].set(jnp.where(keep, v, x[slot])), ring, value)
