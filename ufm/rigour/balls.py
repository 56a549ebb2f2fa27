"""Ball arithmetic: numbers with proven error bounds, and the losses of the shelf written in them.

A ball [m +/- r] encloses every real number that it may stand for, and so does the result of every operation
(python-flint, the Arb library). A loss of the target probability p = p_k goes through the odds against it,
o = sum_{j != k} exp(z_j - z_k) = (1 - p)/p, and three functions of them: h(p), eta(p) = p h'(p) and eta'(p),

    grad L = eta (e_k - p),   Hess L = eta' p_k (e_k - p)(e_k - p)' - eta (diag p - p p').
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ufm.losses import Loss
from ufm.theory._setting import number

Ball = Any  # flint.arb: python-flint's types are not those of a dependency
Matrix = Any  # flint.arb_mat
Vector = list[Ball]


@lru_cache(maxsize=1)
def flint() -> Any:
    """The module python-flint.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("flint")
    except ImportError as error:
        raise ImportError(
            "ball arithmetic needs the package python-flint; install it with: pip install 'ufm[rigour]'"
        ) from error


def version() -> str:
    """Name and version of the library that a proof rests on."""
    module = flint()
    return f"python-flint {module.__version__} (FLINT {module.__FLINT_VERSION__})"


def ball(value: Any) -> Ball:
    """A ball around an exact number: a float (a dyadic rational), an integer or a Fraction."""
    module = flint()
    if isinstance(value, module.arb):
        return value
    if isinstance(value, Fraction):
        return module.arb(module.fmpq(value.numerator, value.denominator))
    return module.arb(int(value) if isinstance(value, int | np.integer) else float(value))


def vector(values: Iterable[Any]) -> Vector:
    """Balls around exact numbers."""
    return [ball(value) for value in values]


def matrix(values: Any) -> Matrix:
    """A matrix of balls from an array (rows, columns) of floats, integers or balls."""
    array = np.asarray(values)
    return flint().arb_mat(*array.shape, array.ravel().tolist())


def table(values: Matrix) -> np.ndarray:
    """The entries of a matrix as an object array (rows, columns)."""
    array = np.empty(values.nrows() * values.ncols(), dtype=object)
    array[:] = values.entries()
    return array.reshape(values.nrows(), values.ncols())


def middle(values: Any) -> np.ndarray:
    """The midpoints as floats, without a bound: for starts and preconditioners."""
    array = np.asarray(values)
    return np.array([float(x.mid()) for x in array.ravel().tolist()]).reshape(array.shape)


def squares(values: np.ndarray) -> Ball:
    """The sum of the squares of all entries; x ** 2 would be nan for a ball around zero."""
    return sum((x * x for x in values.ravel().tolist()), ball(0))


def norm(values: np.ndarray) -> Ball:
    """The Euclidean norm of all entries."""
    return squares(values).nonnegative_part().sqrt()


def largest(values: Iterable[Ball]) -> Ball:
    """An upper bound, exact, of the absolute values; infinite if a value is not finite."""
    return max((_finite(x).abs_upper() for x in values), default=ball(0))


def _finite(x: Ball) -> Ball:
    """`x`, or +infinity for nan, which would be lost in a comparison."""
    return x if x.is_finite() else flint().arb.pos_inf()


def row_sums(values: Matrix) -> Ball:
    """An upper bound, exact, of the operator norm with respect to the maximum norm."""
    zero = ball(0)
    return largest(sum((_finite(x).abs_upper() for x in row), zero) for row in table(values))


def below(x: Ball, bound: Ball) -> bool:
    """Whether x < bound is proved; a nan proves nothing."""
    return bool(x < bound)


# --- exact decimals -------------------------------------------------------------------------------


def fraction(x: Ball) -> Fraction:
    """The midpoint of a finite ball, exactly."""
    mantissa, exponent = x.mid().man_exp()
    m, e = int(mantissa), int(exponent)
    return Fraction(m * 2**e) if e >= 0 else Fraction(m, 2**-e)


def decimal_above(x: Ball, digits: int) -> str:
    """A decimal number of that many significant digits, at least the upper end of the ball."""
    return _decimal(x.upper(), digits, math.ceil)


def decimal_below(x: Ball, digits: int) -> str:
    """A decimal number of that many significant digits, at most the lower end of the ball."""
    return _decimal(x.lower(), digits, math.floor)


def _decimal(end: Ball, digits: int, toward: Callable[[Fraction], int]) -> str:
    """Rounded in integers: no floating conversion stands between the bound and what is printed."""
    if not end.is_finite():
        return str(float(end))
    exact = fraction(end)
    if exact == 0:
        return "0"
    size = math.floor(math.log10(abs(exact.numerator)) - math.log10(exact.denominator))
    size += int(abs(exact) >= Fraction(10) ** (size + 1)) - int(abs(exact) < Fraction(10) ** size)
    unit = Fraction(10) ** (size - digits + 1)
    scaled = toward(exact / unit)
    sign, figures = ("-" if scaled < 0 else ""), str(abs(scaled)).rjust(digits, "0")
    exponent = size + len(figures) - digits
    if -5 <= exponent < digits:
        shift = figures if exponent >= 0 else "0" * -exponent + figures
        cut = max(exponent, 0) + 1
        return f"{sign}{shift[:cut]}.{shift[cut:]}".rstrip(".")
    return f"{sign}{figures[0]}.{figures[1:]}".rstrip(".") + f"e{exponent:+03d}"


# --- losses ---------------------------------------------------------------------------------------


