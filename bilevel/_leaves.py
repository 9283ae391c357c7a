"""What a leaf of the problem, of theta or of x must be, and in which dtype all of them are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._problem import AbstractProblem

REAL = "hold its real and imaginary parts in two arrays, or in one with a last axis of 2"


def data_dtype(problem: AbstractProblem, x0: PyTree | None) -> np.dtype:
    """The one dtype of the floats in the data. Raises TypeError if they have several, or one that is not supported."""
    leaves = [v for v in jax.tree.leaves((problem, x0)) if isinstance(v, jax.Array | np.ndarray)]
    dtypes = {np.dtype(v.dtype) for v in leaves if jnp.issubdtype(v.dtype, jnp.floating)}
    if len(dtypes) > 1:
        names = ", ".join(sorted(map(str, dtypes)))
        raise TypeError(f"the data mix {names}: convert them to one dtype, as in array.astype(np.float64)")
    dtype = dtypes.pop() if dtypes else np.dtype(jnp.result_type(float))
    if dtype == np.float64 and not jax.config.jax_enable_x64:
        raise TypeError(
            'the data are float64 but JAX runs in 32 bits: call jax.config.update("jax_enable_x64", True) before any '
            "other use of JAX, or convert the data with array.astype(np.float32)"
        )
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"the data are {dtype}; convert them to float32 or float64")
    return dtype


def field(leaf: Any, dtype: np.dtype, name: str) -> Any:
    """A leaf of a problem as an array, if it is a number; `name`, of the problem, is for the error."""
    if isinstance(leaf, float):
        return jnp.asarray(leaf, dtype)
    if not isinstance(leaf, jax.Array | np.ndarray):
        return leaf
    if np.dtype(object) == leaf.dtype or leaf.dtype.type in (np.str_, np.bytes_):
        raise TypeError(f"a field of {name} holds {leaf.dtype}, not numbers: convert it, as in array.astype(float)")
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.asarray(leaf)
    _reject(leaf, f"a field of {name}")
    return jnp.asarray(leaf)


def floating(tree: PyTree, dtype: np.dtype, name: str) -> PyTree:
    """theta or x in arrays of that dtype. Raises TypeError unless they are real floats, ValueError for none and NaN."""
    if not jax.tree.leaves(tree):
        raise ValueError(f"{name} holds no arrays")

    def convert(leaf):
        kind = getattr(leaf, "dtype", None)
        kind = np.asarray(leaf).dtype if kind is None else kind
        if jnp.issubdtype(kind, jnp.complexfloating):
            raise TypeError(f"{name} is complex, and derivatives are of real numbers: {REAL}")
        if not jnp.issubdtype(kind, jnp.floating):
            raise TypeError(f"{name} holds {kind}, but must hold floats: write -5.0 for -5, or {name}.astype(float)")
        leaf = jnp.asarray(leaf, dtype)
        _reject(leaf, name)
        return leaf

    return jax.tree.map(convert, tree)


def _reject(leaf, name):
    if leaf.size == 0:
        raise ValueError(f"{name} has an empty array of shape {leaf.shape}: there is nothing to learn from")
    if not finite(leaf):
        raise ValueError(f"{name} holds NaN or infinite values: remove or replace them first")


def finite(leaf: jax.Array | np.ndarray) -> bool:
    """Whether all of it is; by NumPy where it lies on the host, since JAX would compile each operation by itself."""
    if isinstance(leaf, np.ndarray):
        return bool(np.isfinite(leaf).all())
    if leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices()):
        return all(bool(np.isfinite(np.asarray(shard.data)).all()) for shard in leaf.addressable_shards)
    return bool(jnp.all(jnp.isfinite(leaf)))


def describe(tree: PyTree) -> PyTree:
    """Dtypes and shapes, for messages."""
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)
