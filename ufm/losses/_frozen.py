"""A user's loss as a traced program: checked, and fit to be compiled and cached.

The user's function may read what changes later (`ufm._program`), so that compiled programs and caches must
not hold the function itself. A loss of the shelf computes what its leaves say and needs none of this.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from ufm._program import Program, contents, trace, unwrapped
from ufm._pytree import pytree_dataclass, replace, static
from ufm.losses._base import DERIVED, Loss, stated
from ufm.losses._custom import Custom
from ufm.losses._weighted import Weighted, exchanged_inside

T = TypeVar("T")


class _Source:
    """The loss that was frozen: equal to any other, because the program says all that is computed."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Source)

    def __hash__(self) -> int:
        return 0


@pytree_dataclass
class Frozen(Loss):
    """A user's loss as it is at one moment, for K logits: what compiled programs and caches hold of it.

    Its arrays are leaves here, so that new values in them compile nothing. Facts that compiled code reads are
    part of the structure; whatever else the user's loss states is asked of it.
    """

    leaves: Any  # hyperparameters of a user's own class of losses
    constants: Any  # arrays that the function closes over
    program: Program = static()
    tree: Any = static()  # of the leaves; None: there are none
    origin: _Source = static()
    title: str = static()
    convex: bool = static()
    shift_invariant: bool = static()
    infimum: float = static()
    K: int = static()

    @property
    def given(self) -> Loss:
        """The loss that was frozen, with the leaves that are here."""
        return self.origin.loss if self.tree is None else self.tree.unflatten(self.leaves)

    def __call__(self, z: Array, k: ArrayLike) -> Array:
        arguments = (*self.leaves, z, k)
        if not self.program.fits(*arguments):  # such as hyperparameters that were a batch when it was frozen
            return self.given(z, k)
        return self.program(self.constants, *arguments).astype(z.dtype)

    def _contents(self) -> tuple[Any, ...]:
        arrays = tuple(contents([*self.leaves, *self.constants]))
        return self.program, self.tree, self.title, self.convex, self.shift_invariant, self.infimum, arrays

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frozen) and self._contents() == other._contents()

    def __hash__(self) -> int:
        return hash(self._contents())

    def __repr__(self) -> str:
        return repr(self.given)


_FIELDS = {field.name for field in dataclasses.fields(Frozen)}
for _name in {*stated(), *DERIVED} - _FIELDS - {"pure", "by_column", "columns"}:
    setattr(Frozen, _name, property(attrgetter(f"given.{_name}")))


def frozen(loss: T, K: int, dtype: DTypeLike | None = None) -> T | Frozen:
    """`loss` as it is now, fit to be compiled for logits (K,); a loss of the shelf is that already.

    A loss whose leaves are a batch, which `vmap` will take apart, cannot be traced and is returned as it is.

    Raises:
        ValueError: it cannot be traced, or does not return a real scalar.
    """
    if isinstance(loss, Weighted):
        return cast(T, exchanged_inside(loss, frozen(loss.loss, K, dtype)))
    if isinstance(loss, Frozen) or not isinstance(loss, Loss) or type(loss).pure:
        return loss
    try:
        return _traced(loss, K, dtype)
    except _UntraceableError:
        if _leaves(loss)[0]:
            return loss
        raise


class _NoScalarError(ValueError):
    """Raised while JAX traces, so that it can be distinguished from what the function itself raises."""


class _UntraceableError(ValueError):
    """The user's function raised this while JAX traced it."""


def _leaves(loss: Loss) -> tuple[list[Any], Any]:
    """Leaves and their tree; the tree is None where the loss is no pytree or has no leaves."""
    leaves, tree = jax.tree.flatten(loss)
    return ([], None) if not leaves or leaves[0] is loss else (leaves, tree)


