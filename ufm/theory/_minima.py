"""The lowest point of a family of class logits, for the loss with a deep classifier's penalty."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ufm import _compile
from ufm.losses import Loss
from ufm.theory._structures import Family, Line

#: coordinates that a compiled program has room for
ROOM = 6
#: families that are minimised over
PROMISING = 14
#: singular values at which a search starts
SCALES = np.geomspace(0.1, 1e4, 80)
#: Newton steps at most
STEPS = 100

Derivatives = Callable[[np.ndarray], tuple[float, np.ndarray, np.ndarray]]


class Level(NamedTuple):
    """Of (1/K) sum_k L + (q/2) c sum sigma^(2/q) + lam_b/2 |b|^2."""

    loss: Loss
    q: int
    c: float
    lam_b: float


class Minimum(NamedTuple):
    """The lowest point of a family."""

    value: float
    Zbar: np.ndarray  # (K, K)
    b: np.ndarray  # (K,)
    family: Family | Line
    y: np.ndarray  # its coordinates there

    @property
    def name(self) -> str:
        """Of the family."""
        return self.family.name

    @property
    def coordinates(self) -> int:
        """How many its family has."""
        return len(self.y)


class _Space(NamedTuple):
    """A family with zeros for the coordinates that it does not use.

    Coordinates y: t_i = |y_g|^(q-1) y_i with y_g the coordinates tied to y_i, so that the penalty
    (q/2) c sum rank_g |y_g|^2 is smooth; then s.
    """

    directions: np.ndarray  # (ROOM, K, K) of Zbar
    bias: np.ndarray  # (ROOM, K)
    tied: np.ndarray  # (ROOM, ROOM) 1 where two coordinates share a singular direction
    rank: np.ndarray  # (ROOM,)

    def point(self, q: Any, y: Any) -> tuple[Any, Any]:
        """Zbar and b."""
        unused = jnp.diagonal(self.tied) == 0
        square = jnp.where(unused, 1.0, self.tied @ y**2 + 1e-100)  # smooth where a part vanishes
        x = jnp.where(unused, y, y * square ** ((q - 1) / 2))
        return jnp.tensordot(x, self.directions, 1), x @ self.bias

    def cost(self, y: Any) -> Any:
        """sum sigma^(2/q)."""
        return jnp.sum(self.rank * y**2)


class _LineSpace(NamedTuple):
    """Points on an axis: coordinates of u, v and the parts, and s.

    With u = |x|^(q/2-1) x of its coordinates x, and v of y alike, (|u| |v|)^(2/q) is the least
    (|x|^2 + |y|^2)/2 of all coordinates with the same product.
    """

    odd: np.ndarray  # (m, K)
    bias: np.ndarray  # (R, K)
    parts: np.ndarray  # (P, K, K)
    rank: np.ndarray  # (P,)

    def point(self, q: Any, y: Any) -> tuple[Any, Any]:
        """Zbar and b."""
        m, P = len(self.odd), len(self.parts)
        u, v = (x * (jnp.sum(x**2) + 1e-100) ** (q / 4 - 0.5) @ self.odd for x in (y[:m], y[m : 2 * m]))
        t, s = y[2 * m : 2 * m + P], y[2 * m + P :]
        across = jnp.tensordot(t * (t**2 + 1e-100) ** ((q - 1) / 2), self.parts, 1)
        return jnp.outer(u, v) + across, s @ self.bias if len(s) else jnp.zeros_like(u)

    def cost(self, y: Any) -> Any:
        """sum sigma^(2/q)."""
        m, P = len(self.odd), len(self.parts)
        return jnp.sum(y[: 2 * m] ** 2) / 2 + jnp.sum(self.rank * y[2 * m : 2 * m + P] ** 2)


def each(level: Level, every: Iterable[Family | Line]) -> list[Minimum]:
    """The lowest points of several families: of the first, which has full symmetry, and of those whose starts
    are lowest.
    """
    rows = [(_starts(level, family), family) for family in every]
    rows[1:] = sorted(rows[1:], key=_start_value)[:PROMISING]
    return [_minimum(level, starts, family) for (_, starts), family in rows]


def _start_value(row: tuple[tuple[float, list[np.ndarray]], Family | Line]) -> float:
    """Figures on an axis come first: equal coordinates say little of them."""
    (value, _), family = row
    return -np.inf if isinstance(family, Line) else value


def lowest(found: list[Minimum]) -> Minimum:
    """The lowest; of families that share the point the smallest counts."""
    best = min(x.value for x in found)
    equal = [x for x in found if x.value <= best + 1e-13 * abs(best)]
    return min(equal, key=lambda x: x.coordinates)


def follow(level: Level, found: Minimum) -> Minimum:
    """The minimum that a branch has at other penalties."""
    return _minimum(level, [found.y], found.family)


def trivial(level: Level, bias: bool, K: int) -> Minimum:
    """Zbar = 0, with the best constant bias where the loss feels one."""
    share = np.ones((int(bias and not level.loss.shift_invariant), K))
    zero = Family("zero", np.zeros((0, K, K)), (), share)
    return _minimum(level, [np.zeros(len(share))], zero)


def _minimum(level: Level, starts: list[np.ndarray], family: Family | Line) -> Minimum:
    """By Newton's method from each start."""
    space, D = _space(family), len(starts[0])

    def derivatives(y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        f, g, H = _derivatives(*level, space, _padded(family, y))
        return float(f), np.asarray(g)[:D], np.asarray(H)[:D, :D]

    value, y = min((_descend(derivatives, start) for start in starts), key=lambda pair: pair[0])
    Zbar, b = space.point(level.q, _padded(family, y))
    return Minimum(value, np.asarray(Zbar), np.asarray(b), family, y)


def _padded(family: Family | Line, y: np.ndarray) -> np.ndarray:
    """One program serves all linear families."""
    return y if isinstance(family, Line) else np.append(y, np.zeros(ROOM - len(y)))


def _space(family: Family | Line) -> _Space | _LineSpace:
    if isinstance(family, Line):
        return _LineSpace(family.odd, family.bias, family.parts, family.ranks)
    P, R, K = len(family.parts), len(family.bias), family.parts.shape[2]
    directions, bias = np.zeros((ROOM, K, K)), np.zeros((ROOM, K))
    directions[:P], bias[P : P + R] = family.parts, family.bias
    tied, rank = np.zeros((ROOM, ROOM)), np.zeros(ROOM)
    tied[:P, :P] = np.equal.outer(family.ties, family.ties)
    rank[:P] = family.ranks
    return _Space(directions, bias, tied, rank)


def _starts(level: Level, family: Family | Line) -> tuple[float, list[np.ndarray]]:
    """The lowest value on the rays of `_rays`, and the best point of each."""
    rays = _rays(level.q, family)
    padded = np.array([_padded(family, y) for y in rays.reshape(-1, rays.shape[-1])])
    values = np.asarray(_values(*level, _space(family), padded)).reshape(rays.shape[:2])
    best = [_inner_minimum(ray) for ray in values]
    several = 1 if isinstance(family, Family) and len(family.parts) == 1 else 3
    return float(values.min()), [rays[i, best[i]] for i in range(several)]


def _rays(q: int, family: Family | Line) -> np.ndarray:
    """(3, SCALES, D) coordinates: equal and unequal parts without a bias; steps of three kinds on a line."""
    if isinstance(family, Line):
        m, R, P = len(family.odd), len(family.bias), len(family.parts)
        u = np.arange(m, 0, -1.0) - (0.5 if family.odd.shape[1] % 2 == 0 else 0.0)
        odd = np.array([u, u**2, np.sqrt(u)])
        odd = odd / np.linalg.norm(odd, axis=1, keepdims=True)
        x = SCALES[:, None] ** (1 / q) * odd[:, None]
        even = -SCALES[:, None] * odd[:, None] ** 2 / 2 * (P == 0)
        across = np.broadcast_to(SCALES[:, None] ** (1 / q), (3, len(SCALES), P))
        return np.concatenate([x, x, across, even[..., :R]], axis=2)
    P, R = len(family.parts), len(family.bias)
    patterns = np.array([np.ones(P), 0.6 ** np.arange(P), 0.6 ** np.arange(P)[::-1]])
    margins = (SCALES[:, None] * patterns[:, None]) ** (1 / q)
    return np.concatenate([margins, np.zeros((3, len(SCALES), R))], axis=2)


def _inner_minimum(ray: np.ndarray) -> int:
    """The lowest local minimum away from the origin, which is one of its own; else the lowest point."""
    inner = np.flatnonzero((ray[1:-1] <= ray[:-2]) & (ray[1:-1] <= ray[2:])) + 1
    return int(inner[ray[inner].argmin()]) if len(inner) else int(ray.argmin())


def _descend(derivatives: Derivatives, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Newton's method with the Hessian's |eigenvalues|; steps halve until f falls, or |g| at rounding."""
    f, g, H = derivatives(y)
    for _ in range(STEPS if len(y) else 0):
        w, V = np.linalg.eigh(H)
        step = -V @ ((V.T @ g) / np.maximum(np.abs(w), 1e-10 * np.abs(w).max()))
        step *= min(1.0, (0.1 + 0.3 * float(np.linalg.norm(y))) / max(float(np.linalg.norm(step)), 1e-300))
        for halving in 0.5 ** np.arange(30.0):
            new = derivatives(y + halving * step)
            rounding = abs(new[0] - f) <= 1e-14 * abs(f) and np.linalg.norm(new[1]) < np.linalg.norm(g)
            if new[0] < f + 1e-4 * halving * (g @ step) or rounding:
                break
        else:
            break
        y, (f, g, H) = y + halving * step, new
    return f, y


def _objective(loss: Loss, q: Any, c: Any, lam_b: Any, space: Any, y: Any) -> Array:
    Zbar, b = space.point(q, y)
    fit = jnp.mean(jax.vmap(loss)(Zbar.T + b, jnp.arange(len(b))))
    return fit + q / 2 * c * space.cost(y) + lam_b / 2 * jnp.sum(b * b)


@partial(_compile.jit, options=_compile.INSTANT)
def _values(loss: Loss, q: Any, c: Any, lam_b: Any, space: Any, ys: Array) -> Array:
    return jax.lax.map(partial(_objective, loss, q, c, lam_b, space), ys)


@partial(_compile.jit, options=_compile.INSTANT)
def _derivatives(loss: Loss, q: Any, c: Any, lam_b: Any, space: Any, y: Array) -> tuple[Array, Array, Array]:
    level = partial(_objective, loss, q, c, lam_b, space)
    return *jax.value_and_grad(level)(y), jax.hessian(level)(y)
