"""Norms of pytrees whose squares may vanish or overflow: ||v||, and both norms of a metric.

    ||v|| = sqrt(sum v^2) = s sqrt(sum (v/s)^2),      s = max |v|

The second form is right for any size of v, and costs another pass; it is taken where the first leaves the range that
the dtype has for squares: in float32 below about 1e-16, or above 1e19.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import PyTree

from .vectors import Scalar, Vector


def norm(v: Vector) -> Scalar:
    """||v||, Euclidean over all leaves."""
    squares = optax.tree.norm(v, squared=True)
    limits = jnp.finfo(squares.dtype)
    # what underflows in all is then less than eps of the sum
    plain = (squares > optax.tree.size(v) * float(limits.tiny) / float(limits.eps)) & (squares <= float(limits.max))

    def scaled():
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(v)]))
        s = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
        return s * optax.tree.norm(jax.tree.map(lambda leaf: leaf / s, v))

    return lax.cond(plain, lambda: jnp.sqrt(squares), scaled)


def dual_norm(v: Vector, metric: PyTree | None) -> Scalar:
    """||v||_{W^-1} = sqrt(sum v^2 / W), of gradients; Euclidean without a metric. See `Constants.metric`."""
    return norm(v if metric is None else jax.tree.map(lambda v, w: v / jnp.sqrt(w), v, metric))


def metric_norm(v: Vector, metric: PyTree | None) -> Scalar:
    """||v||_W = sqrt(sum W v^2), of distances in x and of adjoints; Euclidean without a metric."""
    return norm(v if metric is None else jax.tree.map(lambda v, w: v * jnp.sqrt(w), v, metric))
