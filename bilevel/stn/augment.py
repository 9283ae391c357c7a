"""Augmentations of one image whose strengths are traced, so that they can be tuned: `f(image, strength, key)`.

    brightness  x + s U x                       contrast  x + s U (x - mean x)       U uniform on [-1, 1]
    saturation  x + s U (x - luma x)            hue       turns the colours by s U turns about the grey axis
    noise       x + s N                         speckle   x + s N x                  N standard normal, per pixel
    affine      bilinear interpolation of x at the points that the random map brings to the grid
    cutout      x = 0 in squares at random places

An image is (channels, height, width), float32 or float64 in [0, 1], as Equinox's convolutions want it; the result has
its shape and dtype. Strength 0 returns it to the last bit. Nothing is clipped, so that means and variances are exact:
values may leave [0, 1]. Over a batch, each example with its own strength,

    jax.vmap(augment.brightness)(images, strengths, jax.random.split(key, len(images)))

Strengths are traced and so not checked: the ranges given are those that make sense; U and N are symmetric, so that a
negative s acts by its size. Raises TypeError for images that are not floats, ValueError for other shapes. After
torchvision's ColorJitter and RandomAffine, but linear in the image: no clipping, and hue turns about the grey axis.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int, PRNGKeyArray, Real

Image = Float[Array, "channels height width"]
Strength = Real[Array, ""] | float

LUMA = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601


class Motion(NamedTuple):
    """The strengths of `affine`, each the half-width of a uniform draw about no motion; None is no such motion."""

    rotation: Strength | None = None
    translation: Strength | None = None
    scale: Strength | None = None
    shear: Strength | None = None


class Holes(NamedTuple):
    """The strength of `cutout`: the side of each square in pixels, and how many squares. Integers, at least 0."""

    length: Int[Array, ""] | int
    number: Int[Array, ""] | int


def brightness(image: Array, strength: Strength, key: PRNGKeyArray) -> Image:
    """x + s U x, U one uniform draw on [-1, 1]; s in [0, 1], from where on the image may turn negative."""
    _check(image)
    return image + _uniform(image, strength, key) * image


def contrast(image: Array, strength: Strength, key: PRNGKeyArray) -> Image:
    """x + s U (x - mean x), the mean over pixels and channels, which is kept; s in [0, 1]."""
    _check(image)
    return image + _uniform(image, strength, key) * (image - jnp.mean(image))


def saturation(image: Array, strength: Strength, key: PRNGKeyArray) -> Image:
    """x + s U (x - luma x), luma = 0.299 red + 0.587 green + 0.114 blue at each pixel, which is kept; s in [0, 1].

    Raises ValueError unless there are 3 channels.
    """
    _check(image, colours="saturation")
    red, green, blue = image
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return image + _uniform(image, strength, key) * (image - luma[None])


def hue(image: Array, strength: Strength, key: PRNGKeyArray) -> Image:
    """`turn_hue(x, s U)`; s in [0, 1/2] turns, from where on every hue is reached.

    Raises ValueError unless there are 3 channels.
    """
    _check(image, colours="hue")
    return turn_hue(image, _uniform(image, strength, key))


def affine(image: Array, strength: Motion, key: PRNGKeyArray) -> Image:
    """`warp(x, ...)` with a uniform draw for each of five numbers:

    rotation    s U turns, s in [0, 1/2]
    translation (s U height, s U' width) pixels, s in [0, 1]
    scale       s U, the logarithm of the magnification, s in [0, log 2] or so
    shear       s U, s in [0, 1]
    """
    _check(image)
    _, height, width = image.shape
    # a key for each number: tuning one of them does not redraw the others
    turns, down, right, zoom, slant = (
        jnp.zeros((), image.dtype) if one is None else _uniform(image, one, k)
        for one, k in zip(
            (strength.rotation, strength.translation, strength.translation, strength.scale, strength.shear),
            jax.random.split(key, 5),
            strict=True,
        )
    )
    return warp(image, turns, jnp.stack([height * down, width * right]), zoom, slant)


def cutout(image: Array, strength: Holes, key: PRNGKeyArray) -> Image:
    """x = 0 in `number` squares of `length` x `length` pixels, their centres uniform on the pixels (arXiv 1708.04552).

    What reaches over the edge is lost, so at most number * length^2 pixels vanish in each channel. length from 0 to
    2 max(height, width) - 1, from where on one square covers everything; number from 0. Square k does not depend on how
    many follow it. Fractions are rounded down.
    """
    _check(image)
    _, height, width = image.shape
    length, number = (jnp.asarray(value).astype(jnp.int32) for value in strength)
    rows, columns = jnp.arange(height, dtype=jnp.int32), jnp.arange(width, dtype=jnp.int32)

    def dig(k, gone):
        centre = jax.random.randint(jax.random.fold_in(key, k), (2,), 0, jnp.asarray([height, width]), jnp.int32)
        top, left = centre - length // 2
        in_rows = (rows >= top) & (rows < top + length)
        in_columns = (columns >= left) & (columns < left + length)
        return gone | (in_rows[:, None] & in_columns[None, :])

    gone = jax.lax.fori_loop(0, number, dig, jnp.zeros((height, width), bool))
    return jnp.where(gone[None], 0, image)


def noise(image: Array, strength: Strength, key: PRNGKeyArray) -> Image:
    """x + s N, N independent standard normal draws; s >= 0 is their standard deviation."""
    _check(image)
    return image + jnp.asarray(strength, image.dtype) * jax.random.normal(key, image.shape, image.dtype)


def speckle(image: Array, strength: Strength, key: PRNGKeyArray) -> Image:
    """x + s N x, N independent standard normal draws: multiplicative noise; s >= 0 is its relative deviation."""
    _check(image)
    return image + jnp.asarray(strength, image.dtype) * jax.random.normal(key, image.shape, image.dtype) * image


def turn_hue(image: Array, turns: Strength) -> Image:
    """x + sin(a) K x + (1 - cos(a)) K^2 x, K x = (1, 1, 1)/sqrt(3) x x at each pixel, a = 2 pi turns.

    Rodrigues' rotation about the grey axis: keeps grey, the mean of the channels and the distance from grey. A third
    of a turn carries red to green, green to blue, blue to red. Raises ValueError unless there are 3 channels.
    """
    _check(image, colours="hue")
    angle = 2 * math.pi * jnp.asarray(turns, image.dtype)
    across = (jnp.roll(image, -2, axis=0) - jnp.roll(image, -1, axis=0)) / math.sqrt(3)
    towards_grey = jnp.mean(image, axis=0, keepdims=True) - image  # K^2
    # 1 - cos without cancellation, and exactly 0 at 0
    return image + jnp.sin(angle) * across + 2 * jnp.sin(angle / 2) ** 2 * towards_grey


def warp(image: Array, rotation: Strength, shift: Float[Array, "2"], scale: Strength, shear: Strength) -> Image:
    """The image moved by the map q -> c + R H S (q - c) + t about its centre c, 0 where nothing comes from:

    value at p = x(c + S^-1 H^-1 R^-1 (p - c - t)), bilinear between pixels

    S = e^scale, H moves a row by `shear` times its height above the centre, to the right; R turns by `rotation` turns,
    anticlockwise as seen; t = `shift` in pixels, (down, right). Whole pixels are moved exactly.
    """
    _check(image)
    _, height, width = image.shape
    turns, scale, shear = (jnp.asarray(value, image.dtype) for value in (rotation, scale, shear))
    shift = jnp.asarray(shift, image.dtype)
    angle = 2 * math.pi * turns
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # coordinates from the centre; y points down, so that anticlockwise as seen takes (x, y) to (cos x + sin y, ...)
    y = jnp.arange(height, dtype=image.dtype)[:, None] - ((height - 1) / 2 + shift[0])
    x = jnp.arange(width, dtype=image.dtype)[None, :] - ((width - 1) / 2 + shift[1])
    grid = (height, width)
    y, x = jnp.broadcast_to(y, grid), jnp.broadcast_to(x, grid)
    x, y = cos * x - sin * y, sin * x + cos * y  # R^-1
    x = x + shear * y  # H^-1
    y, x = jnp.exp(-scale) * y + (height - 1) / 2, jnp.exp(-scale) * x + (width - 1) / 2
    return jax.vmap(lambda channel: map_coordinates(channel, [y, x], order=1))(image)


def _uniform(image, strength, key):
    """strength U of the image's dtype, U uniform on [-1, 1]."""
    return jnp.asarray(strength, image.dtype) * jax.random.uniform(key, (), image.dtype, -1, 1)


def _check(image, colours=None):
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(f"the image is {image.dtype}: pass floats in [0, 1], as in image / 255")
    if image.ndim != 3:
        raise ValueError(
            f"the image has shape {image.shape}, not (channels, height, width): map a batch with jax.vmap, and give "
            "a grey image one channel, image[None]"
        )
    if colours and image.shape[0] != 3:
        raise ValueError(
            f"{colours} needs the 3 channels red, green, blue; the image has shape {image.shape}: leave {colours} out, "
            "or put the channels first, image.transpose(2, 0, 1)"
        )
