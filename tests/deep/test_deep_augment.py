"""Augmentation: every crop and mirror image as often, samples and keys apart; normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_deep_data import random_images

from ufm.deep import augment


def padded_crops(image, pad):
    """Every crop of the image padded with zeros, plain and mirrored, by its bytes."""
    height, width, _ = image.shape
    big = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return {
        (i, j, flip): (crop[:, ::-1] if flip else crop)
        for i in range(2 * pad + 1)
        for j in range(2 * pad + 1)
        for flip in (False, True)
        for crop in [big[i : i + height, j : j + width]]
    }


crop_and_flip = jax.jit(augment.crop_and_flip, static_argnames=("pad", "flip"))


@pytest.mark.parametrize("flip", [False, True])
def test_every_crop_and_mirror_image_is_equally_likely(flip):
    image, pad, count = random_images(1, (5, 4, 3))[0], 2, 6000
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        batch = jnp.asarray(np.broadcast_to(image, (count, *image.shape)))
        out = crop_and_flip(jax.random.key(0), batch, pad=pad, flip=flip)
    assert out.dtype == jnp.uint8
    kinds = {crop.tobytes(): place for place, crop in padded_crops(image, pad).items()}
    seen: dict = {}
    for crop in np.asarray(out):
        seen[kinds[crop.tobytes()]] = seen.get(kinds[crop.tobytes()], 0) + 1
    expected = 25 * (1 + flip)
    assert len(seen) == expected
    assert {f for *_, f in seen} == ({False, True} if flip else {False})
    mean = count / expected
    chi2 = sum((n - mean) ** 2 for n in seen.values()) / mean
    assert chi2 < expected + 4 * (2 * expected) ** 0.5


def test_samples_are_augmented_independently_and_keys_decide():
    images = jnp.asarray(random_images(64, (8, 8, 1)))
    shifts = [crop_and_flip(jax.random.key(k), images, pad=2, flip=True) for k in (0, 0, 1)]
    assert np.array_equal(shifts[0], shifts[1])
    assert not np.array_equal(shifts[0], shifts[2])


def test_images_are_normalised_in_float32():
    images = random_images(3, (4, 4, 3))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        got = augment.normalise(jnp.asarray(images), mean, std)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, (images / 255 - mean) / std, rtol=0, atol=2e-6)
