"""The losses as their papers have them, written down once more in decimals, and instances to try them on."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from decimal import Decimal, getcontext, localcontext
from typing import Any

import jax
import numpy as np
import pytest

from ufm import losses

K = 5

# --- the witness: each loss as its paper has it, written down once more, in decimals ------------------


# computed once: all second differences at a point shift each logit to the same three values, and the losses
# are tried at the same points


@functools.lru_cache(10_000)
def _exp_to(v: Decimal, digits: int) -> Decimal:
    return v.exp()


@functools.lru_cache(10_000)
def _ln_to(v: Decimal, digits: int) -> Decimal:
    return v.ln()


def _exp(v: Decimal) -> Decimal:
    return _exp_to(v, getcontext().prec)


def _ln(v: Decimal) -> Decimal:
    return _ln_to(v, getcontext().prec)


def _shares(z: list[Decimal]) -> list[Decimal]:
    weights = [_exp(v) for v in z]
    mass = sum(weights)
    return [w / mass for w in weights]


def _against(z: list[Decimal], k: int) -> Decimal:
    """1 - p_k, as a sum that does not cancel."""
    return sum((v for j, v in enumerate(_shares(z)) if j != k), Decimal(0))


def _ce(z: list[Decimal], k: int) -> Decimal:
    return -_ln(_shares(z)[k])


def _ls(z: list[Decimal], k: int, alpha: Decimal) -> Decimal:
    p = _shares(z)
    return -(1 - alpha) * _ln(p[k]) - alpha / len(z) * sum(_ln(v) for v in p)


def _fl(z: list[Decimal], k: int, gamma: Decimal) -> Decimal:
    return -(_against(z, k) ** gamma) * _ln(_shares(z)[k])


def _mse(z: list[Decimal], k: int, kappa: Decimal, beta: Decimal) -> Decimal:
    return kappa * (z[k] - beta) ** 2 + sum(v**2 for j, v in enumerate(z) if j != k)


def _gce(z: list[Decimal], k: int, q: Decimal) -> Decimal:
    return (1 - _shares(z)[k] ** q) / q


def _sce(z: list[Decimal], k: int, alpha: Decimal, beta: Decimal) -> Decimal:
    log_of_label = [Decimal(0 if j == k else -4) for j in range(len(z))]
    reverse = -sum(p * label for p, label in zip(_shares(z), log_of_label, strict=True))
    return alpha * _ce(z, k) + beta * reverse


def _taylor(z: list[Decimal], k: int, terms: Decimal) -> Decimal:
    return sum((_against(z, k) ** i / i for i in range(1, int(terms) + 1)), Decimal(0))


def _mae(z: list[Decimal], k: int) -> Decimal:
    return sum((abs((j == k) - p) for j, p in enumerate(_shares(z))), Decimal(0))


def _margin(z: list[Decimal], k: int, margin: Decimal) -> Decimal:
    return _ce([v - (j == k) * margin for j, v in enumerate(z)], k)


def _logitnorm(z: list[Decimal], k: int, temperature: Decimal) -> Decimal:
    norm = sum((v**2 for v in z), Decimal(0)).sqrt() or Decimal(1)
    return _ce([v / norm / temperature for v in z], k)


def _ova(z: list[Decimal], k: int) -> Decimal:
    return sum((_ln(1 + _exp(-v if j == k else v)) for j, v in enumerate(z)), Decimal(0))


def _exponential(z: list[Decimal], k: int) -> Decimal:
    return sum((_exp(v - z[k]) for j, v in enumerate(z) if j != k), Decimal(0))


def _hinges(z: list[Decimal], k: int, margin: Decimal) -> list[Decimal]:
    return [max(margin + v - z[k], Decimal(0)) for j, v in enumerate(z) if j != k]


FORMULAS: dict[str, Callable[..., Decimal]] = {
    "ce": _ce,
    "ls": _ls,
    "fl": _fl,
    "mse": _mse,
    "gce": _gce,
    "sce": _sce,
    "poly1": lambda z, k, epsilon: _ce(z, k) + epsilon * _against(z, k),
    "taylor": _taylor,
    "mae": _mae,
    "margin": _margin,
    "temperature": lambda z, k, temperature: _ce([v / temperature for v in z], k),
    "logitnorm": _logitnorm,
    "ova": _ova,
    "exponential": _exponential,
    "ww": lambda z, k, margin: sum((h**2 for h in _hinges(z, k, margin)), Decimal(0)),
    "cs2": lambda z, k, margin: max(_hinges(z, k, margin)) ** 2,
    "cs": lambda z, k, margin: max(_hinges(z, k, margin)),
}
VALUES: dict[str, dict[str, tuple[float, ...]]] = {
    "ls": {"alpha": (0.0, 0.1, 0.9)},
    "fl": {"gamma": (0.0, 0.3, 1.0, 3.0)},
    "mse": {"kappa": (0.5, 5.0), "beta": (0.7, 15.0)},
    "gce": {"q": (0.1, 0.7)},
    "sce": {"alpha": (0.1, 6.0), "beta": (0.0, 1.0)},
    "poly1": {"epsilon": (-0.5, 1.0, 4.0)},
    "taylor": {"terms": (1, 2, 7)},
    "margin": {"margin": (-0.5, 1.0)},
    "temperature": {"temperature": (0.5, 3.0)},
    "logitnorm": {"temperature": (0.25, 1.0)},
    "ww": {"margin": (0.5, 1.0)},
    "cs2": {"margin": (0.5, 1.0)},
    "cs": {"margin": (0.5, 1.0)},
}


def witness(loss: losses.Loss, z: np.ndarray, k: int, shift: dict[int, Decimal] | None = None) -> Decimal:
    """The paper's formula at z (exact doubles), with a decimal shift of some coordinates."""
    logits = [Decimal(float(v)) for v in z]
    for i, h in (shift or {}).items():
        logits[i] += h
    return FORMULAS[loss.name](logits, k, *(Decimal(float(v)) for v in loss.hyperparameters.values()))


