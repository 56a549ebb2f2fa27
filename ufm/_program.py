"""What a user's function computes now, as data: compiled code and caches hold this, never the function.

A function may read globals, attributes, closures and arrays, and all of them can change while the function
stays the same object. Its trace shows what it reads at this moment. The trace is therefore both the key under
which a compiled program is stored and the program that is compiled.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from jax.extend import core

#: JAX keeps the trace of a jitted function, and of the body of a loop or branch, for as long as that function
#: lives. Under a new value of this context it traces them again.
_anew = jax.make_user_context(None)  # type: ignore[no-untyped-call]
_count = itertools.count()
_JAX = f" at {os.path.dirname(jax.__file__)}"
_JITTED = type(jax.jit(lambda: None))


def _core() -> ModuleType:
    """`jax.extend.core`, imported when a user's function is first read, because it imports much else."""
    from jax.extend import core

    return core


class Program:
    """A traced function. Two are equal if they do the same operations on the same inputs."""

    def __init__(self, jaxpr: core.Jaxpr, text: str) -> None:
        self.jaxpr, self.text = jaxpr, text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def _inputs(self) -> list[Any]:
        return [var.aval for var in self.jaxpr.invars]

    def fits(self, *arguments: Any) -> bool:
        """Whether these are of the shapes that were traced."""
        return [np.shape(x) for x in arguments] == [aval.shape for aval in self._inputs]

    def __call__(self, constants: Sequence[Any], *arguments: Any) -> Any:
        """The value at arguments of the traced shapes; they are converted to the traced dtypes."""
        cast = [_as(x, aval.dtype) for x, aval in zip(arguments, self._inputs, strict=True)]
        core = _core()
        (value,) = core.jaxpr_as_fun(core.ClosedJaxpr(self.jaxpr, list(constants)))(*cast)
        return value


def _as(x: Any, dtype: Any) -> Any:
    return x if getattr(x, "dtype", None) == dtype else jax.numpy.asarray(x, dtype)


def trace(
    function: Callable[..., Any], *arguments: Any, also: Sequence[Callable[..., Any]] = ()
) -> tuple[Program, tuple[Any, ...]]:
    """The program of `function(..., z, k)` for such arguments, and the arrays that it closes over.

    `also`: functions of the same arguments that compiled code calls beside it: they make programs differ too.
    """
    parts = [_traced(f, arguments) for f in (function, *also)]
    own = dict(_own_traces(parts[0].jaxpr))
    if "custom" in "".join(own.values()):  # derivatives that the user wrote are functions of the user's too
        also = [*also, jax.hessian(function, argnums=len(arguments) - 2)]
        parts.append(_traced(also[-1], arguments))
    if own and _are_kept(function, arguments, parts[0]):
        with _anew(next(_count)):
            parts = [_traced(f, arguments) for f in (function, *also)]
    program = Program(parts[0].jaxpr, _text(parts))
    # an inner array may be a numpy array of the user's, who may change it: such a program is not kept
    kept = program if any(True for _ in _inner_constants(program.jaxpr)) else _first(program)
    return kept, _constants(parts[0])


@lru_cache(maxsize=64)
def _first(program: Program) -> Program:
    """The first of equal programs, so that JAX finds what it compiled for the parts of it."""
    return program


def unwrapped(function: Any) -> Any:
    """The function inside `jax.jit`, whose cached trace would hide what has changed since."""
    while isinstance(function, _JITTED):
        function = function.__wrapped__  # type: ignore[attr-defined]
    return function


def _traced(function: Callable[..., Any], arguments: Sequence[Any]) -> core.ClosedJaxpr:
    return jax.make_jaxpr(lambda *x: function(*x))(*arguments)  # a new function: JAX has no trace of it yet


def _own_traces(jaxpr: core.Jaxpr) -> Iterator[tuple[int, str]]:
    """Inner traces of functions not of JAX's own: identity of trace or operation, name of the caller."""
    for eqn in jaxpr.eqns:
        for inner in _core().jaxprs_in_params(eqn.params):
            if _JAX not in str(getattr(inner.debug_info, "func_src_info", "")):
                yield from ((id(part), eqn.primitive.name) for part in (inner, *inner.eqns))
            yield from _own_traces(inner)


def _are_kept(function: Callable[..., Any], arguments: Sequence[Any], found: core.ClosedJaxpr) -> bool:
    """Whether JAX hands out an inner trace that it has made before; that of a function defined again is new.

    It is worth a second trace, because what is traced in a new context stays in JAX's memory.
    """
    again = _traced(function, arguments)
    return not dict(_own_traces(found.jaxpr)).keys().isdisjoint(dict(_own_traces(again.jaxpr)))


def _text(parts: Sequence[core.ClosedJaxpr]) -> str:
    """The operations in words, with the contents of the arrays that are part of them."""
    first, *others = parts
    texts = [str(first.jaxpr), *contents(_inner_constants(first.jaxpr))]
    for part in others:
        texts += [str(part.jaxpr), *contents(part.consts), *contents(_inner_constants(part.jaxpr))]
    return "\n".join(texts)


def _inner_constants(jaxpr: core.Jaxpr) -> Iterator[Any]:
    """Arrays that nested functions close over; the printed operations do not show them."""
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                yield from getattr(part, "consts", ())
        for inner in _core().jaxprs_in_params(eqn.params):
            yield from _inner_constants(inner)


def contents(values: Any) -> Iterator[str]:
    """Equal for equal arrays; what is not known yet (a tracer) is equal to itself only."""
    for value in values:
        try:
            array = np.asarray(value)
        except (TypeError, jax.errors.TracerArrayConversionError):
            yield f"{type(value).__name__} {id(value)}"
        else:
            yield f"{array.dtype}{array.shape} {hashlib.blake2b(array.tobytes()).hexdigest()}"


def _constants(found: core.ClosedJaxpr) -> tuple[Any, ...]:
    """As they are now: numpy arrays are copied, because they may be changed in place."""
    return tuple(c if isinstance(c, jax.Array) else np.array(c) for c in found.consts)
