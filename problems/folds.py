"""Which rows a fold learns from and which it leaves out, as arrays of zeros and ones, (folds, n).

k_folds(n, 5, seed=0)                    five folds of n rows, in random order
k_folds(n, 5, seed=0, labels=y)          stratified: as many rows of each class in each, to within one
k_folds(n, 5, seed=0, repeats=3)         fifteen folds, of three orders
k_folds(n, n)                            every row left out once
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool

Masks = Bool[np.ndarray, "folds n"]


def k_folds(n: int, folds: int, *, seed: int = 0, repeats: int = 1, labels: Any = None) -> Masks:
    """The rows that each of `folds * repeats` folds learns from, (folds * repeats, n); the others are left out.

    The rows are shuffled by `seed`, the first repeat's by (seed, 0) and so on. With `labels` (n,) each class is dealt
    to the folds in turn. Raises ValueError for fewer than two folds, more folds than rows, or no repeat.
    """
    if not 2 <= folds <= n:
        raise ValueError(f"{folds} folds of {n} rows: at least 2 folds, and at most one a row (n_splits > n_samples)")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    labels = np.zeros(n) if labels is None else np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), one a row, not {labels.shape}")
    masks = []
    for repeat in range(repeats):
        order = np.random.default_rng((seed, repeat)).permutation(n)
        order = order[np.argsort(labels[order], kind="stable")]
        fold = np.empty(n, int)
        fold[order] = np.arange(n) % folds
        masks += [fold != k for k in range(folds)]
    return np.stack(masks)


def masks(folds: Any, n: int, labels: Any = None) -> tuple[Masks, Masks]:
    """(rows learnt from, rows left out) of whatever says so: an int, the number of folds, as `k_folds(n, folds)` with
    these labels; integers (n,), the fold that leaves out the row; zeros and ones (folds, n), the rows learnt from; or
    pairs (train, test) of indices, as scikit-learn's splitters yield them.

    Raises ValueError for a fold that learns from no row or leaves out none, TypeError for anything else.
    """
    if isinstance(folds, (int, np.integer)) and not isinstance(folds, bool):
        train = k_folds(n, int(folds), labels=labels)
        return train, ~train
    if not isinstance(folds, Iterable):
        raise TypeError(f"folds={folds!r}: pass a number, labels (n,), an array (folds, n), or pairs of indices")
    folds = list(folds) if not hasattr(folds, "shape") else np.asarray(folds)
    if isinstance(folds, list) and folds and all(isinstance(pair, tuple) and len(pair) == 2 for pair in folds):
        train, test = (np.stack([_chosen(pair[k], n) for pair in folds]) for k in range(2))
    else:
        train, test = _of_array(np.asarray(folds), n)
    for rows, what in ((train, "learns from"), (test, "leaves out")):
        if not rows.any(axis=1).all():
            raise ValueError(f"fold {int(np.argmin(rows.any(axis=1)))} {what} no row: give every fold some of both")
    if (overlap := train & test).any():
        raise ValueError(f"fold {int(np.argmax(overlap.any(axis=1)))} leaves out rows that it learns from")
    return train, test


def _of_array(folds, n):
    if folds.shape == (n,) and np.issubdtype(folds.dtype, np.integer):
        left_out = np.unique(folds)[:, None] == folds
        return ~left_out, left_out
    if folds.ndim == 2 and folds.shape[1] == n and np.isin(folds, (0, 1)).all():
        return folds.astype(bool), ~folds.astype(bool)
    raise ValueError(
        f"folds of shape {folds.shape} and dtype {folds.dtype}: pass integers ({n},), the fold that leaves out each "
        f"row; zeros and ones (folds, {n}), the rows learnt from; or pairs (train, test) of indices"
    )


def _chosen(index, n):
    chosen = np.zeros(n, bool)
    chosen[np.asarray(index)] = True
    return chosen
