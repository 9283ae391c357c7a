"""From tables that were checked to the rows of `linear_model.LinearModel`: weights, offsets, what is not penalised."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel._processes import whole

from . import tables
from .families import AbstractFamily, Gaussian, Multinomial, one_hot
from .fixed import eliminate
from .fold_rows import FoldData, FoldRows
from .folds import masks
from .rows import AbstractRows, MeanRows
from .sparse import Features, is_sparse, to_scipy, with_columns
from .sparse import columns as columns_of
from .sparse_rows import SparseRows
from .without_features import without_features

HELD = 1e-5  # of l's typical curvature: the penalty of what is held, of its distance from what is best without features


class Table(NamedTuple):
    """Features and targets that were looked at; weights and offsets as they were given."""

    A: Features
    y: Any
    weights: Any
    offset: Any


@dataclasses.dataclass
class Parts:
    """Fields of a `LinearModel`."""

    train: AbstractRows
    valid: AbstractRows
    held: Array | None
    shift: Array | None
    mix: Array | None


class _Level(NamedTuple):
    A: Features  # what is penalised
    U: np.ndarray | None  # and what is not
    y: Array
    offset: np.ndarray | None


def read(
    look: Callable[[str, Any, Any], tuple[Features, Any]], A: Any, y: Any, A_valid: Any, y_valid: Any, folds: Any,
    weights: Any, weights_valid: Any, offset: Any = None, offset_valid: Any = None,
) -> tuple[Table, Table | None]:  # fmt: skip
    """Train and validation rows, looked at by look(name, A, y); None for the latter if there are folds. ValueError
    unless what goes together is given together."""
    split = tables.one_split(A_valid, y_valid, folds)
    if not split and not (weights_valid is None and offset_valid is None):
        raise ValueError(
            "weights_valid and offset_valid go with validation data: with folds, weights and offset are those of all "
            "rows"
        )
    train = Table(*look("train", A, y), weights, offset)
    if not split:
        return train, None
    valid = Table(*look("valid", A_valid, y_valid), weights_valid, offset_valid)
    tables.alike(train.A, valid.A)
    return train, valid


def assemble(
    family: AbstractFamily, columns: int, train: Table, valid: Table | None, folds: Any, intercept: bool,
    penalised: np.ndarray | None,
) -> Parts:  # fmt: skip
    """The fields; ValueError for folds, weights, offsets and columns that do not fit."""
    named = isinstance(family, Multinomial)
    dtype = jnp.int32 if named else train.A.dtype
    train, valid = (t and t._replace(y=jnp.asarray(t.y, dtype)) for t in (train, valid))
    plain = named and valid and not intercept and penalised is None
    if plain and not any(is_sparse(t.A) or t.weights is not None or t.offset is not None for t in (train, valid)):
        return Parts(MeanRows(*train[:2]), MeanRows(*valid[:2]), None, None, None)
    w, v = _weights(train, valid, folds, named)
    levels = [_level(family, columns, table, intercept, penalised) for table in (train, valid) if table]
    if len(levels) == 2 and (levels[0].offset is None) != (levels[1].offset is None):
        raise ValueError("offset and offset_valid go together: one of them is missing")
    A, U, y, offset = levels[0]
    (n, p), K, dtype = A.shape, len(w), A.dtype
    hot = whole(one_hot(y, columns, dtype) if named else y).astype(np.float64)
    targets = w @ hot.T  # (folds, columns)
    if named and not (targets > 0).all():
        fold, label = np.argwhere(targets <= 0)[0]
        raise ValueError(
            f"fold {fold} learns from no row of class {label}: take fewer folds, or k_folds(n, folds, labels=y)"
        )
    if U is None:
        nothing = FoldData(A, y, w, np.ones((n, 1)), np.zeros((K, 1, p)), np.zeros((K, 1, columns)), offset)
        return _rows(nothing, levels, v, family, targets, None, None, None)
    known = eliminate(U, w)
    if is_sparse(A):  # stays as it is
        shift, means = np.zeros((U.shape[1], p)), np.stack([(to_scipy(A).T @ P.T).T for P in known.P])
    else:
        rows = whole(A).astype(np.float64)
        shift = (known.U.T * np.mean(w, axis=0)) @ rows
        means = known.P @ (rows - known.U @ shift)
    if gaussian := isinstance(family, Gaussian):
        base = known.P @ hot.T
    else:
        base = without_features(family, known.U, hot, w, offset)
    data = FoldData(A, y, w, known.U, means, base, offset)
    return _rows(data, levels, v, family, targets, None if gaussian else HELD, shift, known.mix)


def _weights(train, valid, folds, named):
    """Of the rows that each fold learns from, and of those that it leaves out, (folds, n)."""
    weights = tables.weighed("weights", train.weights, train.A.shape[0])
    if valid:
        w, v = weights[None], tables.weighed("weights_valid", valid.weights, valid.A.shape[0])[None]
    else:
        w, v = (weights * rows for rows in masks(folds, train.A.shape[0], whole(train.y) if named else None))
    for what, rows in (("learns from", w), ("leaves out", v)):
        if not rows.sum(axis=1).all():
            raise ValueError(f"fold {int(np.argmin(rows.sum(axis=1)))} {what} rows of weight zero alone")
    return w / w.sum(axis=1, keepdims=True), v / v.sum(axis=1, keepdims=True) / len(v)


def _level(family, columns, table, intercept, penalised):
    A, y = table.A, table.y
    offset = tables.offsets(table.offset, columns, A.shape[0])
    if offset is not None and isinstance(family, Gaussian):
        y, offset = y - jnp.asarray(offset, y.dtype), None
    fixed = [np.ones((A.shape[0], 1))] if intercept else []
    if penalised is not None:
        free = columns_of(A, ~penalised)
        fixed.append(to_scipy(free).toarray() if is_sparse(free) else np.asarray(free, np.float64))
        A = columns_of(A, penalised)
    return _Level(A, np.concatenate(fixed, axis=1) if fixed else None, y, offset)


def _rows(data, levels, v, family, targets, held, shift, mix):
    """Rows of both levels: A without what U has of it, and U once more where it is held."""
    dtype = data.A.dtype
    pad = ((0, 0), (0, 0), (0, 0 if held is None else data.fixed.shape[1]))
    data = data._replace(means=np.pad(data.means, pad))

    def made(level, U, weights):
        A = level.A if shift is None or is_sparse(level.A) else level.A - jnp.asarray(U @ shift, dtype)
        A = A if held is None else with_columns(A, U)
        arrays = dict(weights=weights, fixed=U, means=data.means, base=data.base, offset=level.offset)
        arrays = {name: None if a is None else jnp.asarray(a, dtype) for name, a in arrays.items()}
        return FoldData(A=A, y=level.y, **arrays)

    train = made(levels[0], data.fixed, data.weights)
    if len(levels) == 1:
        valid = train._replace(weights=jnp.asarray(v, dtype))  # one array, read by both levels
    else:
        U = np.ones((levels[1].A.shape[0], 1)) if mix is None else levels[1].U @ mix
        valid = made(levels[1], U, v)
    targets = jnp.asarray(targets, dtype)
    kind = SparseRows if is_sparse(train.A) else FoldRows
    shift, mix = (None if a is None else jnp.asarray(a, dtype) for a in (shift, mix))
    if held is not None:  # to a power of ten, so that a fold is held as it would be alone
        held = held * jnp.reshape(10 ** jnp.round(jnp.log10(family.typical(targets))), (1, 1))
    return Parts(kind(train, family, targets), kind(valid, family, targets), held, shift, mix)
