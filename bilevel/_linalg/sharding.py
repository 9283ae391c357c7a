"""How arrays lie over a mesh of devices, so that what is kept from step to step starts as programs give it back.

A program that reads an array on a mesh returns its results on that mesh. What is first made on one device, and then
comes back on four, compiles every program that takes it a second time.
"""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from .vectors import Vector


def on_mesh(v: Array) -> NamedSharding | None:
    """How v is laid over a mesh; None on one device, or under a transformation."""
    sharding = None if isinstance(v, jax.core.Tracer) else getattr(v, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def zeros(like: Vector, *leading: int) -> Vector:
    """Zeros as `like` is, with `leading` axes before its own, and laid out as it is."""

    def put(v):
        spread = on_mesh(v)
        device = spread and NamedSharding(spread.mesh, PartitionSpec(*(None for _ in leading), *spread.spec))
        return jax.device_put(np.zeros((*leading, *v.shape), v.dtype), device)  # jnp.zeros would be a program a shape

    return jax.tree.map(put, like)


def replicate(tree: PyTree, like: PyTree[Array]) -> PyTree:
    """The tree, copied to every device of the mesh that a leaf of `like` lies on; leaves already on a mesh stay."""
    spread = next((s for v in jax.tree.leaves(like) if (s := on_mesh(v)) is not None), None)
    if spread is None:
        return tree
    everywhere = NamedSharding(spread.mesh, PartitionSpec())

    def put(v):
        if on_mesh(v) is not None:
            return v
        if jax.numpy.issubdtype(v.dtype, jax.dtypes.prng_key):  # that JAX puts on no device of another process
            return jax.random.wrap_key_data(put(jax.random.key_data(v)), impl=jax.random.key_impl(v))
        return jax.device_put(v, everywhere)

    return jax.tree.map(put, tree)
