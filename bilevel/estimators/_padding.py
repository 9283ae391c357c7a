"""Tables padded to few shapes, so that few programs are compiled: rows of weight zero, columns of zeros.

Neither changes anything: a row of weight zero is in no sum, and the weight of a column of zeros is zero at any penalty.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped


class Table(NamedTuple):
    """Features, targets, weights and the splits, as pairs (rows learnt from, rows left out) of indices."""

    A: Float[np.ndarray, "n p"]
    y: Shaped[np.ndarray, "n ..."]
    weights: Float[np.ndarray, " n"]
    splits: list[tuple[np.ndarray, np.ndarray]]


def padded(table: Table) -> Table:
    """The table at the next shape; rows that no split uses."""
    n, p = table.A.shape
    more = roomy(n, 32) - n
    A = np.pad(table.A, ((0, more), (0, roomy(p, 4) - p)))
    y = np.pad(table.y, ((0, more), *[(0, 0)] * (table.y.ndim - 1)))
    return Table(A, y, np.pad(table.weights, (0, more)), table.splits)


def roomy(size: int, least: int) -> int:
    """The next of 1, 2, 4, ..., 32, 40, 48, 56, 64, 80, ...: at most a quarter more, beyond 32; at least `least`."""
    power = 2 ** max(0, (size - 1).bit_length())
    if power > 32:
        eighth = power // 8
        power = -(-size // eighth) * eighth
    return max(power, least)
