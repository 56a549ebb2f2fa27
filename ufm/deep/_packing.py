"""Trees of parameters as a few large arrays: vectors end to end, other leaves of equal size on one another.

A GPU launches several kernels for each array that an optimiser updates. A residual network of fifty layers
has 161 of them, most of which are small; packed, there are 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from ufm.deep.layers import Tree

#: for each dtype: all vectors, the matrices of each size as rows, stacks of the other leaves of each shape
Packed = dict[str, Array]


def same(piece: Array, ndim: int) -> Array:
    """No change."""
    return piece


class Unpack(Protocol):
    """The tree of the leaves; `change` is applied to the elements of each and its number of axes."""

    def __call__(self, packed: Any, change: Callable[[Array, int], Array] = same) -> Tree: ...


class Layout(NamedTuple):
    """How a step keeps a tree of parameters or statistics: as it is, or packed."""

    pack: Callable[[Tree], Any]
    unpack: Unpack


def _changed(packed: Any, change: Callable[[Array, int], Array] = same) -> Tree:
    changed: Tree = jax.tree.map(lambda leaf: change(leaf, leaf.ndim), packed)
    return changed


TREES = Layout(lambda tree: tree, _changed)


def packing(like: Tree) -> Layout:
    """The layout in which trees like this one are packed."""
    leaves, structure = jax.tree.flatten(like)
    shapes = [_piece(leaf.shape) for leaf in leaves]
    names = [f"{leaf.dtype}{shape[1:] or ''}" for leaf, shape in zip(leaves, shapes, strict=True)]

    def pack(tree: Tree) -> Packed:
        pieces = [leaf.reshape(shape) for leaf, shape in zip(jax.tree.leaves(tree), shapes, strict=True)]
        return {
            name: jnp.concatenate([piece for piece, own in zip(pieces, names, strict=True) if own == name])
            for name in dict.fromkeys(names)
        }

    def unpack(packed: Packed, change: Callable[[Array, int], Array] = same) -> Tree:
        start, own = dict.fromkeys(packed, 0), []
        for leaf, name, shape in zip(leaves, names, shapes, strict=True):
            # changed before it gets its shape: XLA then takes the leaves out and changes them in one kernel
            piece = change(packed[name][start[name] : start[name] + shape[0]], leaf.ndim)
            own.append(piece.reshape(leaf.shape))
            start[name] += shape[0]
        return jax.tree.unflatten(structure, own)

    return Layout(pack, unpack)


def _piece(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How a leaf of this shape lies in its pack: a vector, a matrix as a row, or a stack of matrices."""
    if len(shape) == 1:
        return shape
    return (1, math.prod(shape)) if math.prod(shape[:-2]) == 1 else (1, *shape)
