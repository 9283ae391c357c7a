"""Any matrix, such as tomography's: a row is a number that was measured."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..inputs import floats
from .base import AbstractOperator
from .pieces import Pieces


class Matrix(AbstractOperator):
    """`Matrix(A, shape)`: the rows of A times the pixels of an image, in NumPy's order (the last index runs fastest).

    - `A`: (measurements, height width), real and finite; a SciPy sparse matrix, or an array. Held twice, by rows and by
      columns, 12 bytes an entry of float64 each, so that A and A^T are equally fast.
    - `shape`: (height, width) of the images.

    Data are (n, measurements), with channels (n, measurements, channels). 0 and ||A||_1 ||A||_inf, the largest column
    and row sums of |A|, are bounds of A^T A's eigenvalues: ||A||^2 = rho(A^T A) <= ||A^T||_inf ||A||_inf. Raises
    ValueError for shapes and values, TypeError for dtypes.
    """

    by_rows: Pieces
    by_columns: Pieces
    largest: float
    shape: tuple[int, int] = eqx.field(static=True)

    def __init__(self, A: Any, shape: tuple[int, int]):
        rows, columns, values, size = _triplets(A)
        if len(shape) != 2 or size[1] != shape[0] * shape[1]:
            raise ValueError(
                f"a matrix of {size} does not fit images of {tuple(shape)}: it needs as many columns as pixels"
            )
        values = np.asarray(floats("A", values))
        if not np.any(values):
            raise ValueError("the matrix is zero: nothing was measured")
        self.by_rows, order = Pieces.of(rows, columns, values, size[0]), np.argsort(columns, kind="stable")
        self.by_columns = Pieces.of(columns[order], rows[order], values[order], size[1])
        absolute = np.abs(values.astype(np.float64))
        sums = [np.bincount(i, absolute, n).max() for i, n in ((rows, size[0]), (columns, size[1]))]
        self.largest = float(sums[0] * sums[1] * (1 + 1e-6))  # above the sums, and the product rounded to float32
        self.shape = tuple(shape)

    def apply(self, x):
        n, channels = len(x), x.shape[3:]
        return _stack(self.by_rows(_vectors(x.reshape(n, -1, *channels))), n, channels)

    def adjoint(self, y):
        return _stack(self.by_columns(_vectors(y)), len(y), y.shape[2:]).reshape(self.image_shape(y.shape))

    def extremes(self, shape):
        return 0.0, self.largest

    def image_shape(self, shape):
        if len(shape) not in (2, 3) or shape[1] != self.by_rows.count:
            raise ValueError(
                f"data of shape {shape} do not fit a matrix of {self.by_rows.count} rows: pass (n, measurements), "
                "with channels (n, measurements, channels)"
            )
        return (shape[0], *self.shape, *shape[2:])


def _vectors(stack):
    """(n, size) or (n, size, channels) as (n channels, size)."""
    return stack if stack.ndim == 2 else jnp.moveaxis(stack, 2, 1).reshape(-1, stack.shape[1])


def _stack(vectors, n, channels):
    """The inverse."""
    return jnp.moveaxis(vectors.reshape(n, *channels, -1), -1, 1)


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
