"""Regularisers of grey images that are computed one image at a time, on each device: what is needed stays in the cache.

The channels of a colour image are grey images.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .base import AbstractRegulariser


class ImageByImage(AbstractRegulariser):
    """`shards`, on how many devices the images lie, is for `Restoration` to say."""

    shards: int = eqx.field(default=1, static=True, kw_only=True)

    def bind(self, data):
        traced = isinstance(data, jax.core.Tracer)
        shards = 1 if traced else len(data) // data.sharding.shard_shape(data.shape)[0]
        return dataclasses.replace(self, shards=shards)

    def each(self, f, *stacks):
        """f(image, ...) of every image, one at a time on each device."""
        if self.shards == 1:
            return lax.map(lambda images: f(*images), stacks)
        split = [jnp.swapaxes(v.reshape(self.shards, -1, *v.shape[1:]), 0, 1) for v in stacks]
        out = lax.map(lambda images: jax.vmap(f)(*images), split)
        return jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1).reshape(-1, *v.shape[2:]), out)


def grey(x):
    """The channels as images."""
    return x if x.ndim == 3 else jnp.moveaxis(x, 3, 1).reshape(-1, *x.shape[1:3])
