"""Several devices: batches are split over them, everything else is replicated.

Under jit with sharded images XLA sums gradients and batch statistics over all devices, so that a step gives
the same result on one device and on many.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ufm import _checks

T = TypeVar("T")

_AXIS = "batch"


#: images of a batch that a CPU device has at least
SHARE = 32


def of_cpu(batch: int) -> int | None:
    """The number of CPU devices among which a batch is best split; None where JAX computes on another device.

    Each device costs a copy of the images and of the parameters, and a few images do not keep it busy.
    """
    if jax.default_backend() != "cpu":
        return None
    shares = range(2, jax.device_count() + 1)
    return max((n for n in shares if batch % n == 0 and batch >= n * SHARE), default=1)


def mesh_of(devices: int | None, batch: int) -> Mesh | None:
    """A mesh of this number of devices, of all processes; None for one device.

    Raises:
        ValueError: more devices than JAX sees, or a batch that is not a multiple of their number.
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


def split_batch(mesh: Mesh | None, x: T, axis: int = 0) -> T:
    """Split this axis of arrays over the devices: a constraint inside jit, a placement outside."""
    return _put(mesh, x, PartitionSpec(*[None] * axis, _AXIS))  # type: ignore[no-untyped-call]


def replicate(mesh: Mesh | None, tree: T) -> T:
    """Replicate arrays on every device: a constraint inside jit, a placement outside."""
    return _put(mesh, tree, PartitionSpec())  # type: ignore[no-untyped-call]


def wait_for_all(name: str) -> None:
    """Wait until every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_first(flag: bool) -> bool:
    """The flag of the first process, in all of them."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))


def _put(mesh: Mesh | None, tree: T, spec: PartitionSpec) -> T:
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
        # every process holds the whole array, so nothing is sent between processes
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    placed: T = jax.tree.map(one, tree)
    return placed
