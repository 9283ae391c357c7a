"""What every problem asks of the arrays that it is given: dense, real, of a dtype that JAX computes in, images grey.

What would be read as something else than was meant is an error, and the error says what to write instead.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array

from bilevel._leaves import finite

CHANNELS = 4  # an axis behind two longer ones that is no longer than this holds channels, not pixels
NUMBER = "number the classes from 0 over train and valid together, np.unique(labels, return_inverse=True)[1]"


def dense(name: str, value: object) -> Array | np.ndarray:
    """The value as an array. TypeError for sparse matrices and arrays, ValueError for masked entries, which NumPy would
    turn into an object and into whatever lies under the mask."""
    written = name.split()[-1]
    for method in ("toarray", "todense"):
        if hasattr(value, method):
            raise TypeError(
                f"{name}: sparse data ({type(value).__name__}) are not supported; pass {written}.{method}(), if that "
                "fits into memory"
            )
    if np.ma.is_masked(value):
        raise ValueError(f"{name} has masked entries: replace or drop them, as in {written}.filled(0)")
    return value if isinstance(value, jax.Array) else np.asarray(value)


def real(name: str, array: Array | np.ndarray) -> None:
    """Raises TypeError unless the array is float32, or float64 while JAX computes in 64 bits."""
    written, wide = name.split()[-1], jax.config.jax_enable_x64
    if jnp.issubdtype(array.dtype, np.complexfloating):
        raise TypeError(
            f"{name}: {array.dtype} where real numbers are needed; pass np.abs({written}), or {written}.real and "
            f"{written}.imag as arrays of their own"
        )
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(
            f"{name}: {array.dtype} where float32 or float64 is needed; pass "
            f"{written}.astype(np.{'float64' if wide else 'float32'})"
        )
    if array.dtype == np.float64 and not wide:
        raise TypeError(
            f'{name} is float64 but JAX runs in 32 bits: call jax.config.update("jax_enable_x64", True) before any '
            f"other use of JAX, or pass {written}.astype(np.float32)"
        )


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether the last axis is one of channels: at most 4 long, and both before it longer than 4."""
    return len(shape) >= 3 and shape[-1] <= CHANNELS < min(shape[-3:-1])


