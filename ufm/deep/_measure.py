"""Loss, accuracy and neural collapse of a network in evaluation mode, in one pass on the device."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from ufm import metrics
from ufm.deep import _mesh, _step
from ufm.deep._feed import Feed
from ufm.deep._step import Images, Recipe, State
from ufm.losses import Loss

#: images per batch in evaluation: affects memory, not the result
BATCH = 256
#: bytes of features that may be kept for NC4, which needs all class means first
KEEP = 1 << 30
#: the parts of a data set; neural collapse is measured on the first
TRAIN, VALIDATION, TEST = range(3)
PARTS = ("train", "validation", "test")
_PADDING = len(PARTS)


class Tally(NamedTuple):
    """Sums over batches, for each part."""

    loss: Float[Array, " parts"]
    right: Int[Array, " parts"]
    seen: Int[Array, " parts"]
    stream: metrics.Stream  # of the training part


class Score(NamedTuple):
    """Mean loss and accuracy; NaN if there are no images."""

    loss: float
    accuracy: float


class Batches(NamedTuple):
    """Rows in batches of equal size, and the part to which each row belongs."""

    order: Int[np.ndarray, "steps B"]
    part: Int[np.ndarray, "steps B"]  # _PADDING for rows that fill the last batch


def batches(rows: np.ndarray, part: np.ndarray, devices: int = 1) -> Batches:
    """Rows and their parts in batches for the devices; the last batch is filled with the last row."""
    size = -(-BATCH // devices) * devices
    missing = -len(rows) % size
    order = np.pad(rows, (0, missing), mode="edge").astype(np.int32)
    parts = np.pad(part, (0, missing), constant_values=_PADDING).astype(np.int32)
    return Batches(order.reshape(-1, size), parts.reshape(-1, size))


def _batch(
    recipe: Recipe,
    tally: Tally,
    state: State,
    loss: Loss,
    key: Array | None,
    data: Images,
    rows: Int[Array, " B"],
    part: Int[Array, " B"],
    number: ArrayLike,
) -> tuple[Tally, Float[Array, "B d"]]:
    """The tally with one more batch, and the features of that batch."""
    rows, part = _mesh.split_batch(recipe.mesh, (rows, part))
    images, labels = _mesh.split_batch(recipe.mesh, (data.images[rows], data.labels[rows]))
    x = _step.network_input(recipe, None, images)
    if key is not None:
        augmented = _step.network_input(recipe, jax.random.fold_in(key, number), images)
        x = jnp.where((part == TRAIN)[:, None, None, None], augmented, x)
    logits, features, _ = recipe.net.apply(state.params, state.statistics, x, train=False)
    member = part[None, :] == jnp.arange(len(PARTS), dtype=part.dtype)[:, None]
    # a masked sum and not a product, because 0 times an infinite loss is NaN
    each = _step.loss_per_sample(loss, logits, labels).astype(jnp.float32)
    right = member & (jax.lax.argmax(logits, 1, jnp.int32) == labels)[None, :]
    tally = Tally(
        tally.loss + jnp.sum(jnp.where(member, each[None, :], 0), axis=1),
        tally.right + jnp.sum(right, axis=1, dtype=jnp.int32),
        tally.seen + jnp.sum(member, axis=1, dtype=jnp.int32),
        tally.stream.update(features, labels, mask=part == TRAIN),
    )
    return _mesh.replicate(recipe.mesh, (tally, features))


_one_batch = jax.jit(_batch, static_argnums=0, donate_argnums=1)


@partial(jax.jit, static_argnums=(0, 9), donate_argnums=1)
def _scanned(
    recipe: Recipe,
    tally: Tally,
    state: State,
    loss: Loss,
    key: Array | None,
    data: Images,
    order: Int[Array, "steps B"],
    part: Int[Array, "steps B"],
    first: ArrayLike,
    keep: bool,
) -> tuple[Tally, Array | None]:
    def body(tally: Tally, x: tuple[Array, Array, Array]) -> tuple[Tally, Array | None]:
        rows, own, i = x
        tally, features = _batch(recipe, tally, state, loss, key, data, rows, own, first + i)
        return tally, features if keep else None

    return jax.lax.scan(body, tally, (order, part, jnp.arange(len(order), dtype=jnp.int32)))


@partial(jax.jit, static_argnames=("K", "d"))
def _empty(*, K: int, d: int) -> Tally:
    counts = jnp.zeros(len(PARTS), jnp.int32)
    return Tally(counts.astype(jnp.float32), counts, counts, metrics.Stream(K, d, dtype="float32"))


def _run(
    recipe: Recipe, state: State, loss: Loss, feed: Feed, asked: Batches, key: Array | None, keep: bool
) -> tuple[Tally, list[Array]]:
    """The tally over the batches, and their features in pieces (steps, B, d) if kept."""
    tally = _mesh.replicate(recipe.mesh, _empty(K=recipe.net.num_classes, d=recipe.net.features))
    kept: list[Array] = []
    for data, order, first in feed.chunks(asked.order):
        part = asked.part[first : first + len(order)]
        if jax.default_backend() != "cpu":
            place = np.int32(first)
            tally, features = _scanned(recipe, tally, state, loss, key, data, order, part, place, keep)
            kept += [features] if keep else []
            continue
        for i, (rows, own) in enumerate(zip(np.asarray(order), part, strict=True)):  # see `_step.run_steps`
            place = np.int32(first + i)
            tally, features = _one_batch(recipe, tally, state, loss, key, data, rows, own, place)
            kept += [features[None]] if keep else []
    return tally, kept


@partial(jax.jit, static_argnames=("convention",))
def _collapse(
    stream: metrics.Stream, W: Array, b: Array, features: list[Array], part: Array, convention: str
) -> metrics.NeuralCollapse:
    agreement = None
    if features:
        flat = jnp.concatenate(features).reshape(-1, W.shape[1])
        agreement = stream.second_pass(W, b, convention=convention)
        agreement = agreement.update(flat, mask=part.reshape(-1) == TRAIN)
    return stream.result(W, b, agreement=agreement, convention=convention)


def measure(
    recipe: Recipe,
    state: State,
    loss: Loss,
    feed: Feed,
    asked: Batches,
    *,
    key: Array | None = None,
    convention: str = "paper",
) -> tuple[list[Score], metrics.NeuralCollapse]:
    """The score of each part, and the neural collapse of the training part.

    Args:
        key: for augmenting the training part.

    The features are kept for NC4 if they take at most a GiB; otherwise nc4 is None.
    """
    keep = asked.order.size * recipe.net.features * 4 <= KEEP
    tally, kept = _run(recipe, state, loss, feed, asked, key, keep)
    W, b = recipe.net.classifier(state.params)
    nc = _collapse(tally.stream, W, b, kept, jnp.asarray(asked.part), convention)
    return scores_of(tally), nc


def scores_of(tally: Tally) -> list[Score]:
    """The score of each part."""
    sums = (np.asarray(x, np.float64) for x in (tally.loss, tally.right, tally.seen))
    return [Score(a / n, b / n) if n else Score(np.nan, np.nan) for a, b, n in zip(*sums, strict=True)]


def measure_inside_jit(
    recipe: Recipe,
    state: State,
    loss: Loss,
    key: Array | None,
    data: Images,
    asked: tuple[Array, Array],
    convention: str,
) -> tuple[Tally, metrics.NeuralCollapse]:
    """`measure` for use inside jit and vmap; the features of all images are kept."""
    tally = _empty(K=recipe.net.num_classes, d=recipe.net.features)
    tally, kept = _scanned(recipe, tally, state, loss, key, data, *asked, jnp.int32(0), True)
    W, b = recipe.net.classifier(state.params)
    return tally, _collapse(tally.stream, W, b, [kept], asked[1], convention)


def features(recipe: Recipe, state: State, loss: Loss, feed: Feed, rows: np.ndarray) -> np.ndarray:
    """Features (N, d) of the rows, in the memory of the host."""
    asked = batches(rows, np.full(len(rows), TRAIN))
    _, kept = _run(recipe, state, loss, feed, asked, None, True)
    return np.concatenate([np.asarray(piece) for piece in kept]).reshape(-1, recipe.net.features)[: len(rows)]