class BallLoss(NamedTuple):
    """A loss of one logit vector with two derivatives; the profile where it is shift-invariant."""

    value: Callable[[Vector, int], Ball]
    gradient: Callable[[Vector, int], Vector]
    hessian: Callable[[Vector, int], list[Vector]]
    profile: Callable[[Ball, int], tuple[Ball, Ball]] | None  # (l(a), l'(a)) at margin a among K classes
    tilt: Ball  # l(a) >= tilt (K-1)/K a


class Odds(NamedTuple):
    """h(p), eta(p) = p h'(p) and eta'(p), as functions of the odds o = (1-p)/p."""

    h: Callable[[Ball], Ball]
    eta: Callable[[Ball], Ball]
    eta_slope: Callable[[Ball], Ball]


def _ce_odds() -> Odds:
    return Odds(lambda o: o.log1p(), lambda o: ball(-1), lambda o: ball(0))


def _fl_odds(g: Ball) -> Odds:
    """h = -(1-p)^g log p, with -log p = log(1 + o) and 1-p = o/(1 + o)."""

    def power(o: Ball, less: int) -> Ball:
        return (o / (1 + o)) ** (g - less)

    def eta(o: Ball) -> Ball:
        return -power(o, 1) * (o + g * o.log1p()) / (1 + o)

    def eta_slope(o: Ball) -> Ball:
        p = 1 / (1 + o)
        return g * power(o, 2) * (2 * o * p - (1 - g * p) * o.log1p())

    return Odds(lambda o: power(o, 0) * o.log1p(), eta, eta_slope)


def _softmax(z: Vector, k: int) -> tuple[Ball, Vector]:
    """The odds against class k, and the probabilities."""
    weights = [(x - z[k]).exp() if j != k else ball(0) for j, x in enumerate(z)]
    odds = sum(weights, ball(0))
    return odds, [w / (1 + odds) if j != k else 1 / (1 + odds) for j, w in enumerate(weights)]


def _of_p(f: Odds, tilt: Ball) -> BallLoss:
    """h(p_k) + tilt (z_k - mean z)."""

    def value(z: Vector, k: int) -> Ball:
        return f.h(_softmax(z, k)[0]) + tilt * (z[k] - sum(z, ball(0)) / len(z))

    def gradient(z: Vector, k: int) -> Vector:
        odds, p = _softmax(z, k)
        eta, share = f.eta(odds), tilt / len(z)
        return [
            eta * odds / (1 + odds) + tilt - share if j == k else -eta * q - share for j, q in enumerate(p)
        ]

    def hessian(z: Vector, k: int) -> list[Vector]:
        odds, p = _softmax(z, k)
        eta, bend = f.eta(odds), f.eta_slope(odds) * p[k]
        away = [odds / (1 + odds) if j == k else -q for j, q in enumerate(p)]  # e_k - p
        return [
            [
                bend * away[i] * away[j] - eta * (p[i] * (1 - p[i]) if i == j else -p[i] * p[j])
                for j in range(len(z))
            ]
            for i in range(len(z))
        ]

    def profile(a: Ball, K: int) -> tuple[Ball, Ball]:
        odds, lift = (K - 1) * (-a).exp(), tilt * (K - 1) / K
        return f.h(odds) + lift * a, f.eta(odds) * odds / (1 + odds) + lift

    return BallLoss(value, gradient, hessian, profile, tilt)


def _mse(kappa: Ball, beta: Ball) -> BallLoss:
    def weight(j: int, k: int) -> Ball:
        return kappa if j == k else ball(1)

    def residuals(z: Vector, k: int) -> Vector:
        return [x - beta if j == k else x for j, x in enumerate(z)]

    def value(z: Vector, k: int) -> Ball:
        return sum((weight(j, k) * x * x for j, x in enumerate(residuals(z, k))), ball(0))

    def gradient(z: Vector, k: int) -> Vector:
        return [2 * weight(j, k) * x for j, x in enumerate(residuals(z, k))]

    def hessian(z: Vector, k: int) -> list[Vector]:
        return [[2 * weight(j, k) if i == j else ball(0) for j in range(len(z))] for i in range(len(z))]

    return BallLoss(value, gradient, hessian, None, ball(0))


def _exact(loss: Loss, name: str) -> Ball:
    return ball(number(name, getattr(loss, name)))


#: By the name of the loss: a user's function cannot be evaluated on balls.
BALLS: dict[str, Callable[[Loss], BallLoss]] = {
    "ce": lambda loss: _of_p(_ce_odds(), ball(0)),
    "ls": lambda loss: _of_p(_ce_odds(), _exact(loss, "alpha")),
    "fl": lambda loss: _of_p(_fl_odds(_exact(loss, "gamma")), ball(0)),
    "mse": lambda loss: _mse(_exact(loss, "kappa"), _exact(loss, "beta")),
}


def loss_in_balls(loss: Loss) -> BallLoss:
    """The loss in ball arithmetic.

    Raises:
        ValueError: a user's loss.
    """
    if loss.name not in BALLS:
        raise ValueError(
            f"loss: expected one of {', '.join(BALLS)} for a proof, got {loss!r}: a user's function is "
            "evaluated in floating point only, which proves nothing"
        )
    return BALLS[loss.name](loss)


# --- columns that agree ---------------------------------------------------------------------------


def distinct(labels: Sequence[int], *columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples with the same label and bitwise the same columns: one index each, the count, and whose it is.

    The objective depends on such samples through their number alone, so that nothing is approximated.
    """
    seen: dict[Any, int] = {}
    first: list[int] = []
    owner = np.empty(len(labels), dtype=int)
    for j, label in enumerate(labels):
        key = (int(label), *(tuple(c[:, j].tolist()) for c in columns))
        if key not in seen:
            seen[key] = len(first)
            first.append(j)
        owner[j] = seen[key]
    return np.array(first), np.bincount(owner), owner
