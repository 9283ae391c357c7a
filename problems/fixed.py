"""Columns that are not penalised, an intercept's among them: least squares without them.

    min over x_k, c_k of  1/2 sum_i w_ki ||x_k^T a_i + c_k^T u_i - y_i||^2 + penalty(x_k)

With P_k = (U^T W_k U)^{-1} U^T W_k the best c_k = P_k y - P_k A x_k, and a_i - (P_k A)^T u_i and y_i - (P_k y)^T u_i
stand in place of a_i and y_i. What is left is as convex as the penalty: a least value over c_k takes none of it away.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Columns = Float[np.ndarray, "n fixed"]
DEPENDENT = 1e-8  # of a column's square, what the columns before it must leave


class Elimination(NamedTuple):
    """`U`, orthonormal in the folds' mean weights, is the columns given times `mix`; `P` its P_k."""

    U: Columns
    mix: Float[np.ndarray, "fixed fixed"]
    P: Float[np.ndarray, "folds fixed n"]


def eliminate(U: Columns, weights: Float[np.ndarray, "folds n"]) -> Elimination:
    """ValueError for columns that depend on each other on the rows that a fold learns from: their weights there, and so
    what is predicted elsewhere, are not determined."""
    _independent(U, weights)
    root = np.sqrt(np.mean(weights, axis=0))[:, None]
    _, R = np.linalg.qr(root * U)
    mix = np.linalg.inv(R * np.sign(np.diag(R))[:, None])
    if U.shape[1] == 1 and (U == 1).all():
        mix = np.ones((1, 1))
    U = U @ mix
    return Elimination(U, mix, np.stack([np.linalg.solve((U.T * w) @ U, U.T * w) for w in weights]))


def _independent(U, weights):
    for k, w in enumerate(weights):
        rows = np.sqrt(w)[:, None] * U
        sizes = np.linalg.norm(rows, axis=0)
        left = np.abs(np.diag(np.linalg.qr(rows / np.where(sizes > 0, sizes, 1))[1]))
        if len(left) < U.shape[1] or (sizes == 0).any() or left.min() < DEPENDENT**0.5:
            raise ValueError(
                f"on the rows that fold {k} learns from the columns that are not penalised, the intercept's included, "
                "depend on each other: penalise some of them"
            )
