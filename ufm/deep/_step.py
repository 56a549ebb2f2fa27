"""The training step as one pure function, and the two ways to run an epoch of it.

    g = grad of scale * mean_j L(logits_j, y_j);  g <- g min(1, clip / |g|);  g <- g + weight_decay * theta
    m <- momentum * m + g;  theta <- theta - learning_rate * m

theta are all parameters, those of batch norm and biases included. If the loss or the gradient of a
step is not finite, neither that step nor any later one changes the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from ufm.deep import _mesh, augment
from ufm.deep._packing import TREES, Layout, packing
from ufm.deep.layers import Tree
from ufm.deep.nets import Net
from ufm.losses import Loss

Step = Array | np.integer  # the number of a step


class State(NamedTuple):
    """What a step changes, as one record."""

    params: Tree
    statistics: Tree  # running means and variances of batch norm
    optimiser: optax.OptState  # of optax: the momentum
    failed: Int[Array, ""]  # step (counted from the start of the run) that was not finite; -1: none


class Hyper(NamedTuple):
    """The values that may change without compiling the step again."""

    loss: Loss  # its hyperparameters are leaves
    scale: Float[Array, ""]  # of the mean loss: 1, or the batch where a preset sums
    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, ""]
    momentum: Float[Array, ""]
    clip: Float[Array, ""]


class Recipe(NamedTuple):
    """The static arguments of a compiled step."""

    net: Net
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False
    mesh: Mesh | None = None  # of several devices


class Totals(NamedTuple):
    """Sums over the steps of an epoch, in training mode."""

    loss: Float[Array, ""]
    right: Int[Array, ""]
    seen: Int[Array, ""]


class Images(NamedTuple):
    """Images and labels on the device."""

    images: UInt8[Array, "N h w c"]
    labels: Int[Array, " N"]


class Layouts(NamedTuple):
    """How the variables of a step lie in memory."""

    params: Layout = TREES
    statistics: Layout = TREES

    def momentum(self, optimiser: optax.OptState, change: Callable[[Any], Any], like: Any) -> optax.OptState:
        """The optimiser's state, changed in each part that is shaped as the parameters `like`."""
        structure = jax.tree.structure(like)

        def is_like(x: Any) -> bool:
            own: Any = jax.tree.structure(x)
            return bool(own == structure)

        return jax.tree.map(change, optimiser, is_leaf=is_like)

    def packed(self, state: State) -> State:
        """A state of trees in this layout."""
        pack = self.params.pack
        momentum = self.momentum(state.optimiser, pack, state.params)
        return State(pack(state.params), self.statistics.pack(state.statistics), momentum, state.failed)

    def unpacked(self, state: State) -> State:
        """The state of trees again."""
        unpack = self.params.unpack
        momentum = self.momentum(state.optimiser, unpack, state.params)
        return State(unpack(state.params), self.statistics.unpack(state.statistics), momentum, state.failed)


#: the layout in which states are stored and handed out
AS_TREES = Layouts()


def optimiser(hyper: Hyper) -> optax.GradientTransformation:
    """SGD as above; the gradient is clipped before the weight decay is added, as in the paper's code."""
    return optax.chain(
        optax.stateless(lambda gradient, _: _clip(gradient, hyper.clip)),
        optax.add_decayed_weights(hyper.weight_decay),
        optax.sgd(hyper.learning_rate, momentum=hyper.momentum),
    )


def _norm(gradient: Any) -> Array:
    """The Euclidean norm of all leaves: sums over pieces of their last axes, then one sum for all of them."""

    def sums(g: Array) -> Array:
        piece = math.gcd(g.shape[-1], 1024)
        return jnp.sum(jnp.square(g).reshape(*g.shape[:-1], -1, piece), axis=-1).ravel()

    # without the barrier XLA finishes the sum of every leaf alone, in another kernel
    parts = jnp.concatenate([sums(g) for g in jax.tree.leaves(gradient)])
    return jnp.sqrt(jnp.sum(jax.lax.optimization_barrier(parts)))  # type: ignore[no-untyped-call]


def _clip(gradient: Any, most: Array) -> Any:
    """The gradient times min(1, most / norm)."""
    norm = _norm(gradient)
    factor = jnp.where(norm < most, 1, most / norm)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradient)


@partial(jax.jit, static_argnames=("net",))
def initial_state(net: Net, key: Array, hyper: Hyper) -> State:
    """Parameters and statistics of the key, momentum zero."""
    params, statistics = net.init(key)
    return State(params, statistics, optimiser(hyper).init(params), jnp.full((), -1, jnp.int32))


