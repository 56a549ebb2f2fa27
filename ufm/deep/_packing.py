"""Trees of parameters as a few large arrays: vectors end to end, other leaves of equal shape on one another.

A GPU launches several kernels for each array that an optimiser updates. A residual network of fifty layers
has 161 of them, most of which are small; packed, there are 22.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from ufm.deep.layers import Tree

Packed = dict[str, Array]  # the vectors of each dtype, and stacks of the leaves of each other shape and dtype


def same(piece: Array) -> Array:
    """No change."""
    return piece


class Unpack(Protocol):
    """The tree of the leaves, each changed (with a first axis of length one, unless it is a vector)."""

    def __call__(self, packed: Any, change: Callable[[Array], Array] = same) -> Tree: ...


class Layout(NamedTuple):
    """How a step keeps a tree of parameters or statistics: as it is, or packed."""

    pack: Callable[[Tree], Any]
    unpack: Unpack


def _changed(packed: Any, change: Callable[[Array], Array] = same) -> Tree:
    changed: Tree = jax.tree.map(change, packed)
    return changed


TREES = Layout(lambda tree: tree, _changed)


def packing(like: Tree) -> Layout:
    """The layout in which trees like this one are packed."""
    leaves, structure = jax.tree.flatten(like)
    names = [f"{leaf.dtype}{leaf.shape if leaf.ndim > 1 else ''}" for leaf in leaves]

    def pack(tree: Tree) -> Packed:
        pieces = [leaf if leaf.ndim == 1 else leaf[None] for leaf in jax.tree.leaves(tree)]
        return {
            name: jnp.concatenate([piece for piece, own in zip(pieces, names, strict=True) if own == name])
            for name in dict.fromkeys(names)
        }

    def unpack(packed: Packed, change: Callable[[Array], Array] = same) -> Tree:
        start, own = dict.fromkeys(packed, 0), []
        for leaf, name in zip(leaves, names, strict=True):
            stop = start[name] + (len(leaf) if leaf.ndim == 1 else 1)
            # changed before the first axis goes: XLA then takes the leaves out and changes them in one kernel
            own.append(change(packed[name][start[name] : stop]).reshape(leaf.shape))
            start[name] = stop
        return jax.tree.unflatten(structure, own)

    return Layout(pack, unpack)
