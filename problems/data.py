"""Images to learn from: load, grey, crop or resize, add noise, hold some out.

Stacks (n, height, width) of floats in [0, 1]. NumPy on the host and an explicit seed for every draw, so one call gives
the same data on each device.

Grey comes first, as in the paper's setting: Pillow's 8-bit luminance "L", bilinear resize (8 bits), division by 255.
"""

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float
from numpy.typing import DTypeLike

from .inputs import channels_last, dense, stack
from .read_images import Images as Images
from .read_images import floating, load

# Left out of the wheels' images: textures that are noise at 96 x 96 (brick, grass, gravel), space, microscope images,
# drawings, and the other half of the stereo pair, which would leak a training image into the held-out ones.
_SKIMAGE = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
_SKLEARN = ("china.jpg", "flower.jpg")
KODAK = tuple(f"kodim{k:02d}.png" for k in range(1, 26))
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Pairs(NamedTuple):
    """`clean` and `noisy` images, both (n, height, width), and one name per image."""

    clean: Float[np.ndarray, "n height width"]
    noisy: Float[np.ndarray, "n height width"]
    names: tuple[str, ...]


class DenoisingSet(NamedTuple):
    """`train` to learn from, `held_out` to judge by (n = 0 unless asked for); no image is in both."""

    train: Pairs
    held_out: Pairs


def photographs(size: int = 96, dtype: DTypeLike = np.float64) -> Images:
    """The nine natural photographs inside the scikit-image and scikit-learn wheels; nothing is downloaded.

    Centred square crop, bilinear resize: (9, size, size). The smallest has 300 rows; a larger `size` enlarges.
    `ImportError` if a wheel is not installed.
    """
    paths = _packaged("skimage", "data", _SKIMAGE) + _packaged("sklearn", "datasets/images", _SKLEARN)
    images = load(sorted(paths, key=lambda path: path.name), size, "resize", dtype)
    return images._replace(names=tuple(Path(name).stem for name in images.names))


