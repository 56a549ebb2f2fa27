"""Frozen dataclasses as pytrees: validated where a user builds one, never while JAX rebuilds one."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def static(default: Any = dataclasses.MISSING) -> Any:
    """A field that is part of the tree's structure: changing it causes a new compilation."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass whose fields are leaves, except those declared with `static()`.

    `__post_init__`, or an `__init__` of its own, validates. Unflattening skips it, so that tracers, None and
    JAX's placeholder objects may stand in any leaf. A class may define `_flat`: the record that JAX sees
    instead of this one.
    """
    own = cls.__dict__
    cls = dataclasses.dataclass(
        frozen=True, eq=False, repr=cls.__repr__ is object.__repr__, init="__init__" not in own
    )(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    data = tuple(f.name for f in fields if not f.metadata.get("static", False))
    meta = tuple(f.name for f in fields if f.metadata.get("static", False))

    flat = getattr(cls, "_flat", lambda node: node)

    def flatten_with_keys(node: T) -> tuple[Any, Any]:
        node = flat(node)
        keyed = [(jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in data]
        return keyed, tuple(getattr(node, name) for name in meta)

    def flatten(node: T) -> tuple[Any, Any]:
        node = flat(node)
        return [getattr(node, name) for name in data], tuple(getattr(node, name) for name in meta)

    def unflatten(aux: Any, children: Any) -> T:
        node = object.__new__(cls)
        for name, value in zip(data + meta, (*children, *aux), strict=True):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def replace(node: T, **changes: Any) -> T:
    """A copy of a pytree dataclass with some fields exchanged, without validation."""
    copy = object.__new__(type(node))
    for f in dataclasses.fields(node):  # type: ignore[arg-type]
        object.__setattr__(copy, f.name, changes.pop(f.name, getattr(node, f.name)))
    if changes:
        raise TypeError(f"{type(node).__name__} has no field {', '.join(changes)}")
    return copy
