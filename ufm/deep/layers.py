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
    W_bar = lax.optimization_barrier(lax.dot_general(y_bar, x, pixels))  # type: ignore[no-untyped-call]
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
    axis_name: str | None = None,
    momentum: float = MOMENTUM,
    eps: float = EPSILON,
) -> tuple[Float[Array, "B h w c"], Tree]:
    """scale (x - mean)/sqrt(var + eps) + shift, channel by channel, and the new running statistics.

    In training the mean and the biased variance are those of the batch, and the running statistics move by
    `momentum` towards the mean and the *unbiased* variance (PyTorch's convention). In evaluation the running
    statistics are used and stay as they are.

    Args:
        axis_name: a mapped axis (shard_map, pmap, vmap) over which the statistics are also computed. Under
            jit with sharded arrays they are global without it.

    Raises:
        ValueError: training on one value per channel, whose variance is undefined.

    Source: Ioffe and Szegedy 2015, algorithms 1 and 2.
    """
    if not train:
        scale = params["scale"] * lax.rsqrt(state["var"] + eps)
        centred = x.astype(scale.dtype) - _along(state["mean"])
        return (centred * _along(scale) + _along(params["shift"])).astype(x.dtype), dict(state)
    count = x.size // x.shape[-1] * (1 if axis_name is None else lax.axis_size(axis_name))
    if count < 2:
        raise ValueError(
            f"images: expected more than one value a channel to train batch norm, got shape {x.shape}; "
            "use a larger batch or train=False"
        )
    scale, shift = _varying_as(x, params["scale"]), _varying_as(x, params["shift"])
    y, mean, var = _normalise(scale, shift, x, eps, axis_name)
    return y, {
        "mean": state["mean"] + momentum * (lax.stop_gradient(mean) - state["mean"]),
        "var": state["var"] + momentum * (lax.stop_gradient(var) * (count / (count - 1)) - state["var"]),
    }


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(
    scale: Array, shift: Array, x: Array, eps: float, axis_name: str | None
) -> tuple[Array, Array, Array]:
    """scale (x - mean)/sqrt(var + eps) + shift with the batch's mean and biased variance, and these two.

    The hand-written backward pass needs two sums and one more pass over x, and only x is saved: a step of
    wrn18 is a tenth faster than with automatic differentiation. Mean and variance, which are for the running
    statistics, have no gradient.
    """
    return _normalise_forward(scale, shift, x, eps, axis_name)[0]


def _normalise_forward(
    scale: Array, shift: Array, x: Array, eps: float, axis_name: str | None
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    wide = x.astype(scale.dtype)
    mean = _mean(wide, axis_name)
    var = _mean(
        lax.square(wide - _along(mean)), axis_name
    )  # E x^2 - mean^2 would suffer cancellation in float32
    inverse = lax.rsqrt(var + eps)
    y = (wide - _along(mean)) * _along(scale * inverse) + _along(shift)
    return (y.astype(x.dtype), mean, var), (x, scale, mean, inverse)


def _normalise_backward(
    eps: float, axis_name: str | None, saved: tuple[Array, ...], bars: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """scale/sigma (y' - mean y' - x^ mean(y' x^)), with x^ the normalised x; sums for scale and shift."""
    x, scale, mean, inverse = saved
    y_bar, centred = bars[0].astype(scale.dtype), x.astype(scale.dtype) - _along(mean)
    common = _mean(y_bar, axis_name)
    slope = _mean(y_bar * centred, axis_name) * inverse
    x_bar = _along(scale * inverse) * (y_bar - _along(common) - centred * _along(slope * inverse))
    if axis_name is not None:  # the gradients of the parameters are the sums of this device
        common, slope = _mean(y_bar, None), _mean(y_bar * centred, None) * inverse
    count = x.size // x.shape[-1]
    return slope * count, common * count, x_bar.astype(x.dtype)


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _mean(x: Array, axis_name: str | None) -> Array:
    mean = jnp.mean(x, axis=(0, 1, 2))
    return mean if axis_name is None else lax.pmean(mean, axis_name)  # type: ignore[no-untyped-call]


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
    axis_name: str | None = None,
) -> tuple[Array, Tree]:
    """Convolution in the dtype of x, then batch norm."""
    y = conv(params["kernel"].astype(x.dtype), x, stride=stride)
    return batch_norm(params, state, y, train=train, axis_name=axis_name)


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
    y, new = x, {}
    normalise = partial(conv_norm, train=train, axis_name=axis_name)
    for i, spec in enumerate(convs, 1):
        name = f"conv{i}"
        y = jax.nn.relu(y) if i > 1 else y
        y, new[name] = normalise(params[name], state[name], y, stride=spec.stride)
    if (short := shortcut(convs)) is not None:
        name = "shortcut"
        x, new[name] = normalise(params[name], state[name], x, stride=short.stride)
    return jax.nn.relu(y + x), new