def stack(name: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the shape is that of grey images, (n, height, width)."""
    written = name.split()[-1]
    if len(shape) == 3 and channels_last(shape):
        n, height, width = shape
        grey = ""
        if width >= 3:
            grey = f", or one grey image, ({written}[..., :3] @ [0.299, 0.587, 0.114])[None]: a third of the work"
        raise ValueError(
            f"{name} has shape {shape}: a picture with its {width} channels last would be read as {n} images of "
            f"{height} x {width}. For colour pass {written}[None] to problems.Restoration(clean, noisy, "
            f"problems.TV()), whose root ties the channels, or the channels as grey images, "
            f"np.moveaxis({written}, -1, 0){grey}. (Images that are {width} pixels wide: {written}.swapaxes(1, 2).)"
        )
    if len(shape) == 2:
        remedy = f": pass {written}[None] for one image"
    elif len(shape) == 4:
        last = channels_last(shape)
        front = f"np.moveaxis({written}, -1, 1)" if last else written
        remedy = ": pass the channels as grey images, {}.reshape(-1, {}, {}){}".format(
            front,
            *(shape[1:3] if last else shape[2:]),
            ", or colour to problems.Restoration(clean, noisy, problems.TV())" if last else "",
        )
    else:
        remedy = ""
    if len(shape) != 3:
        raise ValueError(f"{name} must be a stack (n, height, width), not of shape {shape}{remedy}")


def floats(name: str, value: ArrayLike) -> Array:
    """Real numbers as a JAX array. Raises TypeError for dtypes and sparse data, ValueError for values not finite."""
    array = dense(name, value)
    if array.dtype == bool or np.issubdtype(array.dtype, np.integer):
        written = name.split()[-1]
        raise TypeError(f"{name} is {array.dtype}: divide by 255, {written}.astype(float) / 255, or pass floats")
    real(name, array)
    array = jnp.asarray(array)
    # made under a transformation there are no values to look at
    if not isinstance(array, jax.core.Tracer) and not finite(array):
        raise ValueError(f"{name} holds NaN or infinite values: replace or drop them")
    return array


def images(name: str, value: ArrayLike, low: float, high: float) -> Array:
    """Grey images (n, height, width) of floats in [low, high] as a JAX array, at least 2 x 2 pixels each.

    Raises TypeError for dtypes and sparse data, ValueError for shapes and values.
    """
    array = floats(name, value)
    stack(name, array.shape)
    if array.shape[0] == 0 or min(array.shape[1:]) < 2:
        raise ValueError(f"{name} has shape {array.shape}: pass at least one image, of at least 2 x 2 pixels")
    if isinstance(array, jax.core.Tracer):
        return array
    smallest, largest = float(jnp.min(array)), float(jnp.max(array))
    if smallest < low or largest > high:
        raise ValueError(
            f"{name} lies in [{smallest:.3g}, {largest:.3g}], not in [{low}, {high}]: intensities run from 0 to 1; "
            f"divide by 255 if yours run to 255, or {name}.clip({low}, {high})"
        )
    return array


def pairs(clean: ArrayLike | None, noisy: ArrayLike) -> tuple[Array | None, Array]:
    """Clean and noisy grey images of one shape and dtype, as `images`: [0, 1], and [-9, 10] to leave room for noise."""
    noisy = images("noisy", noisy, -9, 10)
    clean = None if clean is None else images("clean", clean, 0, 1)
    if clean is not None:
        alike(clean, noisy, "noisy")
    return clean, noisy


def alike(clean: Array, other: Array, name: str) -> None:
    """Raises ValueError unless both have one shape, TypeError unless they have one dtype."""
    if clean.shape != other.shape:
        raise ValueError(f"clean is {clean.shape}, {name} {other.shape}: pass stacks of the same shape")
    if clean.dtype != other.dtype:
        raise TypeError(f"clean is {clean.dtype}, {name} {other.dtype}: pass {name}.astype(clean.dtype)")


def classes(train: Array | np.ndarray, valid: Array | np.ndarray) -> int:
    """How many classes the integer labels (n,) and (n_valid,) name.

    Raises ValueError unless there are two at least, numbered 0 ... classes - 1, and all of them in train.
    """
    train, valid = (np.unique(_on_host(labels)).astype(np.int64) for labels in (train, valid))
    found = np.union1d(train, valid)
    if len(found) < 2:
        raise ValueError(f"all labels are {found[0]}: logistic regression needs at least two classes")
    if found[0] != 0 or found[-1] != len(found) - 1:
        some = f"{found.tolist()}" if len(found) <= 10 else f"{str(found[:10].tolist())[:-1]}, ...]"
        raise ValueError(
            f"the labels are {some}, {len(found)} classes that are not numbered 0 ... {len(found) - 1}, and a number "
            f"that does not occur would be a class that nothing is known of: {NUMBER}"
        )
    if len(unseen := np.setdiff1d(valid, train)):
        raise ValueError(
            f"the labels {unseen.tolist()} occur in valid and not in train, where nothing can be learnt about them: "
            "split so that each class is in train (stratified), or drop these rows of valid and number what is left, "
            "np.isin(valid_labels, train_labels)"
        )
    return len(found)


def _on_host(labels):
    """Labels as NumPy has them; gathered where other processes hold a part."""
    if isinstance(labels, jax.Array) and not labels.is_fully_addressable:
        everywhere = NamedSharding(labels.sharding.mesh, PartitionSpec())
        labels = jax.jit(lambda y: y, out_shardings=everywhere)(labels)
    return np.asarray(labels)
