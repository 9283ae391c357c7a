"""What linear models ask of the tables that they are given: features, labels, targets, weights."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel._leaves import finite

from .inputs import NUMBER, dense, real
from .penalties import AbstractPenalties, ByShape, Combined, Grouped
from .sparse import Features, is_sparse
from .sparse import features as sparse_features


def labelled(name: str, features: Any, labels: Any) -> tuple[Features, Array | np.ndarray]:
    """Features as a JAX array, labels as an array of integers, or an error that says what to write instead."""
    features, labels = _features(name, features), dense(f"{name} labels", labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{name} labels are {labels.dtype}, not integers: {NUMBER}")
    _table(name, features)
    if labels.shape != features.shape[:1]:
        hot = "; if they are one-hot, pass labels.argmax(axis=1)" if labels.ndim == 2 else ""
        raise ValueError(
            f"{name} has {features.shape[0]} rows of features, but labels of shape {labels.shape}: pass one a row{hot}"
        )
    return _values(name, features), labels


def measured(name: str, features: Any, targets: Any, several: bool = False) -> tuple[Features, Array]:
    """Features, and targets as (targets, n) of the same dtype; `several`: whether there may be."""
    features, targets = _features(name, features), dense(f"{name} targets", targets)
    real(f"{name} targets", targets)
    _table(name, features)
    if targets.dtype != features.dtype:
        raise TypeError(f"{name} features are {features.dtype}, targets {targets.dtype}: use one dtype")
    if targets.shape[:1] != features.shape[:1] or targets.ndim > 1 + several or 0 in targets.shape:
        more = f", or ({features.shape[0]}, targets)" if several else ""
        raise ValueError(
            f"{name} has {features.shape[0]} rows of features, but targets of shape {targets.shape}: pass "
            f"({features.shape[0]},){more}"
        )
    if not finite(targets):
        raise ValueError(f"{name} targets hold NaN or infinite values: remove or replace them first")
    return _values(name, features), jnp.asarray(targets.reshape(len(targets), -1).T)


def one_split(A_valid: Any, y_valid: Any, folds: Any) -> bool:
    """Whether there are validation data, and not folds. ValueError for both, neither, or half of them."""
    if (A_valid is None) != (y_valid is None):
        raise ValueError("validation features and targets go together: one of them is missing")
    if (A_valid is None) == (folds is None):
        raise ValueError(f"pass {'either' if folds is not None else 'one of'} A_valid and y_valid, or folds=")
    return folds is None


def alike(train: Features, valid: Features) -> None:
    """Raises unless both have the same columns and dtype."""
    if train.shape[1] != valid.shape[1]:
        raise ValueError(f"train has {train.shape[1]} features, valid {valid.shape[1]}: they must be the same columns")
    if is_sparse(train) != is_sparse(valid):
        raise TypeError("of train and valid features one is sparse: pass both sparse, or both dense")
    if train.dtype != valid.dtype:
        raise TypeError(f"train features are {train.dtype}, valid {valid.dtype}: use one dtype")


def weighed(name: str, weights: Any, n: int) -> np.ndarray:
    """Sample weights (n,), not negative, in float64; ones where there are none."""
    if weights is None:
        return np.ones(n)
    weights = np.asarray(dense(name, weights), np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or weights.min() < 0 or weights.max() == 0:
        raise ValueError(f"{name} must be {n} numbers, one a row, finite, none negative and not all zero")
    return weights


def offsets(offset: Any, columns: int, n: int) -> np.ndarray | None:
    """Offsets (n,), or (n, columns), as (columns, n) in float64."""
    if offset is None:
        return None
    offset = np.asarray(dense("offset", offset), np.float64)
    offset = offset[:, None] if offset.shape == (n,) and columns == 1 else offset
    if offset.shape != (n, columns) or not np.isfinite(offset).all():
        shape = f"({n},)" if columns == 1 else f"({n}, {columns}), one for each column of scores,"
        raise ValueError(f"offsets must be finite numbers of shape {shape} not {offset.shape}")
    return offset.T


def chosen(penalised: Any, features: int) -> np.ndarray | None:
    """Which columns are penalised, (features,), True or False; None where all are."""
    if penalised is None:
        return None
    mask = np.asarray(penalised)
    if mask.shape != (features,) or mask.dtype != bool or not mask.any():
        raise ValueError(
            f"penalised must be True or False for each of the {features} columns, and True for one at least; it has "
            f"shape {mask.shape} and dtype {mask.dtype}"
        )
    return None if mask.all() else mask


def back(mask: np.ndarray) -> np.ndarray:
    """Where each column is in a table of first those in the mask, then the others."""
    return np.argsort(np.argsort(~mask, kind="stable"), kind="stable")


def shared(penalties: Any, features: int, columns: int, dtype: np.dtype) -> AbstractPenalties:
    """None: by theta's shape; integers (features,): groups, numbered from 0; floats (features, d): theta = B gamma."""
    if penalties is None:
        return ByShape(features, columns)
    array = np.asarray(penalties)
    if array.shape == (features,) and np.issubdtype(array.dtype, np.integer):
        count = int(array.max()) + 1
        if len(np.unique(array)) != count or array.min() < 0:
            raise ValueError(
                "groups must be numbered 0, 1, ... without a gap: np.unique(groups, return_inverse=True)[1]"
            )
        return Grouped(jnp.asarray(array, jnp.int32), count)
    if array.ndim == 2 and len(array) == features and array.shape[1] and np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ValueError("penalties, the matrix B of theta = B gamma, hold NaN or infinite values")
        return Combined(jnp.asarray(array, dtype))
    raise ValueError(
        f"penalties of shape {array.shape} and dtype {array.dtype}: pass integers ({features},), the features' groups, "
        f"or floats ({features}, d), the matrix B of theta = B gamma"
    )


def _features(name, features):
    if is_sparse(features):
        return sparse_features(f"{name} features", features)
    features = dense(f"{name} features", features)
    real(f"{name} features", features)
    return features


def _table(name, features):
    if features.ndim != 2 or features.shape[0] == 0 or features.shape[1] == 0:
        column = "; for one feature pass features[:, None]" if features.ndim == 1 else ""
        raise ValueError(
            f"{name} features must have shape (n, features), n and features at least 1, not {features.shape}{column}"
        )


def _values(name, features):
    values = features.data if is_sparse(features) else features
    if not finite(values):
        raise ValueError(f"{name} features hold NaN or infinite values: remove or replace them first")
    values = jnp.asarray(values)
    features = features if is_sparse(features) else values
    # the constants are made of squares, summed over the data
    limits, reach = jnp.finfo(values.dtype), float(jnp.maximum(jnp.max(values), -jnp.min(values)))
    if reach and not float(limits.tiny) ** 0.5 < reach < (float(limits.max) / values.size) ** 0.5:
        raise ValueError(f"{name} features reach {reach:.1e}, whose squares {features.dtype} cannot hold: scale them")
    return features
