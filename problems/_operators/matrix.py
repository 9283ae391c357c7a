"""Any matrix, such as tomography's: a row is a number that was measured."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

from ..inputs import floats
from .base import AbstractOperator


class Matrix(AbstractOperator):
    """`Matrix(A, shape)`: the rows of A times the pixels of an image, in NumPy's order (the last index runs fastest).

    - `A`: (measurements, height width), real and finite; a SciPy sparse matrix, or an array. Held as JAX's BCOO.
    - `shape`: (height, width) of the images.

    Data are (n, measurements), with channels (n, measurements, channels). 0 and ||A||_1 ||A||_inf, the largest column
    and row sums of |A|, are bounds of A^T A's eigenvalues: ||A||^2 = rho(A^T A) <= ||A^T||_inf ||A||_inf. Raises
    ValueError for shapes and values, TypeError for dtypes.
    """

    entries: sparse.BCOO
    largest: float
    shape: tuple[int, int] = eqx.field(static=True)

    def __init__(self, A: Any, shape: tuple[int, int]):
        rows, columns, values, size = _triplets(A)
        if len(shape) != 2 or size[1] != shape[0] * shape[1]:
            raise ValueError(
                f"a matrix of {size} does not fit images of {tuple(shape)}: it needs as many columns as pixels"
            )
        values = floats("A", values)
        if values.size == 0 or not np.any(np.asarray(values)):
            raise ValueError("the matrix is zero: nothing was measured")
        where = jnp.asarray(np.stack([rows, columns], axis=1).astype(np.int32))
        self.entries = sparse.BCOO((values, where), shape=size, indices_sorted=True, unique_indices=True)
        absolute = np.abs(np.asarray(values, np.float64))
        sums = [np.bincount(i, absolute, n).max() for i, n in ((rows, size[0]), (columns, size[1]))]
        self.largest = float(sums[0] * sums[1] * (1 + 1e-6))  # above the sums, and the product rounded to float32
        self.shape = tuple(shape)

    def apply(self, x):
        n, channels = len(x), x.shape[3:]
        return _back(self.entries @ _columns(x, self.shape[0] * self.shape[1]), (n, -1, *channels))

    def adjoint(self, y):
        return _back(self.entries.T @ _columns(y, y.shape[1]), self.image_shape(y.shape))

    def extremes(self, shape):
        return 0.0, self.largest

    def image_shape(self, shape):
        if len(shape) not in (2, 3) or shape[1] != self.entries.shape[0]:
            raise ValueError(
                f"data of shape {shape} do not fit a matrix of {self.entries.shape[0]} rows: pass (n, measurements), "
                "with channels (n, measurements, channels)"
            )
        return (shape[0], *self.shape, *shape[2:])


def _columns(stack, size):
    """(n, ..., channels) as (size, n channels): one column an image and channel."""
    stack = stack.reshape(len(stack), size, -1)
    return jnp.moveaxis(stack, 1, 0).reshape(size, -1)


def _back(columns, shape):
    """The inverse of `_columns`, into a shape."""
    return jnp.moveaxis(columns.reshape(len(columns), shape[0], -1), 0, 1).reshape(shape)


def _triplets(A):
    """Rows, columns and values, sorted, each place once; and the shape."""
    if hasattr(A, "tocsr"):
        A = A.tocsr()
        A.sum_duplicates()
        A = A.tocoo()
        rows, columns, values = A.row, A.col, A.data
    else:
        A = np.asarray(A)
        if A.ndim != 2:
            raise ValueError(f"A must be a matrix (measurements, pixels), not of shape {A.shape}")
        rows, columns = np.nonzero(A)
        values = A[rows, columns]
    order = np.lexsort((columns, rows))
    return rows[order], columns[order], values[order], A.shape
