"""Tables padded to few shapes, so that few programs are compiled: rows of weight zero, columns of zeros.

Neither changes anything: a row of weight zero is in no sum, and the weight of a column of zeros is zero at any penalty.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Shaped

from ..problems.sparse import entries


class Table(NamedTuple):
    """Features, targets, weights and the splits, as pairs (rows learnt from, rows left out) of indices."""

    A: Any  # (n, p), dense or in SciPy's CSR format
    y: Shaped[np.ndarray, "n ..."]
    weights: Float[np.ndarray, " n"]
    splits: list[tuple[np.ndarray, np.ndarray]]


def padded(table: Table) -> Table:
    """The table at the next shape; rows that no split uses. What is sparse gets entries of zero, too."""
    n, p = table.A.shape
    more = roomy(n, 32) - n
    A = table.A
    if scipy.sparse.issparse(A):
        A = _padded_entries(A, (n + more, roomy(p, 4)))
    else:
        A = np.pad(A, ((0, more), (0, roomy(p, 4) - p)))
    y = np.pad(table.y, ((0, more), *[(0, 0)] * (table.y.ndim - 1)))
    return Table(A, y, np.pad(table.weights, (0, more)), table.splits)


def _padded_entries(A, shape):
    A = A.tocsr(copy=True)
    A.sum_duplicates()
    A = A.tocoo()
    more = (0, roomy(A.nnz, 64) - A.nnz)
    last = [np.pad(index, more, constant_values=size - 1) for index, size in zip((A.row, A.col), shape, strict=True)]
    return entries(np.pad(A.data, more), *last, shape)


def roomy(size: int, least: int) -> int:
    """The next of 1, 2, 4, ..., 32, 40, 48, 56, 64, 80, ...: at most a quarter more, beyond 32; at least `least`."""
    power = 2 ** max(0, (size - 1).bit_length())
    if power > 32:
        eighth = power // 8
        power = -(-size // eighth) * eighth
    return max(power, least)