def _traced(loss: Loss, K: int, dtype: DTypeLike | None) -> Frozen:
    leaves, tree = _leaves(loss)
    function = unwrapped(loss.function) if isinstance(loss, Custom) else loss

    def given(values: list[Any]) -> Any:
        return function if tree is None else tree.unflatten(values)

    def value(values: list[Any], z: Array, k: Array) -> Any:
        return _checked_scalar(loss, given(values)(z, k))

    def conjugates(values: list[Any], z: Array, k: Array) -> Any:
        return given(values).conjugate(z, k), given(values).fenchel_young(z, z, k), given(values).targets(K)

    def convex_at(values: list[Any], z: Array, k: Array) -> Any:
        return given(values).convex_at(z, k)

    also = [conjugates] if loss.has_conjugate else []
    also += [convex_at] if type(loss).convex_at is not Loss.convex_at else []
    z, k = np.zeros(K, dtype or jnp.result_type(float)), np.zeros((), jnp.result_type(int))
    try:
        program, constants = trace(value, leaves, z, k, also=also)
    except _NoScalarError:
        raise
    except Exception as error:
        raise _UntraceableError(
            f"loss: {loss!r} failed when traced by JAX with logits of shape ({K},) and an integer class "
            f"({type(error).__name__}: {error}); write it with jax.numpy and no Python branches on values"
        ) from error
    return Frozen(
        leaves=leaves,
        constants=constants,
        program=program,
        tree=tree,
        origin=_Source(loss),
        title=loss.title,
        convex=loss.convex,
        shift_invariant=loss.shift_invariant,
        infimum=loss.infimum,
        K=K,
    )


def _checked_scalar(loss: Loss, out: Any) -> Any:
    """`out` if it is a real scalar."""
    dtype = getattr(out, "dtype", type(out))
    if getattr(out, "shape", ()) == () and dtype in (
        float,
        jnp.float32,
        jnp.float64,
        jnp.float16,
        jnp.bfloat16,
    ):
        return out
    got = f"shape {out.shape}, dtype {out.dtype}" if hasattr(out, "shape") else type(out).__name__
    raise _NoScalarError(f"loss: expected a real scalar for one logit vector, got {got} from {loss!r}")


def exchanged(loss: Loss, **hyperparameters: Any) -> Loss:
    """`loss` with other hyperparameters, unchecked."""
    if not hyperparameters:
        return loss
    if isinstance(loss, Weighted):
        return exchanged_inside(loss, exchanged(loss.loss, **hyperparameters))
    if isinstance(loss, Frozen):
        return frozen(replace(loss.given, **hyperparameters), loss.K)
    return replace(loss, **hyperparameters)


@jax.jit
def _two_derivatives(loss: Loss, z: Array) -> tuple[Array, Array, Array]:
    def of_class_0(z: Array) -> Array:
        return loss(z, 0)

    return of_class_0(z), jax.grad(of_class_0)(z), jax.hessian(of_class_0)(z)


def check(loss: Loss, K: int) -> Loss:
    """`loss` as it is now (`frozen`), if it is a finite, differentiable scalar function of (z, k).

    Raises:
        ValueError: naming `loss`, what it returned and what is expected.
    """
    now = frozen(loss, K)
    if not isinstance(now, Frozen):
        if not type(loss).pure and not any(np.ndim(leaf) for leaf in _leaves(loss)[0]):
            _traced(loss, K, None)  # not a batch: raises what was wrong
        return now
    z = np.linspace(-1.0, 1.0, K, dtype=jnp.result_type(float))  # not a tracer, wherever this is called
    try:
        with jax.ensure_compile_time_eval():  # a problem may be built inside a function that JAX traces
            value, slope, curve = _two_derivatives(now, z)
    except Exception as error:
        raise ValueError(
            f"loss: {loss!r} is not differentiable by JAX ({type(error).__name__}: {error})"
        ) from error
    for what, array in (("value", value), ("gradient", slope), ("Hessian", curve)):
        if not isinstance(array, jax.core.Tracer) and not np.isfinite(array).all():
            raise ValueError(
                f"loss: expected a finite {what} at logits linspace(-1, 1, {K}), got {array} from {loss!r}"
            )
    return now
