"""Sparse features as JAX has them, a BCOO matrix with its rows in order, and their product with folds' weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Float

from .inputs import real

Features = Float[Array, "_ _"] | BCOO


def is_sparse(value: Any) -> bool:
    """Whether it is a SciPy sparse matrix or array, or a BCOO matrix."""
    return isinstance(value, BCOO) or scipy.sparse.issparse(value)


def features(name: str, value: Any) -> BCOO:
    """A sparse matrix with rows in order, no entry twice, none outside (where JAX's slices leave what they drop).
    A BCOO matrix of which this holds is taken as it is.

    Raises TypeError for dtypes, ValueError for batches.
    """
    if not isinstance(value, BCOO):
        value = from_scipy(value)
    elif value.ndim != 2 or value.n_batch or value.n_dense:
        raise ValueError(f"{name}: a BCOO of shape {value.shape} with {value.n_batch} batch axes; pass a matrix")
    elif not (value.indices_sorted and value.unique_indices and np.all(_inside(value))):
        value = from_scipy(to_scipy(value))
    real(name, value.data)
    return value


def from_scipy(value: Any) -> BCOO:
    """Of any SciPy format; a matrix without entries keeps a zero."""
    rows = value.tocsr(copy=True)
    rows.sum_duplicates()
    if not rows.nnz:
        rows = scipy.sparse.csr_array(([rows.dtype.type(0)], ([0], [0])), shape=rows.shape)
    rows = rows.tocoo()
    return entries(rows.data, rows.row, rows.col, rows.shape)


def to_scipy(A: BCOO) -> scipy.sparse.csr_array:
    """In float64."""
    kept = _inside(A)
    rows, columns = np.asarray(A.indices)[kept].T
    return scipy.sparse.csr_array((np.asarray(A.data, np.float64)[kept], (rows, columns)), shape=A.shape)


def _inside(A: BCOO) -> np.ndarray:
    return np.all(np.asarray(A.indices) < np.asarray(A.shape), axis=1)


def entries(data: Any, rows: Any, columns: Any, shape: tuple[int, int]) -> BCOO:
    """A BCOO matrix from entries, put in the order of their rows."""
    order = np.argsort(rows, kind="stable")
    indices = np.stack([rows, columns], axis=1)[order].astype(np.int32)
    parts = jnp.asarray(np.asarray(data)[order]), jnp.asarray(indices)
    return BCOO(parts, shape=tuple(shape), indices_sorted=True, unique_indices=True)


def columns(A: Features, chosen: np.ndarray) -> Features:
    """Those columns that are True in `chosen`."""
    if not isinstance(A, BCOO):
        return A[:, chosen]
    rows, column = np.asarray(A.indices).T
    kept = chosen[column]
    return entries(
        np.asarray(A.data)[kept], rows[kept], (np.cumsum(chosen) - 1)[column[kept]], (A.shape[0], int(chosen.sum()))
    )


def with_columns(A: Features, U: Float[np.ndarray, "n more"]) -> Features:
    """More columns, of which none need be sparse."""
    if not isinstance(A, BCOO):
        return jnp.concatenate([A, jnp.asarray(U, A.dtype)], axis=1)
    (n, p), more = A.shape, U.shape[1]
    rows, columns = np.asarray(A.indices).T
    new_rows, new_columns = (index.ravel() for index in np.indices(U.shape))
    data = np.concatenate([np.asarray(A.data), U.ravel().astype(A.dtype)])
    places = np.concatenate([rows, new_rows]), np.concatenate([columns, p + new_columns])
    return entries(data, *places, (n, p + more))


def times(A: Features, x: Float[Array, "folds features columns"]) -> Float[Array, "folds columns n"]:
    """x_k^T a_i. The precision forbids GPUs to round float32 to 10 bits."""
    K, p, c = x.shape
    if not isinstance(A, BCOO):
        return jnp.matmul(x.transpose(0, 2, 1).reshape(K * c, p), A.T, precision="highest").reshape(K, c, -1)
    rows, column = A.indices[:, 0], A.indices[:, 1]
    products = A.data[:, None] * x.transpose(1, 0, 2).reshape(p, K * c)[column]
    s = jax.ops.segment_sum(products, rows, A.shape[0], indices_are_sorted=True)
    return s.reshape(-1, K, c).transpose(1, 2, 0)


def absolute(A: BCOO) -> BCOO:
    """|A|, entry by entry."""
    return BCOO((jnp.abs(A.data), A.indices), shape=A.shape, indices_sorted=True, unique_indices=True)
