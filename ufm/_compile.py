"""`jit` for programs that are compiled once and run a few times, so that compiling takes most of their time.

On a CPU, XLA's fusion emitters take half of the time to compile a solver and make it a tenth faster at K=10,
d=64, n=10, and a quarter at n=100, because without them a kernel that writes where it reads is not vectorised
(1.3 s of processor time to compile against 2.7 s; JAX 0.10.2). From JAX 0.11.1 on there is no choice.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

#: options of XLA's CPU backend
QUICK: Mapping[str, Any] = {"xla_cpu_use_fusion_emitters": False}
#: XLA's own options, which a block of `instantly` replaces
USUAL: Mapping[str, Any] = {}
#: everything that makes a program faster, for one that runs often; registers of 512 bits where there are any
THOROUGH: Mapping[str, Any] = {"xla_cpu_prefer_vector_width": 512}
#: no optimisation at all: for small programs that run once
INSTANT: Mapping[str, Any] = {"xla_backend_optimization_level": 0} | dict(QUICK)

#: Options that replace those of every program, or None. They hold for the whole process, because sweeps
#: compile in threads of their own.
_replaced: Mapping[str, Any] | None = None


@contextlib.contextmanager
def instantly() -> Iterator[None]:
    """Within the block, `jit` compiles without optimisation: for work whose programs run a few times each."""
    global _replaced
    before, _replaced = _replaced, INSTANT
    try:
        yield
    finally:
        _replaced = before


def jit(
    function: Callable[..., Any], *, static_argnames: tuple[str, ...] = (), options: Mapping[str, Any] = QUICK
) -> Callable[..., Any]:
    """`jax.jit` with compiler options that hold on a CPU; elsewhere XLA's defaults.

    The backend is asked for at the first call, because asking starts it. JAX takes compiler options at the
    outermost jit alone: the result cannot be called inside a function that JAX traces.
    """

    @functools.cache
    def compiled(chosen: frozenset[tuple[str, Any]]) -> Callable[..., Any]:
        on_cpu = jax.default_backend() == "cpu"
        given = dict(chosen) if on_cpu else None
        return jax.jit(function, static_argnames=static_argnames, compiler_options=given)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        wanted = _replaced or options
        known = frozenset((name, value) for name, value in wanted.items() if name not in _REFUSED)
        try:
            return compiled(known)(*args, **kwargs)
        except jax.errors.JaxRuntimeError as error:
            unknown = {name for name in wanted if name in str(error)} - _REFUSED
            if not unknown:
                raise
        _REFUSED.update(unknown)  # this version of XLA does not have them
        return call(*args, **kwargs)

    return call


_REFUSED: set[str] = set()
