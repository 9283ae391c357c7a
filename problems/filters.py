"""Filters to start from."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Filters = Float[Array, "K s s"]


def initial(seed: int | Array, filters: int = 48, size: int = 7, dtype: DTypeLike = float) -> dict[str, Array]:
    """A starting theta, as published: scale and weights -3, smoothings -3.5, taps N(0, 1/size) less each filter's mean.

    `seed`: an integer or a `jax.random.key`. 1/size is a variance: a standard deviation of 0.378 for 7 x 7.
    """
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    taps = jax.random.normal(key, (filters, size, size), dtype) / size**0.5
    return {
        "scale": jnp.asarray(-3.0, dtype),
        "weights": jnp.full(filters, -3.0, dtype),
        "smoothings": jnp.full(filters, -3.5, dtype),
        "filters": taps - jnp.mean(taps, axis=(1, 2), keepdims=True),
    }


def dct_filters(size: int, dtype: DTypeLike = float) -> Filters:
    """The size^2 - 1 products of two DCT-II vectors other than the constant one: orthonormal, zero mean."""
    return jnp.asarray(dct_products(size), dtype)


def dct_products(size: int) -> Float[np.ndarray, "K s s"]:
    """The same in NumPy, for what is no part of a program."""
    k = np.arange(size)
    basis = np.cos(np.pi * np.outer(k, k + 0.5) / size) * np.sqrt(np.where(k, 2, 1) / size)[:, None]
    return np.einsum("ai,bj->abij", basis, basis).reshape(-1, size, size)[1:]
