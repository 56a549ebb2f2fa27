"""A user's function with what the user declares about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax import Array
from jax.typing import ArrayLike

from ufm import _checks
from ufm._pytree import pytree_dataclass, static
from ufm.losses._base import Loss


@pytree_dataclass
class Custom(Loss):
    """A user's function `function(z, k)` with what the user declares about it.

    `convex`, `shift_invariant` and `infimum` are promises: the certificate and the class-mean reduction
    rest on them and cannot check them. `theory.contrastive_property` tests them numerically.

    The function may read globals, attributes and arrays, and they may change: every call of this package
    traces it again, in about 2 ms, and compiles only what it has not compiled before. Numbers that Python
    computes are part of the compiled program; arrays are inputs of it. Where the function calls a jitted
    function, or a loop or branch whose body is defined outside of it, a trace takes about 10 ms, and JAX
    keeps some 60 kB of each until `jax.clear_caches()`. What you put into `jax.jit` yourself is yours:
    `jax.jit(prob)` keeps the loss of its first call, `jax.jit(lambda prob, params: prob(params))` does not.
    """

    function: Callable[[Array, Any], Array] = static()
    convex: bool = static(default=False)
    shift_invariant: bool = static(default=False)
    infimum: float = static(default=0.0)

    name = "custom"
    title = "custom loss"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(f"loss: expected a function loss(z, k), got {self.function!r}")
        object.__setattr__(self, "infimum", float(_checks.real("infimum", self.infimum)))

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        return self.function(z, k)

    def __repr__(self) -> str:
        return f"custom loss {getattr(self.function, '__name__', self.function)!s}"


def custom(
    function: Callable[[Array, Any], Array],
    *,
    convex: bool = False,
    shift_invariant: bool = False,
    infimum: float = 0.0,
) -> Custom:
    """Any function `loss(z, k)` with declared facts (see `Custom`); undeclared means not relied on."""
    return Custom(function, convex, shift_invariant, infimum)
