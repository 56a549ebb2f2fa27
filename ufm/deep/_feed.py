"""Images on the device: all of them, or chunks of them if they do not fit, the next chunk sent ahead."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Int

from ufm.deep import _mesh
from ufm.deep._step import Images
from ufm.deep.datasets import Dataset

#: share of the device's memory for images; the network needs the rest
SHARE = 0.4


class Chunk(NamedTuple):
    """Images on the device and the rows of each batch among them."""

    data: Images
    order: Int[Array | np.ndarray, "steps batch"]
    first: int  # number of the first batch


class Feed:
    """Batches of images by their rows.

    If the images fit into `memory` bytes, all of them stay on the device. Otherwise chunks of consecutive
    batches are gathered on the host, each sent while the device works on the one before; two chunks fit.

    Rows number the training images first and then those for testing: one array, so that one program serves
    both.

    Attributes:
        labels: of all rows.
        resident: whether all images are on the device.
    """

    def __init__(self, data: Dataset, memory: int | None = None, mesh: Mesh | None = None) -> None:
        self._mesh = mesh
        self._images = images = np.concatenate([data.train_images, data.test_images])
        self.labels = labels = np.concatenate([data.train_labels, data.test_labels])
        self._memory = _device_memory() if memory is None else memory
        self.resident = self._memory is None or images.nbytes <= self._memory
        self._all = self._sent(images, labels) if self.resident else None

    def chunks(self, order: Int[Array | np.ndarray, "steps batch"]) -> Iterator[Chunk]:
        """The batches with the rows order (steps, batch), in this order."""
        if self._all is not None:
            yield Chunk(self._all, order, 0)
            return
        rows = np.asarray(order)
        assert self._memory is not None
        steps = max(1, self._memory // (2 * rows.shape[1] * self._images[0].nbytes))
        with concurrent.futures.ThreadPoolExecutor(1) as background:
            following = background.submit(self._gather, rows[:steps], 0)
            for start in range(0, len(rows), steps):
                chunk = following.result()
                if start + steps < len(rows):
                    part = rows[start + steps : start + 2 * steps]
                    following = background.submit(self._gather, part, start + steps)
                yield chunk

    def _gather(self, rows: np.ndarray, first: int) -> Chunk:
        flat = rows.reshape(-1)
        data = self._sent(self._images[flat], self.labels[flat])
        return Chunk(data, np.arange(flat.size, dtype=np.int32).reshape(rows.shape), first)

    def _sent(self, *arrays: np.ndarray) -> Images:
        return Images(
            *(jax.device_put(arrays) if self._mesh is None else _mesh.replicate(self._mesh, arrays))
        )


def _device_memory() -> int | None:
    """Bytes for images on the device; None if it has no memory of its own."""
    stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    return int(SHARE * stats["bytes_limit"]) if stats and "bytes_limit" in stats else None