def kodak(size: int = 96, dtype: DTypeLike = np.float64, *, folder: str | os.PathLike | None = None) -> Images:
    """The 25 Kodak images `kodim01.png` to `kodim25.png` in the paper's setting: (25, size, size).

    The whole 3:2 image is squeezed to a square, not cropped. Read from `folder`, or else from `kodak/` in the folder
    that the environment variable `BILEVEL_DATA` names. `FileNotFoundError` if one is not there.
    """
    data = os.environ.get("BILEVEL_DATA")
    where = Path(folder) if folder is not None else Path(data, "kodak") if data else None
    missing = [name for name in KODAK if where is None or not (where / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"The Kodak images are not part of the package, and {len(missing)} of the 25 are missing "
            f"{f'in {where}' if where else '(BILEVEL_DATA is not set)'}: {', '.join(missing)}. Put them in a folder "
            "`kodak` and set the environment variable BILEVEL_DATA to the folder that holds it, or pass `folder=`."
        )
    return load([where / name for name in KODAK], size, "squeeze", dtype)


def folder(path: str | os.PathLike, size: int = 96, how: str = "resize", dtype: DTypeLike = np.float64) -> Images:
    """The images in the folder `path` (not in folders below it), sorted by name: (n, size, size).

    `how="resize"`: centred square crop, bilinear resize. `how="crop"`: the central size x size pixels as they are.
    8 bits per channel, or 16 bits grey, of which the upper 8 are used; transparency is ignored. `NotADirectoryError`;
    `FileNotFoundError` if there are no images; `ValueError` naming a file that is unreadable or too small to crop.
    """
    where = Path(path)
    if how not in ("resize", "crop"):
        raise ValueError(f"how must be 'resize' or 'crop', got {how!r}.")
    if not where.is_dir():
        raise NotADirectoryError(f"{where} is not a folder.")
    paths = sorted(p for p in where.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise FileNotFoundError(f"No images in {where}; looked for {', '.join(_SUFFIXES)}.")
    return load(paths, size, how, dtype)


def add_noise(images: np.ndarray | Array, sigma: float | int, *, seed: int) -> Float[np.ndarray, "..."]:
    """images + sigma N(0, 1) in the images' shape and dtype; not clipped, so values leave [0, 1].

    Drawn in float64 whatever the dtype: one seed is one noise. `ValueError` unless sigma is finite and >= 0 and the
    images are floats.
    """
    if not (np.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma must be finite and not negative, got {sigma}.")
    images = np.asarray(dense("images", images))
    dtype = floating(images.dtype)
    return (images + sigma * np.random.default_rng(seed).standard_normal(images.shape)).astype(dtype)


def denoising_set(
    source: str | os.PathLike | tuple | np.ndarray | Array = "photographs",
    *,
    sigma: float | int = 0.1,
    seed: int = 0,
    held_out: int | Iterable[str] = 0,
    size: int | None = None,
    dtype: DTypeLike | None = None,
) -> DenoisingSet:
    """Clean and noisy images to learn a denoiser from, and others to judge it by.

        train, held_out = data.denoising_set("my/photographs", sigma=0.1, held_out=5)
        problem = problems.TotalVariation(train.clean, train.noisy)

    - `source`: "photographs", "kodak", the path of a folder, `Images`, or an array (n, height, width) of floats in
      [0, 1], whose images are then named "0", "1", ...
    - `sigma`, `seed`: see `add_noise`. The noise on an image does not depend on which are held out.
    - `held_out`: how many images, drawn by `seed`; or which, by name.
    - `size`: 96 unless given; for files only, an array keeps its own.
    - `dtype`: float64 for files, the array's own, unless given.

    `ValueError` for an array that is empty, not floats, not finite, outside [0, 1] or in colour, for an unknown name,
    and when nothing would be left to train on.
    """
    clean, names = _images(source, size, dtype)
    noisy, n = add_noise(clean, sigma, seed=seed), len(names)
    if isinstance(held_out, int | np.integer):
        if not 0 <= held_out < n:
            raise ValueError(f"held_out must be at least 0 and leave one of {n} images to train on, got {held_out}.")
        # its own stream: the split must not depend on the size of the images
        out = np.isin(np.arange(n), np.random.default_rng((seed, 1)).permutation(n)[:held_out])
    else:
        chosen = {held_out} if isinstance(held_out, str) else set(held_out)
        if unknown := chosen.difference(names):
            raise ValueError(f"held_out names {sorted(unknown)}; the images are {list(names)}.")
        out = np.isin(names, list(chosen))
        if out.all():
            raise ValueError(f"held_out names all {n} images; leave one to train on.")
    return DenoisingSet(*(Pairs(clean[m], noisy[m], tuple(np.array(names)[m].tolist())) for m in (~out, out)))


def psnr(images: np.ndarray | Array, clean: np.ndarray | Array) -> Float[np.ndarray, "..."]:
    """-10 log10(mean squared error), in dB for the peak 1: (..., height, width) to (...); infinite where equal.

    `ValueError` if the shapes differ, for other than floats that run to 1, and for channels in the last axis.
    """
    images, clean = dense("images", images), dense("clean", clean)
    if images.shape != clean.shape or images.ndim < 2:
        raise ValueError(f"psnr needs two stacks of one shape (..., height, width): {images.shape}, {clean.shape}.")
    if channels_last(clean.shape):
        raise ValueError(
            f"psnr would read {clean.shape} as images {clean.shape[-1]} pixels wide. Channels last: for one number a "
            "picture pass x.reshape(*x.shape[:-2], -1), for one a channel np.moveaxis(x, -1, -3)."
        )
    floating(images.dtype), floating(clean.dtype)
    images, clean = np.asarray(images, np.float64), np.asarray(clean, np.float64)
    if clean.size and np.max(np.abs(clean)) > 10:
        raise ValueError(f"psnr is for the peak 1, and clean reaches {np.max(np.abs(clean)):.3g}: divide by 255.")
    with np.errstate(divide="ignore"):
        return np.asarray(-10 * np.log10(np.mean((images - clean) ** 2, axis=(-2, -1))))


def _images(source, size: int | None, dtype: DTypeLike | None) -> Images:
    """Whatever `denoising_set` was given, as checked images."""
    if isinstance(source, str | os.PathLike):
        loader = {"photographs": photographs, "kodak": kodak}.get(os.fspath(source))
        size, dtype = 96 if size is None else size, np.float64 if dtype is None else dtype
        return loader(size, dtype) if loader else folder(source, size, dtype=dtype)
    if size is not None:
        raise ValueError("size is for images read from files; an array keeps its own.")
    pixels = np.asarray(dense("images", source.pixels if isinstance(source, Images) else source))
    floating(pixels.dtype)
    stack("images", pixels.shape)
    if not pixels.size:
        raise ValueError(f"Images must be a stack (n, height, width) that is not empty, got shape {pixels.shape}.")
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN fails too
        raise ValueError(f"Images must lie in [0, 1], got {pixels.min()} to {pixels.max()}; scale or clip them.")
    names = source.names if isinstance(source, Images) else tuple(map(str, range(len(pixels))))
    return Images(pixels.astype(pixels.dtype if dtype is None else floating(dtype)), names)


def _packaged(package: str, place: str, names: tuple[str, ...]) -> list[Path]:
    """Files inside an installed package, found without importing it."""
    spec = find_spec(package)
    if spec is None:
        raise ImportError(f'The photographs ship inside {package}, not installed here: pip install "bilevel[images]"')
    return [Path(spec.submodule_search_locations[0], place, name) for name in names]