def zero_totals() -> Totals:
    """The totals before the first step."""
    return Totals(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def network_input(recipe: Recipe, key: Array | None, images: UInt8[Array, "B h w c"]) -> Array:
    """Images as the network takes them: augmented if there is a key, and normalised."""
    if key is not None and (recipe.pad or recipe.flip):
        images = augment.crop_and_flip(key, images, pad=recipe.pad, flip=recipe.flip)
    return augment.normalise(images, recipe.mean, recipe.std)


def loss_per_sample(loss: Loss, logits: Float[Array, "B K"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    """The loss of each sample, in float32 or wider even if the network computes in bfloat16."""
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    own = jnp.result_type(int)  # the dtype that losses compare labels with
    return jax.vmap(loss)(logits.astype(wide), labels.astype(own))


def step(
    recipe: Recipe,
    state: State,
    hyper: Hyper,
    key: Array,
    images: UInt8[Array, "B h w c"],
    labels: Int[Array, " B"],
    number: Step,
    layouts: Layouts = AS_TREES,
) -> tuple[State, Totals]:
    """One step on a batch; `number` counts the steps of the run."""
    x = network_input(recipe, key, images)

    def objective(params: Tree) -> tuple[Array, tuple[Array, Array, Tree]]:
        given = layouts.statistics.unpack(state.statistics)
        logits, _, statistics = recipe.net.apply(params, given, x, train=True)
        value = jnp.mean(loss_per_sample(hyper.loss, logits, labels))
        return hyper.scale.astype(value.dtype) * value, (value, logits, statistics)

    given = layouts.params.unpack(state.params, recipe.net.rounded)
    gradient, (value, logits, statistics) = jax.grad(objective, has_aux=True)(given)
    gradient, statistics = layouts.params.pack(gradient), layouts.statistics.pack(statistics)
    # the barrier: else momentum and parameters are updated by two kernels, each of which packs the gradient
    gradient = jax.lax.optimization_barrier(gradient)  # type: ignore[no-untyped-call]
    gradient = jax.tree.map(lambda g, own: g.astype(own.dtype), gradient, state.params)
    updates, momentum = optimiser(hyper).update(gradient, state.optimiser, state.params)
    params = optax.apply_updates(state.params, updates)
    # clipping needs the same sum, and XLA computes it once
    norm = _norm(gradient)
    sound = (state.failed < 0) & jnp.isfinite(value) & jnp.isfinite(norm)
    new, old = (params, statistics, momentum), (state.params, state.statistics, state.optimiser)
    kept = jax.tree.map(lambda a, b: jnp.where(sound, a, b), new, old)
    failed = jnp.where(sound | (state.failed >= 0), state.failed, jnp.asarray(number, jnp.int32))
    right = jnp.sum(jax.lax.argmax(logits, 1, jnp.int32) == labels, dtype=jnp.int32)
    totals = Totals(value.astype(jnp.float32), right, jnp.full((), len(labels), jnp.int32))
    return State(kept[0], kept[1], kept[2], failed), totals


@partial(jax.jit, static_argnames=("batch",))
def shuffled(key: Array, rows: Int[Array, " N"], *, batch: int) -> Int[Array, "steps batch"]:
    """A shuffle of the rows in batches; rows that do not fill a batch are left out of this epoch."""
    steps = len(rows) // batch
    return jax.random.permutation(key, rows)[: steps * batch].reshape(steps, batch)


def step_on_rows(
    recipe: Recipe,
    state: State,
    totals: Totals,
    hyper: Hyper,
    key: Array,
    data: Images,
    rows: Int[Array, " batch"],
    place: tuple[Step, Step],
    layouts: Layouts = AS_TREES,
) -> tuple[State, Totals]:
    """A step on these rows; `place`: its number in the epoch and in the run."""
    key = jax.random.fold_in(key, place[0])
    rows = _mesh.split_batch(recipe.mesh, rows)
    images, labels = _mesh.split_batch(recipe.mesh, (data.images[rows], data.labels[rows]))
    state, more = step(recipe, state, hyper, key, images, labels, place[1], layouts)
    return _mesh.replicate(recipe.mesh, (state, jax.tree.map(jnp.add, totals, more)))


_one_step = jax.jit(step_on_rows, static_argnums=0, donate_argnums=(1, 2))


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _scanned(
    recipe: Recipe,
    state: State,
    totals: Totals,
    hyper: Hyper,
    key: Array,
    data: Images,
    order: Int[Array, "steps batch"],
    first: tuple[Step, Step],
) -> tuple[State, Totals]:
    layouts = Layouts(packing(state.params), packing(state.statistics))

    def body(carry: tuple[State, Totals], x: tuple[Array, Array]) -> tuple[tuple[State, Totals], None]:
        i, rows = x
        return step_on_rows(
            recipe, *carry, hyper, key, data, rows, (first[0] + i, first[1] + i), layouts
        ), None

    steps = jnp.arange(len(order), dtype=jnp.int32)
    (state, totals), _ = jax.lax.scan(body, (layouts.packed(state), totals), (steps, order))
    return layouts.unpacked(state), totals


def run_steps(
    recipe: Recipe,
    state: State,
    totals: Totals,
    hyper: Hyper,
    key: Array,
    data: Images,
    order: Int[Array | np.ndarray, "steps batch"],
    first: tuple[int, int],
    tick: Callable[[int, Totals], None],
) -> tuple[State, Totals]:
    """Run the steps over the rows of `order`; `first`: number of the first step in the epoch and in the run.

    On a GPU one program scans over the steps. On a CPU Python calls one compiled step after the other,
    because XLA's CPU backend does not use its threaded kernels for convolutions inside `lax.scan`, which
    makes them 24-40 times slower (https://github.com/jax-ml/jax/issues/12868).
    """
    places = tuple(np.int32(n) for n in first)
    if jax.default_backend() != "cpu":
        return _scanned(recipe, state, totals, hyper, key, data, order, places)
    for i, rows in enumerate(np.asarray(order)):
        place = tuple(np.int32(n + i) for n in first)
        state, totals = _one_step(recipe, state, totals, hyper, key, data, rows, place)
        tick(first[0] + i + 1, totals)
    return state, totals
