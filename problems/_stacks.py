"""Images of different sizes: one stack for each size, and back again; and what holds of all stacks together.

H is block diagonal over the stacks, J is one below the other.
"""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

Order = tuple[tuple[int, ...], ...]  # which images stand in each stack


def stacked(*lists: Sequence) -> tuple[list[tuple], Order]:
    """Every list as stacks, in which images stand together whose shapes are alike in all lists; and the order.

    Raises ValueError for lists that are empty or of different lengths.
    """
    if len({len(images) for images in lists}) != 1 or not lists[0]:
        raise ValueError(f"pass lists of as many images each, and one at least; not of {[len(v) for v in lists]}")
    groups: dict[tuple, list[int]] = {}
    for k, images in enumerate(zip(*lists, strict=True)):
        groups.setdefault(tuple(np.shape(image) for image in images), []).append(k)
    order = tuple(map(tuple, groups.values()))
    return [tuple(_stack([images[k] for k in group]) for group in order) for images in lists], order


def unstacked(stacks: tuple[Array, ...], order: Order) -> list[Array]:
    """The images of all stacks, as they stood in the list."""
    images = {
        k: image for stack, group in zip(stacks, order, strict=True) for k, image in zip(group, stack, strict=True)
    }
    return [images[k] for k in range(len(images))]


def _stack(images):
    kinds = [jnp if hasattr(image, "sharding") else np for image in images]
    return (jnp if jnp in kinds else np).stack(images)


def each(x: PyTree) -> tuple:
    """The stacks of x."""
    return x if isinstance(x, tuple) else (x,)


def _joined(join: Callable) -> Callable:
    """Of numbers, two by two; None if one of them is not known."""
    return lambda values: None if any(v is None for v in values) else functools.reduce(join, values)


def hypot(a: Array | None, b: Array) -> Array | None:
    """sqrt(a^2 + b^2), whose squares may vanish or overflow; None if a is not known."""
    return None if a is None else jnp.hypot(a, b)


smallest, largest, root = _joined(jnp.minimum), _joined(jnp.maximum), _joined(hypot)


def top(columns: list[list[Array]]) -> Array:
    """||J|| from the columns of J on every stack: the root of the largest eigenvalue of their Gram matrix."""
    gram = sum(jnp.stack([jnp.stack([jnp.sum(a * b) for b in stack]) for a in stack]) for stack in columns)
    return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram)[-1], 0))
