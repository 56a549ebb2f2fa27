"""Several devices: batches split over them, everything else on each of them.

Under jit with sharded images XLA sums gradients and batch statistics over all devices by itself, so that a
step means the same on one device and on many.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ufm import _checks

_AXIS = "batch"


def mesh_of(devices: int | None, batch: int) -> Mesh | None:
    """A mesh of so many devices, of all processes; None for one.

    Raises:
        ValueError: more devices than there are, or a batch that they cannot share equally.
    """
    if devices is None:
        return None
    count, there = _checks.integer("devices", devices, least=1), jax.devices()
    if count > len(there):
        raise ValueError(f"devices: expected at most the {len(there)} that JAX sees, got {count}")
    if jax.process_count() > 1 and count != len(there):
        raise ValueError(
            f"devices: expected all {len(there)} of {jax.process_count()} processes, got {count}"
        )
    if batch % count:
        raise ValueError(f"batch: expected a multiple of the {count} devices, got {batch}")
    return Mesh(np.array(there[:count]), (_AXIS,)) if count > 1 else None


def split_batch(mesh: Mesh | None, x: Any, axis: int = 0) -> Any:
    """Arrays with this axis split over the devices; inside jit a constraint, outside a placement."""
    return _put(mesh, x, PartitionSpec(*[None] * axis, _AXIS))  # type: ignore[no-untyped-call]


def replicate(mesh: Mesh | None, tree: Any) -> Any:
    """Arrays held whole by every device; inside jit a constraint, outside a placement."""
    return _put(mesh, tree, PartitionSpec())  # type: ignore[no-untyped-call]


def wait_for_all(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_first(flag: bool) -> bool:
    """The flag of the first process, in all of them."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))


def _put(mesh: Mesh | None, tree: Any, spec: PartitionSpec) -> Any:
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, spec)

    def one(x: Any) -> Any:
        if isinstance(x, jax.core.Tracer):
            return jax.lax.with_sharding_constraint(x, sharding)  # type: ignore[no-untyped-call]
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(x)))
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        # every process holds the whole and hands its devices their parts: nothing is sent between them
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree)
