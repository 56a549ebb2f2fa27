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
from ufm.theory._structures import Family

#: coordinates that a compiled program has room for
ROOM = 6
#: families that are minimised over
PROMISING = 12
#: singular values at which a search starts
SCALES = np.geomspace(0.1, 1e4, 50)
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
    name: str
    coordinates: int  # of its family


class _Space(NamedTuple):
    """A family with zeros for the coordinates that it does not use.

    Coordinates y: t_i = |y_g|^(q-1) y_i with y_g the coordinates tied to y_i, so that the penalty
    (q/2) c sum rank_g |y_g|^2 is smooth; then s.
    """

    directions: np.ndarray  # (ROOM, K, K) of Zbar
    bias: np.ndarray  # (ROOM, K)
    tied: np.ndarray  # (ROOM, ROOM) 1 where two coordinates share a singular direction
    rank: np.ndarray  # (ROOM,)


def lowest(level: Level, every: Iterable[Family]) -> Minimum:
    """The lowest point of several families, the first of which has full symmetry.

    Only the first and those whose starts are lowest are minimised over. Of families that share the point the
    smallest counts.
    """
    prepared = [(_space(family), family) for family in every]
    rows = [(_starts(level, space, len(family.parts)), space, family) for space, family in prepared]
    rows[1:] = sorted(rows[1:], key=lambda row: row[0][0])[:PROMISING]
    found = [_minimum(level, *row) for row in rows]
    best = min(x.value for x in found)
    equal = [x for x in found if x.value <= best + 1e-13 * abs(best)]
    return min(equal, key=lambda x: x.coordinates)


def trivial(level: Level, bias: bool, K: int) -> Minimum:
    """Zbar = 0, with the best constant bias where the loss feels one."""
    share = np.ones((int(bias and not level.loss.shift_invariant), K))
    zero = Family("zero", np.zeros((0, K, K)), (), share)
    return _minimum(level, (0.0, [np.zeros(ROOM)]), _space(zero), zero)


def _minimum(level: Level, start: tuple[float, list[np.ndarray]], space: _Space, family: Family) -> Minimum:
    """By Newton's method from each start."""
    D = len(family.parts) + len(family.bias)

    def derivatives(y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        padded = np.append(y, np.zeros(ROOM - D))
        f, g, H = _derivatives(level.loss, level.q, level.c, level.lam_b, space, padded)
        return float(f), np.asarray(g)[:D], np.asarray(H)[:D, :D]

    value, y = min((_descend(derivatives, y[:D]) for y in start[1]), key=lambda pair: pair[0])
    Zbar, b = _point(level.q, space, np.append(y, np.zeros(ROOM - D)))
    return Minimum(value, np.asarray(Zbar), np.asarray(b), family.name, D)


def _space(family: Family) -> _Space:
    P, R, K = len(family.parts), len(family.bias), family.parts.shape[2]
    directions, bias = np.zeros((ROOM, K, K)), np.zeros((ROOM, K))
    directions[:P], bias[P : P + R] = family.parts, family.bias
    tied, rank = np.zeros((ROOM, ROOM)), np.zeros(ROOM)
    tied[:P, :P] = np.equal.outer(family.ties, family.ties)
    rank[:P] = family.ranks
    return _Space(directions, bias, tied, rank)


def _starts(level: Level, space: _Space, P: int) -> tuple[float, list[np.ndarray]]:
    """The lowest value on rays of equal and unequal parts without a bias, and the best point of each ray."""
    patterns = [np.ones(P), 0.6 ** np.arange(P), 0.6 ** np.arange(P)[::-1]]
    y = np.zeros((3, len(SCALES), ROOM))
    y[:, :, :P] = (SCALES[:, None] * np.array(patterns)[:, None]) ** (1 / level.q)
    values = np.asarray(_values(level.loss, level.q, level.c, level.lam_b, space, y.reshape(-1, ROOM)))
    best = values.reshape(3, -1).argmin(axis=1)
    several = 1 if P == 1 else 3
    return float(values.min()), [y[i, best[i]] for i in range(several)]


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


def _point(q: Any, space: _Space, y: Any) -> tuple[Any, Any]:
    """Zbar and b."""
    unused = jnp.diagonal(space.tied) == 0
    square = jnp.where(unused, 1.0, space.tied @ y**2 + 1e-200)  # smooth where a part vanishes
    x = jnp.where(unused, y, y * square ** ((q - 1) / 2))
    return jnp.tensordot(x, space.directions, 1), x @ space.bias


def _objective(loss: Loss, q: Any, c: Any, lam_b: Any, space: _Space, y: Any) -> Array:
    Zbar, b = _point(q, space, y)
    fit = jnp.mean(jax.vmap(loss)(Zbar.T + b, jnp.arange(len(b))))
    return fit + q / 2 * c * jnp.sum(space.rank * y**2) + lam_b / 2 * jnp.sum(b * b)


@partial(_compile.jit, options=_compile.INSTANT)
def _values(loss: Loss, q: Any, c: Any, lam_b: Any, space: _Space, ys: Array) -> Array:
    return jax.lax.map(partial(_objective, loss, q, c, lam_b, space), ys)


@partial(_compile.jit, options=_compile.INSTANT)
def _derivatives(
    loss: Loss, q: Any, c: Any, lam_b: Any, space: _Space, y: Array
) -> tuple[Array, Array, Array]:
    level = partial(_objective, loss, q, c, lam_b, space)
    return *jax.value_and_grad(level)(y), jax.hessian(level)(y)
