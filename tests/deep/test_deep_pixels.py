"""Reading images: colours, depths, orientations and sizes."""

import numpy as np
import pytest
from class_folder_files import (
    as_folder,
    encoded,
    own_cache,  # noqa: F401 (a fixture for every test here)
)
from PIL import Image
from test_deep_data import random_images

from ufm.deep import datasets

GREY, COLOUR = random_images(1, (6, 5), 1)[0], random_images(1, (6, 5, 3), 2)[0]


def set_of(root, first, kind="png", rest=COLOUR):
    """A set whose first image is `first`; the others are `rest`."""
    other = encoded(Image.fromarray(rest), "png")
    files = {f"{part}/{c}/1.png": other for part in ("train", "test") for c in ("ant", "cat")}
    return as_folder(root, files | {f"train/ant/0.{kind}": first})


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16"])
def test_one_grey_image_first_does_not_make_the_set_grey(tmp_path, mode):
    image = (
        Image.fromarray(GREY.astype(np.uint16) * 256)
        if mode == "I;16"
        else Image.fromarray(GREY).convert(mode)
    )
    data = datasets.get(set_of(tmp_path / "pets", encoded(image, "png")))
    assert data.image_shape == (6, 5, 3)
    expected = np.where(GREY > 0, 255, 0) if mode == "1" else GREY
    if mode != "1":  # Pillow dithers
        assert np.array_equal(data.train_images[0], np.repeat(expected[..., None], 3, 2))
    assert np.array_equal(data.train_images[1], COLOUR)


def test_a_set_is_grey_where_all_images_are(tmp_path):
    for mode in ("L", "LA", "P"):
        first = encoded(Image.fromarray(GREY).convert(mode), "png")
        data = datasets.get(set_of(tmp_path / mode, first, rest=GREY))
        assert data.image_shape == (6, 5, 1)
        assert np.array_equal(data.train_images[0, ..., 0], GREY)
    first = encoded(Image.fromarray(COLOUR), "png")
    assert datasets.get(set_of(tmp_path / "one in colour", first, rest=GREY)).image_shape == (6, 5, 3)


def test_palettes_transparency_and_cmyk(tmp_path):
    few = np.random.default_rng(0).choice([0, 80, 255], (6, 5, 3)).astype(np.uint8)
    palette = Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE)
    seen = np.asarray(palette.convert("RGB"))
    sources = {
        "palette": (encoded(palette, "png"), seen),
        # a byte a colour, of which Pillow warns
        "palette with transparency": (encoded(palette, "png", transparency=bytes([0, 99, 255])), seen),
        "one transparent colour": (encoded(palette, "png", transparency=1), seen),
        "alpha": (encoded(Image.fromarray(np.dstack([COLOUR, GREY])), "png"), COLOUR),
    }
    for name, (content, expected) in sources.items():
        data = datasets.get(set_of(tmp_path / name, content))
        assert np.array_equal(data.train_images[0], expected), name
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    data = datasets.get(set_of(tmp_path / "cmyk", encoded(cmyk, "tiff"), "tiff"))
    assert np.array_equal(data.train_images[0], COLOUR)


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_sixteen_bits_among_colours(tmp_path, kind):
    deep = np.arange(30, dtype=np.uint16).reshape(6, 5) * 2000
    content = encoded(Image.fromarray(deep), "ppm" if kind == "pgm" else "tiff" if kind == "tif" else kind)
    data = datasets.get(set_of(tmp_path / "deep", content, kind))
    assert np.array_equal(data.train_images[0], np.repeat((deep // 256)[..., None], 3, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_the_orientation_of_photographs_is_applied(tmp_path, orientation, kind):
    square = random_images(1, (6, 6, 3), 5)[0]
    # as the camera's sensor saw it: what the standard (Exif 2.3, tag 0x0112) says undoes it
    stored = {
        1: square, 2: square[:, ::-1], 3: square[::-1, ::-1], 4: square[::-1], 5: square.transpose(1, 0, 2),
        6: np.rot90(square, 1), 7: square[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(square, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "webp" else {}
    first = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    data = datasets.get(set_of(tmp_path / "photos", first, kind, rest=square))
    assert np.array_equal(data.train_images[0], square)


def test_sizes_are_compared_as_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(np.ascontiguousarray(np.rot90(COLOUR, 1))), "png", exif=exif)
    assert np.array_equal(datasets.get(set_of(tmp_path / "a", turned)).train_images[0], COLOUR)
    with pytest.raises(
        ValueError, match=r"images of one size, got .* of 6x5x3 and train/ant/0\.png of 5x6x3"
    ):
        datasets.get(set_of(tmp_path / "b", encoded(Image.fromarray(np.rot90(COLOUR, 1)), "png")))
