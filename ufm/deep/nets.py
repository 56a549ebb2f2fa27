"""SHELF of networks: images (B, height, width, channels) -> features (B, d) -> logits (B, K).

A network is a body, which computes the features, and a linear classifier with bias, the W and b of the
theory. It is a frozen, hashable record of shapes (static under jit). Parameters and running statistics are
plain nested dictionaries outside it, with paths like `params["stage2"]["block1"]["conv3"]["kernel"]`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from ufm import _checks
from ufm.deep import layers
from ufm.deep.layers import Conv, Tree

Shape = tuple[int, int, int]  # height, width, channels


class Body(Protocol):
    """The part of a network that computes the features: two pure functions, and their cost."""

    @property
    def features(self) -> int:
        """The feature dimension d."""

    def init(self, key: Array, shape: Shape, dtype: DTypeLike) -> tuple[Tree, Tree]:
        """Parameters and running statistics."""

    def apply(
        self, params: Tree, state: Tree, x: Array, *, dtype: DTypeLike, train: bool, axis_name: str | None
    ) -> tuple[Array, Tree]:
        """Features (B, d) of this dtype and the new running statistics."""

    def macs(self, shape: Shape) -> int:
        """Multiply-adds on one image."""


@dataclasses.dataclass(frozen=True)
class Net:
    """A network: `init` makes its parameters, `apply` runs it.

    Attributes:
        name: its name in `NETS`.
        width: the factor X of its channels.
        num_classes: K.
        image_shape: (height, width, channels) of its images; a convolutional net takes any size.
        features: the feature dimension d.
        compute_dtype: dtype of activations and products; None: that of the parameters. Running statistics,
            batch statistics, features and logits have the dtype of the parameters in either case.

    >>> import jax, jax.numpy as jnp
    >>> from ufm.deep import nets
    >>> net = nets.wrn50(width=0.25, num_classes=10)
    >>> net
    wrn50(width=0.25, num_classes=10): 5,880,074 parameters, d = 2048
    >>> params, state = jax.eval_shape(net.init, jax.random.key(0))
    >>> images = jnp.zeros((2, 32, 32, 3), jnp.float32)
    >>> logits, features, _ = jax.eval_shape(lambda *x: net.apply(*x, train=True), params, state, images)
    >>> logits.shape, features.shape
    ((2, 10), (2, 2048))
    """

    name: str
    width: float
    num_classes: int
    image_shape: Shape
    body: Body
    compute_dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        _checks.integer("num_classes", self.num_classes, least=2)
        if self.compute_dtype is not None:
            dtype = np.dtype(self.compute_dtype)
            if not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(f"compute_dtype: expected a floating dtype, got {dtype}")
            object.__setattr__(
                self, "compute_dtype", dtype
            )  # a canonical form, so that equal nets have equal hashes

    @property
    def features(self) -> int:
        """The feature dimension d."""
        return self.body.features

    @property
    def size(self) -> int:
        """Number of parameters."""
        params, _ = jax.eval_shape(self.init, jax.random.key(0))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))

    def flops(self, shape: Shape | None = None) -> int:
        """Multiply-adds of convolutions and linear layers in one forward pass of one image of this shape."""
        return self.body.macs(shape or self.image_shape) + self.features * self.num_classes

    def init(self, key: Array, dtype: DTypeLike = jnp.float32) -> tuple[Tree, Tree]:
        """Parameters U(+-1/sqrt(fan_in)) (batch norm: 1 and 0) and running statistics (0 and 1)."""
        key_body, key_classifier = jax.random.split(key)
        params, state = self.body.init(key_body, self.image_shape, dtype)
        classifier = layers.init_linear(key_classifier, self.features, self.num_classes, dtype)
        return params | {"classifier": classifier}, state

    def apply(
        self,
        params: Tree,
        state: Tree,
        images: ArrayLike,
        *,
        train: bool,
        axis_name: str | None = None,
    ) -> tuple[Float[Array, "B K"], Float[Array, "B d"], Tree]:
        """Logits (B, K), features (B, d) and the new running statistics.

        Args:
            images: (B, height, width, channels), floating point, normalised.
            train: whether batch norm uses the statistics of the batch; without, those in `state`, which is
                returned unchanged.
            axis_name: a mapped axis (shard_map, pmap) over which batch norm also takes its statistics. Under
                jit with sharded images they are global without it.

        Raises:
            ValueError: images that are not a floating array (B, height, width, channels) with the channels
                (for the MLP: the shape) for which the net was made; one value per channel in training.
        """
        images = jnp.asarray(images)
        self._check(images)
        dtype = params["classifier"]["W"].dtype
        x = images.astype(dtype if self.compute_dtype is None else self.compute_dtype)
        features, state = self.body.apply(params, state, x, dtype=dtype, train=train, axis_name=axis_name)
        return layers.linear(params["classifier"], features), features, state

    def rounded(self, elements: Array, ndim: int) -> Array:
        """A parameter with so many axes in the dtype of products, if it is the kernel of a convolution."""
        return elements if self.compute_dtype is None or ndim < 4 else elements.astype(self.compute_dtype)

    def classifier(self, params: Tree) -> tuple[Float[Array, "K d"], Float[Array, " K"]]:
        """W (K, d) and b (K,) of the last layer."""
        return params["classifier"]["W"], params["classifier"]["b"]

    def _check(self, images: Array) -> None:
        fixed = isinstance(self.body, Perceptron)
        wanted = self.image_shape if fixed else self.image_shape[2:]
        if images.ndim != 4 or images.shape[4 - len(wanted) :] != wanted:
            expected = ", ".join(map(str, wanted)) if fixed else f"height, width, {wanted[0]}"
            raise ValueError(
                f"images: expected shape (B, {expected}), got {images.shape}; "
                f"make the net for other images with {self.name}(image_shape=...)"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images: expected a floating dtype, got {images.dtype}; normalise them first")

    def __repr__(self) -> str:
        compute = "" if self.compute_dtype is None else f", compute_dtype={self.compute_dtype}"
        made = f"{self.name}(width={self.width:g}, num_classes={self.num_classes}{compute})"
        return f"{made}: {self.size:,} parameters, d = {self.features}"


# --- bodies ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Residual:
    """A stem, stages of residual blocks, and the mean over the image: features >= 0."""

    stem: Conv
    stages: tuple[tuple[tuple[Conv, ...], ...], ...]  # of blocks, of convolutions

    @property
    def features(self) -> int:
        return self.stages[-1][-1][-1].outputs

    def init(self, key: Array, shape: Shape, dtype: DTypeLike) -> tuple[Tree, Tree]:
        keys = iter(jax.random.split(key, 1 + sum(map(len, self.stages))))
        params, state = {}, {}
        params["stem"], state["stem"] = layers.init_conv_norm(next(keys), self.stem, dtype)
        for stage, blocks in self._named():
            pairs = {name: layers.init_block(next(keys), convs, dtype) for name, convs in blocks.items()}
            params[stage] = {name: pair[0] for name, pair in pairs.items()}
            state[stage] = {name: pair[1] for name, pair in pairs.items()}
        return params, state

    def apply(
        self, params: Tree, state: Tree, x: Array, *, dtype: DTypeLike, train: bool, axis_name: str | None
    ) -> tuple[Array, Tree]:
        new: Tree = {}
        x, new["stem"] = layers.conv_norm(
            params["stem"],
            state["stem"],
            x,
            stride=self.stem.stride,
            train=train,
            relu=True,
            axis_name=axis_name,
        )
        for stage, blocks in self._named():
            new[stage] = {}
            for block, convs in blocks.items():
                given = params[stage][block], state[stage][block]
                x, new[stage][block] = layers.residual_block(
                    *given, x, convs, train=train, axis_name=axis_name
                )
        return layers.average_pool(x.astype(dtype)), new

    def macs(self, shape: Shape) -> int:
        total, height, width = self.stem.macs(*shape[:2])
        for convs in (convs for blocks in self.stages for convs in blocks):
            if (short := layers.shortcut(convs)) is not None:
                total += short.macs(height, width)[0]
            for conv in convs:
                more, height, width = conv.macs(height, width)
                total += more
        return total

    def _named(self) -> list[tuple[str, dict[str, tuple[Conv, ...]]]]:
        return [
            (f"stage{i}", {f"block{j}": convs for j, convs in enumerate(blocks, 1)})
            for i, blocks in enumerate(self.stages, 1)
        ]


@dataclasses.dataclass(frozen=True)
class Perceptron:
    """Linear layers with ReLU after each: features >= 0, no batch norm, no running statistics."""

    hidden: tuple[int, ...]

    @property
    def features(self) -> int:
        return self.hidden[-1]

    def init(self, key: Array, shape: Shape, dtype: DTypeLike) -> tuple[Tree, Tree]:
        keys = jax.random.split(key, len(self.hidden))
        sizes = zip(keys, (math.prod(shape), *self.hidden), self.hidden, strict=False)
        return {f"linear{i}": layers.init_linear(*size, dtype) for i, size in enumerate(sizes, 1)}, {}

    def apply(
        self, params: Tree, state: Tree, x: Array, *, dtype: DTypeLike, train: bool, axis_name: str | None
    ) -> tuple[Array, Tree]:
        x = x.reshape(len(x), -1)
        for i in range(1, len(self.hidden) + 1):
            given = {name: p.astype(x.dtype) for name, p in params[f"linear{i}"].items()}
            x = jax.nn.relu(layers.linear(given, x))
        return x.astype(dtype), dict(state)

    def macs(self, shape: Shape) -> int:
        sizes = math.prod(shape), *self.hidden
        return sum(a * b for a, b in zip(sizes, self.hidden, strict=False))


# --- the shelf ------------------------------------------------------------------------------------


def wrn50(
    *,
    width: float = 1.0,
    num_classes: int = 10,
    image_shape: Shape = (32, 32, 3),
    compute_dtype: DTypeLike | None = None,
) -> Net:
    """WideResNet50-X: bottleneck blocks [3, 4, 6, 3]; `width` scales the inner planes only, so d = 2048.

    Raises:
        ValueError: a width that leaves a layer without channels, num_classes < 2, an invalid image shape.
    """
    width = _check_width(width)
    stages, inputs = [], 64
    for planes, blocks, stride in zip((64, 128, 256, 512), (3, 4, 6, 3), (1, 2, 2, 2), strict=True):
        inner, outputs = _scaled(planes, width), 4 * planes
        first = layers.bottleneck(inputs, inner, outputs, stride)
        stages.append((first, *(blocks - 1) * (layers.bottleneck(outputs, inner, outputs, 1),)))
        inputs = outputs
    image_shape = _check_shape(image_shape)
    body = Residual(Conv(3, image_shape[2], 64), tuple(stages))
    return Net("wrn50", width, num_classes, image_shape, body, compute_dtype)


def wrn18(
    *,
    width: float = 1.0,
    num_classes: int = 10,
    image_shape: Shape = (32, 32, 3),
    compute_dtype: DTypeLike | None = None,
) -> Net:
    """WideResNet18-X: basic blocks [2, 2, 2, 2]; `width` scales every plane, d = 512 X.

    Raises as `wrn50`.
    """
    stages = ((64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2))
    return _basic_net("wrn18", 64, stages, width, num_classes, image_shape, compute_dtype)


def small_resnet(
    *,
    width: float = 1.0,
    num_classes: int = 10,
    image_shape: Shape = (28, 28, 1),
    compute_dtype: DTypeLike | None = None,
) -> Net:
    """Three basic blocks of 16, 32 and 64 planes with stride 2, d = 64 X; trains MNIST on a CPU in minutes.

    Raises as `wrn50`.
    """
    stages = ((16, 1, 2), (32, 1, 2), (64, 1, 2))
    return _basic_net("small_resnet", 16, stages, width, num_classes, image_shape, compute_dtype)


def mini_resnet(
    *,
    width: float = 1.0,
    num_classes: int = 10,
    image_shape: Shape = (32, 32, 3),
    compute_dtype: DTypeLike | None = None,
) -> Net:
    """Two basic blocks of 48 and 96 planes with stride 2 after a stem with stride 2, d = 96 X.

    It is for CIFAR images on a CPU: convolutions of many channels on few pixels run at a rate several times
    that of `small_resnet`. Raises as `wrn50`.
    """
    stages = ((48, 1, 2), (96, 1, 2))
    return _basic_net(
        "mini_resnet", 16, stages, width, num_classes, image_shape, compute_dtype, stem_stride=2
    )


def mlp(
    *,
    width: float = 1.0,
    num_classes: int = 10,
    image_shape: Shape = (28, 28, 1),
    hidden: tuple[int, ...] = (256, 256),
    compute_dtype: DTypeLike | None = None,
) -> Net:
    """Linear layers of the `hidden` sizes times `width`, ReLU after each; d is the last of them.

    Raises as `wrn50`, and for an empty `hidden`.
    """
    width, image_shape = _check_width(width), _check_shape(image_shape)
    sizes = tuple(_scaled(_checks.integer("hidden", h, least=1), width) for h in hidden)
    if not sizes:
        raise ValueError("hidden: expected at least one layer size, got none")
    return Net("mlp", width, num_classes, image_shape, Perceptron(sizes), compute_dtype)


#: The shelf: tests, the command line and the README iterate it.
NETS: dict[str, Callable[..., Net]] = {
    "wrn50": wrn50,
    "wrn18": wrn18,
    "small_resnet": small_resnet,
    "mini_resnet": mini_resnet,
    "mlp": mlp,
}


def get(net: str | Net, **options: Any) -> Net:
    """A `Net` from a name of `NETS` and its options, or the `Net` given.

    Raises:
        ValueError: an unknown name (the known names are listed); options together with a `Net`.
    """
    if isinstance(net, Net):
        if options:
            raise ValueError(f"{next(iter(options))}: options go with a net given by name, got net={net!r}")
        return net
    return NETS[_checks.choice("net", net, NETS)](**options)


def _basic_net(
    name: str,
    stem: int,
    stages: tuple[tuple[int, int, int], ...],  # planes, blocks, stride of the first block
    width: float,
    num_classes: int,
    image_shape: Shape,
    compute_dtype: DTypeLike | None,
    stem_stride: int = 1,
) -> Net:
    width, image_shape = _check_width(width), _check_shape(image_shape)
    inputs = _scaled(stem, width)
    first, built = Conv(3, image_shape[2], inputs, stem_stride), []
    for planes, blocks, stride in stages:
        outputs = _scaled(planes, width)
        start = layers.basic(inputs, outputs, stride)
        built.append((start, *(blocks - 1) * (layers.basic(outputs, outputs, 1),)))
        inputs = outputs
    return Net(name, width, num_classes, image_shape, Residual(first, tuple(built)), compute_dtype)


def _check_width(width: float) -> float:
    return float(_checks.real("width", width, above=0.0))


def _check_shape(shape: object) -> Shape:
    if not isinstance(shape, tuple | list) or len(shape) != 3:
        raise ValueError(f"image_shape: expected (height, width, channels), got {shape!r}")
    height, width, channels = (_checks.integer("image_shape", size, least=1) for size in shape)
    return height, width, channels


def _scaled(planes: int, width: float) -> int:
    """planes times width, rounded down as in the paper's code."""
    channels = int(planes * width)
    if channels < 1:
        raise ValueError(
            f"width: expected at least {1 / planes:g}, got {width:g}, which leaves no channel of {planes}"
        )
    return channels
