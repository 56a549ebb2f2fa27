"""Augmentation on the device, inside the compiled step, from explicit keys: uint8 images -> network input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, UInt8


def normalise(
    images: UInt8[Array, "B h w c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "B h w c"]:
    """(pixel / 255 - mean) / std of each channel, in float32."""
    m, s = (jnp.asarray(values, jnp.float32)[None, None, None] for values in (mean, std))
    # one multiply-add: scale and shift are constants of the program
    return images.astype(jnp.float32) * (1 / (255 * s)) - m / s


def crop_and_flip(
    key: Array, images: UInt8[Array, "B h w c"], *, pad: int, flip: bool
) -> UInt8[Array, "B h w c"]:
    """Shift each image by up to `pad` pixels, filling with zeros, and mirror it with probability 1/2.

    This equals padding with `pad` zeros on every side and taking a random crop of the original size. The
    zeros are black pixels, as in the paper's code, which pads before it normalises.
    """
    B, height, width, _ = images.shape
    key_rows, key_columns, key_flip = jax.random.split(key, 3)
    rows, columns = (
        jnp.arange(size, dtype=jnp.int32)[None] + jax.random.randint(k, (B, 1), -pad, pad + 1, jnp.int32)
        for k, size in ((key_rows, height), (key_columns, width))
    )
    if flip:
        mirrored = jax.random.bernoulli(key_flip, shape=(B, 1))
        columns = jnp.where(mirrored, columns[:, ::-1], columns)
    sample = jnp.arange(B, dtype=jnp.int32)[:, None, None]
    # one gather with clipped indices, and a mask for pixels from outside the image
    moved = images[
        sample, jnp.clip(rows, 0, height - 1)[:, :, None], jnp.clip(columns, 0, width - 1)[:, None, :]
    ]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    return jnp.where(inside[..., None], moved, jnp.zeros((), images.dtype))
