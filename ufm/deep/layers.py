"""Layers: small pure functions on images (batch, height, width, channels), parameters in plain dictionaries.

Every layer is a function of (params, inputs). State between steps (the running statistics of batch norm) is
an argument and a result. The dtype is that of the parameters and statistics: images are cast to it, or to
the `compute_dtype` of the network, and statistics are computed in float32 at least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float

MOMENTUM = 0.1  # weight of the newest batch in the running statistics: PyTorch's default
EPSILON = 1e-5  # added to the variance: PyTorch's default
PARTIAL = 16384  # partial sums, all channels together, that a GPU computes in parallel in the first kernel
ROWS = 16  # of them are added in a loop: from 32 on, XLA makes it a kernel of its own

Tree = dict[str, Any]  # nested dictionaries with arrays as leaves


class Conv(NamedTuple):
    """The shape of a convolution without bias: a kernel x kernel window, zero-padded by kernel // 2."""

    kernel: int
    inputs: int
    outputs: int
    stride: int = 1

    def macs(self, height: int, width: int) -> tuple[int, int, int]:
        """Multiply-adds on one image of this size, and the height and width of its output."""
        height, width = -(-height // self.stride), -(-width // self.stride)
        return height * width * self.kernel**2 * self.inputs * self.outputs, height, width


# --- initial values -------------------------------------------------------------------------------


def uniform(key: Array, shape: tuple[int, ...], fan_in: int, dtype: DTypeLike) -> Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for weights and biases."""
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def init_linear(key: Array, inputs: int, outputs: int, dtype: DTypeLike) -> Tree:
    """W (outputs, inputs) and b (outputs,), both U(+-1/sqrt(inputs))."""
    key_W, key_b = jax.random.split(key)
    return {
        "W": uniform(key_W, (outputs, inputs), inputs, dtype),
        "b": uniform(key_b, (outputs,), inputs, dtype),
    }


def init_conv_norm(key: Array, conv: Conv, dtype: DTypeLike) -> tuple[Tree, Tree]:
    """Kernel (height, width, in, out), scale 1, shift 0; running mean 0 and variance 1."""
    shape, c = (conv.kernel, conv.kernel, conv.inputs, conv.outputs), conv.outputs
    kernel = uniform(key, shape, conv.kernel**2 * conv.inputs, dtype)
    # no leaf is used twice, because a training step donates its buffers
    params = {"kernel": kernel, "scale": jnp.ones(c, dtype), "shift": jnp.zeros(c, dtype)}
    return params, {"mean": jnp.zeros(c, dtype), "var": jnp.ones(c, dtype)}


def init_block(key: Array, convs: tuple[Conv, ...], dtype: DTypeLike) -> tuple[Tree, Tree]:
    """conv1, conv2, ... of a residual block, and its shortcut if the shape changes."""
    named = {f"conv{i}": conv for i, conv in enumerate(convs, 1)}
    if (short := shortcut(convs)) is not None:
        named["shortcut"] = short
    keys = jax.random.split(key, len(named))
    pairs = {name: init_conv_norm(k, named[name], dtype) for k, name in zip(keys, named, strict=True)}
    return {n: p for n, (p, _) in pairs.items()}, {n: s for n, (_, s) in pairs.items()}


# --- layers ---------------------------------------------------------------------------------------


def linear(params: Mapping[str, Array], x: Float[Array, "B i"]) -> Float[Array, "B o"]:
    """x W^T + b."""
    return x @ params["W"].T + params["b"][None]


def average_pool(x: Float[Array, "B h w c"]) -> Float[Array, "B c"]:
    """The mean over the image."""
    return jnp.mean(x, axis=(1, 2))


def conv(
    kernel: Float[Array, "k k i o"], x: Float[Array, "B h w i"], *, stride: int = 1
) -> Float[Array, "B H W o"]:
    """Cross-correlation with zero padding k // 2 on every side, so that stride 1 keeps the size."""
    if kernel.shape[0] == 1:
        return _pointwise(_varying_as(x, kernel[0, 0]), x[:, ::stride, ::stride])
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def _pointwise(W: Array, x: Array) -> Array:
    """A 1x1 convolution as one matrix product over all pixels: on a CPU 2-15 times faster than `lax.conv`."""
    return lax.dot_general(x, W, (((3,), (0,)), ((), ())))


def _pointwise_forward(W: Array, x: Array) -> tuple[Array, tuple[Array, Array]]:
    return _pointwise(W, x), (W, x)


def _pointwise_backward(saved: tuple[Array, Array], y_bar: Array) -> tuple[Array, Array]:
    W, x = saved
    x_bar = lax.dot_general(y_bar, W, (((3,), (1,)), ((), ())))
    pixels = (((0, 1, 2), (0, 1, 2)), ((), ()))
    if W.shape[0] <= W.shape[1]:
        return lax.dot_general(x, y_bar, pixels), x_bar
    # XLA's CPU backend is 2-7 times faster with the narrow factor on the left; the barrier prevents it
    # from exchanging the factors again
    W_bar = _barrier(lax.dot_general(y_bar, x, pixels))
    return W_bar.T, x_bar


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def _varying_as(x: Array, shared: Array) -> Array:
    """`shared` marked as varying over the mapped axes of x (inside shard_map; elsewhere unchanged).

    The transpose of the mark is a sum over devices, so hand-written backward passes need none.
    """
    axes = jax.typeof(x).manual_axis_type.varying - jax.typeof(shared).manual_axis_type.varying
    return lax.pcast(shared, tuple(axes), to="varying") if axes else shared


def batch_norm(
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    x: Float[Array, "B h w c"],
    *,
    train: bool,
    residual: Float[Array, "B h w c"] | None = None,
    relu: bool = False,
    axis_name: str | None = None,
    momentum: float = MOMENTUM,
    eps: float = EPSILON,
) -> tuple[Float[Array, "B h w c"], Tree]:
    """scale (x - mean)/sqrt(var + eps) + shift, channel by channel, and the new running statistics.

    In training the mean and the biased variance are those of the batch, and the running statistics move by
    `momentum` towards the mean and the *unbiased* variance (PyTorch's convention). In evaluation the running
    statistics are used and stay as they are.

    Args:
        residual: what is added to the normalised x.
        relu: take the positive part of the result.
        axis_name: a mapped axis (shard_map, pmap, vmap) over which the statistics are also computed. Under
            jit with sharded arrays they are global without it.

    Raises:
        ValueError: training on one value per channel, whose variance is undefined.

    Source: Ioffe and Szegedy 2015, algorithms 1 and 2.
    """
    if not train:
        slope = params["scale"] * lax.rsqrt(state["var"] + eps)
        return _affine(slope, params["shift"] - slope * state["mean"], x, residual, relu), dict(state)
    count = x.size // x.shape[-1] * (1 if axis_name is None else lax.axis_size(axis_name))
    if count < 2:
        raise ValueError(
            f"images: expected more than one value a channel to train batch norm, got shape {x.shape}; "
            "use a larger batch or train=False"
        )
    shared = (_varying_as(x, c) for c in (params["scale"], params["shift"], state["mean"]))
    y, offset, var = _normalise(*shared, x, residual, _Static(relu, residual is not None, eps, axis_name))
    return y, {
        "mean": state["mean"] + momentum * lax.stop_gradient(offset),
        "var": state["var"] + momentum * (lax.stop_gradient(var) * (count / (count - 1)) - state["var"]),
    }


def _affine(slope: Array, base: Array, x: Array, residual: Array | None, relu: bool) -> Array:
    """slope x + base + residual, and its positive part, in the dtype of the slope; as x then."""
    y = x.astype(slope.dtype) * _along(slope) + _along(base)
    y = y if residual is None else y + residual.astype(slope.dtype)
    return (jax.nn.relu(y) if relu else y).astype(x.dtype)


class _Static(NamedTuple):
    """What the compiled program of a batch norm depends on."""

    relu: bool
    residual: bool
    eps: float
    axis_name: str | None

    def count(self, x: Array) -> int:
        """Values a channel, over the mapped axis too."""
        return x.size // x.shape[-1] * (1 if self.axis_name is None else lax.axis_size(self.axis_name))

    def total(self, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        """Sums over the mapped axis."""
        if self.axis_name is None:
            return sums
        total: tuple[Array, Array] = lax.psum(sums, self.axis_name)  # type: ignore[no-untyped-call]
        return total


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _normalise(
    scale: Array, shift: Array, near: Array, x: Array, residual: Array | None, static: _Static
) -> tuple[Array, Array, Array]:
    """Batch norm with residual and ReLU in training: its value; mean - near and biased variance of the batch.

    A training step on a GPU is bound by the bytes that it moves and the kernels that it launches. The
    forward pass therefore reads x once for both moments and once for the result, and the hand-written
    backward pass reads x and the gradient once for two sums and once for the result. Between the two, one
    kernel does what is left of the sums and all the algebra of vectors. The backward pass takes the sign of
    the ReLU from x, or from the result if there was a residual. Nothing is saved that the convolutions
    around do not keep anyway. The barriers keep XLA from computing something again in every kernel that
    reads it.

    `near` is close to the mean. Mean and variance, which are for the running statistics, have no gradient.
    """
    return _normalise_forward(scale, shift, near, x, residual, static)[0]


def _normalise_forward(
    scale: Array, shift: Array, near: Array, x: Array, residual: Array | None, static: _Static
) -> tuple[tuple[Array, Array, Array], tuple[Array | None, ...]]:
    offset, var = _moments(x.astype(scale.dtype) - _along(near), static)
    mean, inverse = near + offset, lax.rsqrt(var + static.eps)
    slope = scale * inverse
    mean, inverse, slope, base = _barrier((mean, inverse, slope, shift - slope * mean))
    y = _affine(slope, base, x, residual, static.relu)
    y = _barrier(y) if static.relu else y
    return (y, offset, var), (x, mean, inverse, slope, base, y if static.relu and static.residual else None)


def _normalise_backward(
    static: _Static, saved: tuple[Array, ...], bars: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array, Array, Array | None]:
    """slope (y' - mean y' - x^ mean(y' x^)), with x^ the normalised x; sums for scale and shift."""
    x, mean, inverse, slope, base, y = saved
    y_bar = bars[0] if y is None else _through_relu(y, bars[0].astype(slope.dtype)).astype(x.dtype)

    def wide(x: Array, y_bar: Array) -> tuple[Array, Array]:
        x, y_bar = x.astype(slope.dtype), y_bar.astype(slope.dtype)
        inner = static.relu and not static.residual
        return x, _through_relu(_affine(slope, base, x, None, True), y_bar) if inner else y_bar

    x_wide, own = wide(x, y_bar)
    first, second = _sums(own, own * x_wide)
    second = second - mean * first
    total = static.total((first, second))
    along = slope * lax.square(inverse) * total[1] / static.count(x)
    common = slope * total[0] / static.count(x) - along * mean
    # the gradients of the parameters are the sums of this device
    sums = second * inverse, first
    x, y_bar, sums, common, along = _barrier((x, y_bar, sums, common, along))
    x_wide, own = wide(x, y_bar)
    x_bar = _along(slope) * own - _along(common) - x_wide * _along(along)
    return *sums, jnp.zeros_like(mean), _barrier(x_bar.astype(x.dtype)), y_bar if static.residual else None


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _through_relu(y: Array, y_bar: Array) -> Array:
    """The gradient behind y = relu(...). A comparison instead of the sign would be a kernel of its own."""
    return y_bar * jnp.sign(y.astype(y_bar.dtype))


def _moments(x: Float[Array, "B h w c"], static: _Static) -> tuple[Array, Array]:
    """Mean and biased variance of each channel, in one pass over x.

    E x^2 - mean^2 would cancel in float32 where the mean is much larger than the deviation. x is therefore
    the difference from the running mean, which is not much larger once a few batches have been seen.
    """
    mean, square = (total / static.count(x) for total in static.total(_sums(x, lax.square(x))))
    return mean, jnp.maximum(square - lax.square(mean), 0.0)


def _sums(a: Array, b: Array) -> tuple[Array, Array]:
    """The sums of two arrays (B, h, w, c) over all but the channels, in one pass.

    On a GPU the first kernel computes partial sums over images. The rest is a loop that XLA joins with what
    is made of the sums, which it does not do with the second of the kernels of a sum that it divides itself.
    """

    def add(x: tuple[Array, Array], y: tuple[Array, Array]) -> tuple[Array, Array]:
        return x[0] + y[0], x[1] + y[1]

    c, zero = a.shape[-1], jnp.zeros((), a.dtype)
    parts = _parts(len(a), c)
    first, second = lax.reduce(tuple(x.reshape(parts, -1, c) for x in (a, b)), (zero, zero), add, (1,))
    return _sum_of_rows(first), _sum_of_rows(second)


def _parts(images: int, channels: int) -> int:
    """How many partial sums: one for every 2^k images.

    The power divides their number, and there are as many parts as devices at least, so that a batch that is
    split over devices is not moved.
    """
    each = min(images * channels // PARTIAL, images // max(ROWS, jax.device_count()))
    return images // math.gcd(images, 1 << max(1, each).bit_length() - 1)


def _sum_of_rows(parts: Array) -> Array:
    """Neighbours first, which lie on the same device."""
    group = 1
    while len(parts) // group > ROWS and len(parts) % (2 * group) == 0:
        group *= 2
    near = parts.reshape(-1, group, parts.shape[-1])
    return jnp.sum(sum((near[:, i] for i in range(1, group)), near[:, 0]), axis=0)


def _barrier(x: Any) -> Any:
    """What is computed before the barrier is not computed again after it."""
    return lax.optimization_barrier(x)  # type: ignore[no-untyped-call]


def _along(c: Array) -> Array:
    """One value per channel, broadcast against (B, h, w, c)."""
    return c[None, None, None]


def conv_norm(
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    x: Array,
    *,
    stride: int,
    train: bool,
    residual: Array | None = None,
    relu: bool = False,
    axis_name: str | None = None,
) -> tuple[Array, Tree]:
    """Convolution in the dtype of x, then batch norm."""
    y = conv(params["kernel"].astype(x.dtype), x, stride=stride)
    return batch_norm(params, state, y, train=train, residual=residual, relu=relu, axis_name=axis_name)


def basic(inputs: int, outputs: int, stride: int) -> tuple[Conv, ...]:
    """Two 3x3 convolutions, the stride on the first."""
    return Conv(3, inputs, outputs, stride), Conv(3, outputs, outputs)


def bottleneck(inputs: int, inner: int, outputs: int, stride: int) -> tuple[Conv, ...]:
    """1x1, 3x3 with the stride, 1x1."""
    return Conv(1, inputs, inner), Conv(3, inner, inner, stride), Conv(1, inner, outputs)


def shortcut(convs: tuple[Conv, ...]) -> Conv | None:
    """The 1x1 convolution of the shortcut of a block that changes the shape; None for other blocks."""
    inputs, outputs, stride = convs[0].inputs, convs[-1].outputs, math.prod(c.stride for c in convs)
    return None if inputs == outputs and stride == 1 else Conv(1, inputs, outputs, stride)


def residual_block(
    params: Tree,
    state: Tree,
    x: Array,
    convs: tuple[Conv, ...],
    *,
    train: bool,
    axis_name: str | None = None,
) -> tuple[Array, Tree]:
    """relu(F(x) + shortcut(x)); F: convolutions with batch norm, with ReLUs between them.

    Source: He et al. 2016.
    """
    new: Tree = {}
    layer = partial(conv_norm, train=train, axis_name=axis_name)

    def apply(name: str, conv: Conv, x: Array, residual: Array | None, relu: bool) -> Array:
        given = params[name], state[name]
        y, new[name] = layer(*given, x, stride=conv.stride, residual=residual, relu=relu)
        return y

    residual = x
    if (short := shortcut(convs)) is not None:
        # without the barrier XLA joins the products of the shortcut and of conv1, and every later kernel
        # has to read its part out of the common result
        residual = apply("shortcut", short, _barrier(x), None, False)
    for i, spec in enumerate(convs, 1):
        x = apply(f"conv{i}", spec, x, residual if i == len(convs) else None, True)
    return x, new