def derivatives(loss: losses.Loss, z: np.ndarray, k: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Value, gradient and Hessian; the differences of 300-digit numbers are exact to double precision."""
    with localcontext() as context:
        context.prec = 300  # 1e-174 at the extreme margins below, 1e-60 for a second difference, 20 digits
        h, n = Decimal("1e-30"), len(z)
        value = witness(loss, z, k)
        up = [witness(loss, z, k, {i: h}) for i in range(n)]
        down = [witness(loss, z, k, {i: -h}) for i in range(n)]
        slope = np.array([float((u - d) / (2 * h)) for u, d in zip(up, down, strict=True)])
        curve = np.empty((n, n))
        for i in range(n):
            curve[i, i] = float((up[i] - 2 * value + down[i]) / h**2)
            for j in range(i):
                both = [witness(loss, z, k, {i: s * h, j: t * h}) for s in (1, -1) for t in (1, -1)]
                curve[i, j] = curve[j, i] = float((both[0] - both[1] - both[2] + both[3]) / (4 * h**2))
        return np.longdouble(str(value)), slope, curve


def cases() -> list[Any]:
    """Every loss of the shelf with every combination of its hyperparameters' values."""
    found = []
    for name, names in losses.HYPERPARAMETERS.items():
        for values in itertools.product(*(VALUES[name][h] for h in names)):
            loss = losses.get(name, **dict(zip(names, values, strict=True)))
            found.append(pytest.param(loss, id=f"{name}-" + "-".join(f"{v:g}" for v in values)))
    return found


# one compilation a member of the shelf: hyperparameters are leaves
value_of = jax.jit(lambda loss, z, k: loss(z, k))
slope_of = jax.jit(lambda loss, z, k: jax.grad(loss)(z, k))
curve_of = jax.jit(lambda loss, z, k: jax.hessian(loss)(z, k))
convex_at = jax.jit(lambda loss, z, k: loss.convex_at(z, k))
conjugate_of = jax.jit(lambda loss, u, k: loss.conjugate(u, k))
fenchel_young_of = jax.jit(lambda loss, z, u, k: loss.fenchel_young(z, u, k))

every_loss = pytest.mark.parametrize("loss", cases())
every_name = pytest.mark.parametrize("name", losses.LOSSES)


def logits(count: int = 6, scale: float = 3.0) -> list[tuple[np.ndarray, int]]:
    """Random logits with random classes; a third of them have p_k near 0 or 1."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        z, k = scale * rng.normal(size=K), int(rng.integers(K))
        z[k] += (0, 0, 0, 0, 25, -25)[i % 6]
        found.append((z, k))
    return found


def magnified(loss: losses.Loss, z: np.ndarray) -> float:
    """Relative error of exp(-(1 + gamma) q/T) per rounding of q: what no formula in doubles can avoid."""
    known = {"gamma": 0.0, "temperature": 1.0, "margin": 0.0} | loss.hyperparameters
    largest = max(float(np.abs(z).max()), float(known["margin"]))
    return 1 + (1 + float(known["gamma"])) * max(1.0, 1 / float(known["temperature"])) * largest
