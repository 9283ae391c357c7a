"""A run over several processes: arrays of which each process holds a part, and what all have to agree on.

JAX's own runtime is the only one: `jax.distributed.initialize()`, and data on a mesh of all devices. A run is shared if
its data are; processes that solve problems of their own know nothing of each other.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ._linalg.sharding import replicate


def shared(tree: PyTree) -> bool:
    """Whether other processes hold a part of it. An iterator is not looked into: that would use it up."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda v: isinstance(v, Iterator))
    return any(isinstance(v, jax.Array) and not v.is_fully_addressable for v in leaves)


def whole(v: Any) -> np.ndarray:
    """All of an array, on the host; where others hold a part, every process has to ask."""
    if not shared(v):
        return np.asarray(v)
    if v.is_fully_replicated:
        return np.asarray(v.addressable_data(0))
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(v, tiled=True))


def everywhere(tree: PyTree) -> PyTree:
    """The tree, of whose arrays every process has all; as it is where no other process holds a part."""
    if not shared(tree):
        return tree
    return jax.tree.map(lambda v: replicate(jax.numpy.asarray(whole(v)), tree), tree)


def laid_out(array: np.ndarray, like: jax.Array) -> jax.Array:
    """The array, of which every process has all, laid out as `like`."""
    if not shared(like):
        return jax.device_put(array, like.sharding)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def anywhere(told: bool, asked: bool) -> bool:
    """Whether it is so in this process; if `asked`, in any, and then every process has to ask."""
    if not asked:
        return told
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.any(process_allgather(np.asarray(told))))


def told_by_first(told: bool, asked: bool) -> bool:
    """Whether it is so in this process; if `asked`, in the first one, and then every process has to ask."""
    if not asked:
        return told
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return bool(broadcast_one_to_all(np.asarray(told)))


def first() -> bool:
    """Whether this is the process that writes and tells."""
    return jax.process_index() == 0
