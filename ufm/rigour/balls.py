"""Ball arithmetic: numbers with proven error bounds.

A ball [m +/- r] encloses every real number that it may stand for, and so does the result of every operation
(python-flint, the Arb library). A loss writes itself in balls, `Loss.in_balls`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from ufm.losses import LOSSES, Loss
from ufm.losses._closed import Ball as Ball
from ufm.losses._closed import BallLoss as BallLoss
from ufm.losses._closed import Vector as Vector

Matrix = Any  # flint.arb_mat


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


def loss_in_balls(loss: Loss) -> BallLoss:
    """The loss in ball arithmetic.

    Raises:
        ValueError: a loss that does not state itself in balls, such as a user's function.
    """
    found = loss.in_balls(ball)
    if found is None:
        known = [name for name, make in LOSSES.items() if make().in_balls(ball) is not None]
        raise ValueError(
            f"loss: expected one of {', '.join(known)} for a proof, got {loss!r}: a user's function is "
            "evaluated in floating point only, which proves nothing"
        )
    return found


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
