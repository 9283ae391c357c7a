"""Photographs from files: grey, square, between 0 and 1."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import DTypeLike

if TYPE_CHECKING:
    from PIL.Image import Image


class Images(NamedTuple):
    """`pixels` (n, height, width) in [0, 1], and one name per image."""

    pixels: Float[np.ndarray, "n height width"]
    names: tuple[str, ...]


def floating(dtype: DTypeLike) -> np.dtype:
    """The dtype, or a ValueError that says what to pass instead."""
    dtype = np.dtype(dtype)
    if not np.issubdtype(dtype, np.floating):
        remedy = {"c": "pass their magnitude, np.abs(images)", "V": "pass images.astype(np.float32)"}
        raise ValueError(
            f"Images are floats in [0, 1], not {dtype}; {remedy.get(dtype.kind, 'divide 8-bit images by 255')}."
        )
    return dtype


def load(paths: list[Path], size: int, how: str, dtype: DTypeLike) -> Images:
    """The files, grey, `size` x `size` by `how`: "resize", "crop" or "squeeze"."""
    dtype = floating(dtype)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    pixels = np.stack([_read(path, size, how) for path in paths])
    return Images(pixels.astype(dtype) / dtype.type(255), tuple(path.name for path in paths))


def _read(path: Path, size: int, how: str) -> UInt8[np.ndarray, "{size} {size}"]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError('Reading images needs Pillow: pip install "bilevel[images]"') from error
    try:
        with Image.open(path) as image:
            image = _grey(ImageOps.exif_transpose(image))  # a camera held upright stores its image turned
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"Cannot read the image {path}: {error}") from error
    width, height = image.size
    if how == "crop" and min(width, height) < size:
        raise ValueError(f"{path} has {width} x {height} pixels, too few to crop {size} x {size}.")
    if how != "squeeze":
        side = size if how == "crop" else min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _grey(image: "Image") -> "Image":
    """8-bit luminance."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        from PIL import Image

        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"32 bits per pixel (mode {image.mode}) do not say what white is; save it with 8 or 16")
    return image.convert("L")
