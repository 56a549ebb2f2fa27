"""SHELF of solvers: each is two pure functions on pytrees, run by the one loop of `ufm._solve`.

    memory = solver.init(f, at)                      what the method remembers, at the start
    at, memory, flag = solver.step(f, at, memory)    one step from the point `at` = (y, f(y), grad f(y))

`f` maps a pytree of arrays to a scalar. A flag other than 0 says that the method cannot go on.
Solvers are frozen dataclasses of plain numbers: hashable, so that one configuration compiles once. One may
also have `patience`, the number of steps without progress beyond rounding after which the loop gives up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm import _checks

if TYPE_CHECKING:
    import optax

Tree = Any
Objective = Callable[[Tree], Array]


@dataclasses.dataclass(frozen=True)
class OnSpheres:
    """An objective that is constant along the rays of the parts of y that lie on spheres."""

    value: Objective
    tangent: Callable[[Tree, Tree], Tree]  # (y, step) -> the part of a step that changes these rays

    def __call__(self, y: Tree) -> Array:
        return self.value(y)


class Point(NamedTuple):
    """Where a solver stands."""

    y: Tree  # the variables
    f: Array  # () objective
    g: Tree  # gradient, shaped as y


@runtime_checkable
class Solver(Protocol):
    """What the loop needs of a solver."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    @property
    def balance(self) -> bool:
        """Run in the coordinates in which both penalties are sqrt(lam_W lam_H)."""

    @property
    def rotate(self) -> bool:
        """Keep only the feature components in the row space of W, in min(d, K) coordinates."""

    @property
    def polish(self) -> bool:
        """Take one step more once within the tolerance."""

    @property
    def max_steps(self) -> int:
        """The default limit."""

    def init(self, f: Objective, at: Point) -> Tree:
        """What the method remembers at the start."""

    def step(self, f: Objective, at: Point, memory: Tree) -> tuple[Point, Tree, Array]:
        """One step; the flag is 0 (go on) or `STALLED`."""


STALLED = 3  # the flag of a step that cannot be taken; `ufm.Status` has the same number

# --- linear algebra on pytrees --------------------------------------------------------------------


