"""Trees of parameters as a few large arrays: leaves of equal shape and dtype lie in one.

A GPU launches several kernels for each array that an optimiser updates. A residual network of fifty layers
has 161 of them, most of which are small; packed, there are about thirty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ufm.deep.layers import Tree

Packed = dict[str, Array]  # stacks of the leaves of each shape and dtype


class Layout(NamedTuple):
    """How a step keeps a tree of parameters or statistics: as it is, or packed."""

    pack: Callable[[Tree], Any]
    unpack: Callable[[Any], Tree]


TREES = Layout(lambda tree: tree, lambda tree: tree)


def packing(like: Tree) -> Layout:
    """The layout in which trees like this one are packed."""
    structure = jax.tree.structure(like)
    names = [f"{leaf.dtype}{leaf.shape}" for leaf in jax.tree.leaves(like)]
    places = [names[:i].count(name) for i, name in enumerate(names)]

    def pack(tree: Tree) -> Packed:
        leaves = jax.tree.leaves(tree)
        return {
            name: jnp.stack([leaf for leaf, own in zip(leaves, names, strict=True) if own == name])
            for name in dict.fromkeys(names)
        }

    def unpack(packed: Packed) -> Tree:
        leaves = [packed[name][i] for name, i in zip(names, places, strict=True)]
        return jax.tree.unflatten(structure, leaves)

    return Layout(pack, unpack)
