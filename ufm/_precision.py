"""Double precision for what needs it, whatever precision the user has chosen for JAX.

With UFM_ENABLE_X64=0 problems are solved in float32. Whether an eigenvalue is zero, two critical points are
one or a margin solves its equation is decided at 1e-9 to 1e-12 of the numbers' size, which float32 cannot
tell from rounding: theory and landscape therefore compute in float64 always.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

P = ParamSpec("P")
T = TypeVar("T")


def is_double() -> bool:
    """Whether JAX computes in float64 here: by the user's choice, or inside a function of `in_float64`."""
    return jnp.result_type(float) == np.float64


def in_float64(function: Callable[P, T]) -> Callable[P, T]:
    """`function` in float64.

    Where JAX is in 32 bits its floating arguments are widened, and its result has arrays of numpy: JAX warns
    at every use of a float64 array of its own in 32 bits, and takes numpy's as it takes any.
    """

    @functools.wraps(function)
    def wide(*args: P.args, **kwargs: P.kwargs) -> T:
        if is_double():
            return function(*args, **kwargs)
        with jax.enable_x64(True):
            args, kwargs = _exchanged((args, kwargs), _is_narrow, lambda x: np.asarray(x, np.float64))
            found: T = _exchanged(function(*args, **kwargs), _is_jax, np.asarray)
            return found

    return wide


def _exchanged(tree: Any, wrong: Callable[[Any], bool], mend: Callable[[Any], Any]) -> Any:
    """`tree` with its `wrong` leaves mended; branches without any stay the objects that they are.

    JAX rebuilds a NamedTuple from its fields alone, without what a subclass of it has besides.
    """

    def right(branch: Any) -> bool:
        return not any(wrong(leaf) for leaf in jax.tree.leaves(branch))

    return jax.tree.map(lambda x: x if right(x) else mend(x), tree, is_leaf=right)


def _is_narrow(leaf: Any) -> bool:
    array = isinstance(leaf, jax.Array | np.ndarray)
    return array and jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 8


def _is_jax(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array)
