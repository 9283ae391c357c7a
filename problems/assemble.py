"""From tables that were checked to the rows of `linear_model.LinearModel`: weights of each fold, and the intercept."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from . import tables
from .families import AbstractFamily, Gaussian, Multinomial, one_hot
from .folds import masks
from .rows import AbstractRows, FoldRows, MeanRows

HELD = 1e-6  # the penalty of an intercept's distance from what is best without features


@dataclasses.dataclass
class Parts:
    """The fields of a `LinearModel`, from data that were checked: see `assemble`."""

    train: AbstractRows
    valid: AbstractRows
    held: Array | None
    shift: Array | None
    shape: tuple[int, ...]


def assemble(
    family: AbstractFamily, columns: int, train: tuple[Array, Any], valid: tuple[Array, Any], folds: Any, weights: Any,
    weights_valid: Any, intercept: bool,
) -> Parts:  # fmt: skip
    """Rows with their weights, and the intercept's part in them; with folds `valid` is `train`. ValueError for folds
    and weights that do not fit."""
    named = isinstance(family, Multinomial)
    (A, y), valid = ((a, jnp.asarray(t, jnp.int32 if named else a.dtype)) for a, t in (train, valid))
    if named and folds is None and weights is None and weights_valid is None and not intercept:
        return Parts(MeanRows(A, y), MeanRows(*valid), None, None, (A.shape[1], columns))
    n, p, dtype = *A.shape, A.dtype
    weights = tables.weighed("weights", weights, n)
    if folds is None:
        v, w = tables.weighed("weights_valid", weights_valid, len(valid[0]))[None], weights[None]
    else:
        if weights_valid is not None:
            raise ValueError("weights_valid goes with validation data: with folds, weights are those of all rows")
        chosen = masks(folds, n, np.asarray(y) if named else None)
        w, v = (weights * rows for rows in chosen)
    for what, rows in (("learns from", w), ("leaves out", v)):
        if not rows.sum(axis=1).all():
            raise ValueError(f"fold {int(np.argmin(rows.sum(axis=1)))} {what} rows of weight zero alone")
    w, v = w / w.sum(axis=1, keepdims=True), v / v.sum(axis=1, keepdims=True) / len(v)
    hot = np.asarray(one_hot(y, columns, dtype) if named else y, np.float64)
    targets = w @ hot.T  # (folds, columns)
    if named and not (targets > 0).all():
        fold, label = np.argwhere(targets <= 0)[0]
        raise ValueError(
            f"fold {fold} learns from no row of class {label}: take fewer folds, or k_folds(n, folds, labels=y)"
        )
    held, shift, means = None, None, np.zeros((len(w), p))
    base = jnp.zeros((len(w), columns), dtype)
    features = A, valid[0]
    if intercept:
        rows = np.asarray(A, np.float64)
        shift = np.mean(w, axis=0) @ rows
        means = w @ (rows - shift)
        base, shift = family.base(jnp.asarray(targets, dtype)), jnp.asarray(shift, dtype)
        if not np.isfinite(base).all():
            raise ValueError(
                "a fold learns from targets that are all 0, or all 1 (one class): its intercept is infinite"
            )
        features = tuple(a - shift[None] for a in features)
        if not isinstance(family, Gaussian):
            held, means = jnp.full((1, 1), HELD, dtype), np.pad(means, ((0, 0), (0, 1)))
            features = tuple(jnp.pad(a, ((0, 0), (0, 1)), constant_values=1) for a in features)
    means, targets = jnp.asarray(means, dtype), jnp.asarray(targets, dtype)
    features = (features[0],) * 2 if folds is not None else features  # one array, read by both levels
    train, valid = (
        FoldRows(a, t, jnp.asarray(rows, dtype), means, base, family, targets)
        for a, t, rows in zip(features, (y, valid[1]), (w, v), strict=True)
    )
    shape = (p if held is None else p + 1, columns)
    return Parts(train, valid, held, shift, shape if folds is None else (len(w), *shape))
