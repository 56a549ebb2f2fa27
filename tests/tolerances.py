"""What the tests share: one tolerance policy, from the dtype, one time limit, and a count of traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

#: Seconds after which another process counts as hung. It only ends a hang: the slowest takes two minutes on a
#: quiet machine, and a busy one may be ten times slower.
HANG = 3600


def eps(*arrays: Any) -> float:
    """Machine epsilon of the coarsest floating dtype among the arrays."""
    dtypes = [np.asarray(a).dtype for a in arrays]
    return max((float(np.finfo(t).eps) for t in dtypes if t.kind == "f"), default=float(np.finfo(float).eps))


def close(actual: Any, expected: Any, *, ulps: float = 16.0, scale: Any = None, name: str = "") -> None:
    """|actual - expected| <= ulps eps scale, entry by entry; `scale` defaults to the largest |expected|.

    `ulps` counts the roundings that the computation may accumulate. `scale` is the size of what was added
    up: pass it where that is larger than the result (a cancellation that the mathematics makes inevitable).
    """
    a, b = np.asarray(actual, dtype=np.longdouble), np.asarray(expected, dtype=np.longdouble)
    assert a.shape == b.shape, f"{name}: shape {a.shape}, expected {b.shape}"
    assert np.isfinite(a).all(), f"{name}: not finite: {a}"
    size = np.max(np.abs(b), initial=0.0) if scale is None else np.asarray(scale, dtype=np.longdouble)
    allowed = ulps * eps(actual, expected) * size
    error = np.abs(a - b)
    worst = np.max(error - allowed, initial=-np.inf)
    assert worst <= 0, f"{name}: error {np.max(error):.3e} > {np.max(allowed):.3e}\n{actual}\n{expected}"


class Traced:
    """A jitted function that counts how often JAX traced it: once a compilation."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.count = 0

        def counted(*args: Any) -> Any:
            self.count += 1
            return function(*args)

        self._jitted = jax.jit(counted)

    def __call__(self, *args: Any) -> Any:
        return self._jitted(*args)
