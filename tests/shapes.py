"""The checker that the tests put on the package: shapes and dtypes of arrays, and no more.

Numbers and names are left unchecked, because the package itself meets wrong ones with a ValueError and the
tests want to see that.
"""

from collections.abc import Callable
from typing import Any

from beartype import beartype

ARRAYS = ("Float[", "Int[", "Bool[")


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype on the annotations that speak of arrays."""
    if not hasattr(function, "__annotations__"):
        return function
    kept = {k: v for k, v in function.__annotations__.items() if any(a in str(v) for a in ARRAYS)}
    function.__annotations__ = kept
    return beartype(function)