def dot(a: Tree, b: Tree) -> Array:
    """Euclidean inner product."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)), jnp.zeros(()))


def axpy(s: Any, a: Tree, b: Tree) -> Tree:
    """s a + b."""
    return jax.tree.map(lambda x, y: s * x + y, a, b)


def scale(s: Any, a: Tree) -> Tree:
    """s a."""
    return jax.tree.map(lambda x: s * x, a)


def _select(condition: Array, a: Tree, b: Tree) -> Tree:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def evaluate(f: Objective, y: Tree) -> Point:
    value, g = jax.value_and_grad(f)(y)
    return Point(y, value, g)


def curvature(f: Objective, y: Tree) -> Callable[[Tree], Tree]:
    """The product with the Hessian at y; on spheres with the Riemannian one, of tangent directions.

    Along rays the full Hessian couples to the gradient, H y = -g, and has no curvature of its own.
    """
    _, hvp = jax.linearize(jax.grad(f), y)
    return (lambda v: f.tangent(y, hvp(v))) if isinstance(f, OnSpheres) else hvp


def noise(f: Array) -> Array:
    """The size below which differences of objectives are rounding."""
    return 10 * np.finfo(f.dtype).eps * jnp.maximum(jnp.abs(f), np.finfo(f.dtype).tiny)


# --- trust-region Newton-CG -----------------------------------------------------------------------


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


def _steihaug(hvp: Callable[[Tree], Tree], g: Tree, radius: Array, stop: Array, limit: int) -> _CG:
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


class _Trust(NamedTuple):
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

    def init(self, f: Objective, at: Point) -> _Trust:
        return _Trust(jnp.sqrt(dot(at.y, at.y)) + 1.0, jnp.asarray(0))

    def step(self, f: Objective, at: Point, memory: _Trust) -> tuple[Point, _Trust, Array]:
        hvp = curvature(f, at.y)
        size = jnp.sqrt(dot(at.g, at.g))
        forcing = jnp.clip(size**self.power, self.least, self.forcing)
        cg = self._bounded(_steihaug(hvp, at.g, memory.radius, size * forcing, self.cg_steps), at)
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
        memory = _Trust(radius, memory.products + cg.steps)
        return _select(accept, new, at), memory, jnp.where(stuck, STALLED, 0)

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


# --- L-BFGS ---------------------------------------------------------------------------------------


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
        return _select(line.done, new, at), pairs, jnp.where(stuck, STALLED, 0)

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


# --- first-order methods through optax ------------------------------------------------------------


class _Descent(NamedTuple):
    """Memory of a first-order method."""

    rate: Array  # learning rate
    ceiling: Array  # a step above this objective is not taken
    state: Tree  # optax's


def _sharpness(f: Objective, y: Tree, products: int = 30) -> Array:
    """|largest eigenvalue| of the Hessian at y, by power iteration (approached from below)."""
    _, hvp = jax.linearize(jax.grad(f), y)
    v = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), y)

    def iterate(_: Any, v: Tree) -> Tree:
        size = jnp.sqrt(dot(v, v))
        return hvp(scale(1 / jnp.where(size > 0, size, 1.0), v))

    v = jax.lax.fori_loop(0, products, iterate, v)
    return jnp.sqrt(dot(v, v))


def _optax(name: str, *arguments: float) -> optax.GradientTransformation:
    """A transformation of optax, imported here because it takes half as long as the rest of `import ufm`."""
    import optax

    made: optax.GradientTransformation = getattr(optax, name)(*arguments)
    return made


@dataclasses.dataclass(frozen=True)
class FirstOrder:
    """A gradient transformation of optax, run on equation (7) in its own coordinates.

    The step is -rate * transform(gradient). The rate is `learning_rate`, or 1 / sharpness at the start;
    a step that lifts the objective (for methods that are not monotone: above where it started) is taken
    back, the transform starts afresh and the rate halves. `half_life`: the number of
    steps in which the rate also halves, which Adam needs because its steps do not shrink with the gradient.
    """

    name: str
    transform: Callable[[], optax.GradientTransformation]
    monotone: bool = False
    learning_rate: float | None = None
    half_life: float = math.inf

    polish = False
    balance = False
    rotate = False
    max_steps = 1_000_000
    patience = 50_000  # ten half-lives of Adam's rate

    def init(self, f: Objective, at: Point) -> _Descent:
        rate = jnp.asarray(self.learning_rate, at.f.dtype) if self.learning_rate else 1 / _sharpness(f, at.y)
        return _Descent(rate, at.f, self.transform().init(at.y))

    def step(self, f: Objective, at: Point, memory: _Descent) -> tuple[Point, _Descent, Array]:
        transform = self.transform()
        direction, state = transform.update(at.g, memory.state, at.y)
        new = evaluate(f, axpy(-memory.rate, direction, at.y))
        accept = new.f <= memory.ceiling + noise(at.f)  # False for NaN
        rate = jnp.where(accept, memory.rate * 0.5 ** (1 / self.half_life), memory.rate / 2)
        memory = _Descent(
            rate,
            jnp.where(accept & self.monotone, new.f, memory.ceiling),
            _select(accept, state, transform.init(at.y)),
        )
        stuck = rate < np.finfo(at.f.dtype).tiny
        return _select(accept, new, at), memory, jnp.where(stuck, STALLED, 0)


# --- the registry ---------------------------------------------------------------------------------

#: The shelf: tests, benchmarks and the command line iterate it.
SOLVERS: dict[str, Solver] = {
    solver.name: solver
    for solver in (
        Newton(),
        LBFGS(),
        FirstOrder("gd", partial(_optax, "identity"), monotone=True),
        FirstOrder("momentum", partial(_optax, "trace", 0.9)),
        FirstOrder("adam", partial(_optax, "scale_by_adam"), learning_rate=1e-2, half_life=5000.0),
    )
}


def get(solver: str | Solver) -> Solver:
    """A solver from its name, or the solver itself.

    Raises:
        ValueError: an unknown name (the known ones are listed, the nearest suggested) or no solver.
    """
    if isinstance(solver, str):
        return SOLVERS[_checks.choice("solver", solver, SOLVERS)]
    if not (hasattr(solver, "init") and hasattr(solver, "step")):
        raise ValueError(
            f"solver: expected a name ({', '.join(SOLVERS)}) or an object with init and step, got {solver!r}"
        )
    return solver
