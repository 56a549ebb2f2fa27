"""Files of images -> arrays of pixels."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
#: Pillow's modes without colour; LA is grey with transparency
_GREY = ("1", "L", "LA")
#: formats without 32 bits per pixel, of which Pillow reports mode "I" for 16 bits
_AT_MOST_16_BITS = ("PNG", "PPM")


def decode(content: bytes, name: str) -> np.ndarray:
    """Pixels (h, w, c) of an image as it is displayed: c = 1 if it is grey, c = 3 if it has colour.

    The orientation that a camera stored is applied. Of 16 bits per pixel the upper 8 are kept. Transparency
    is dropped, as in torchvision. Palettes are resolved, and an image with a palette of greys is grey. Of
    several frames the first is used.

    Raises:
        ValueError: not an image, truncated, or with 32 bits per pixel.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            return _pixels(image)
    except UnidentifiedImageError:
        raise ValueError(
            f"{name}: expected an image, got a file of no known format; remove the file or download it again"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name}: expected an image, got {error}; remove the file or download it again"
        ) from error


def _pixels(image: Image.Image) -> np.ndarray:
    from PIL import ImageOps

    kind = image.format
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in _AT_MOST_16_BITS):
        return (np.asarray(image) >> 8).astype(np.uint8)[:, :, None]  # Pillow would clip at 255
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a pixel, which have no scale")
    if image.mode in _GREY:
        return np.asarray(image.convert("L"))[:, :, None]
    palette = image.mode in ("P", "PA")
    if palette:  # Pillow warns when it drops the transparency of a palette
        image = image.convert("RGBA")
    pixels = np.asarray(image.convert("RGB"))
    grey = palette and bool((pixels == pixels[:, :, :1]).all())
    return pixels[:, :, :1] if grey else pixels


def alike(pixels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Images (h, w, c) with one c for all: in colour if any of them has colour, grey if all are grey."""
    channels = max(p.shape[2] for p in pixels)
    return [np.broadcast_to(p, (*p.shape[:2], channels)) for p in pixels]
