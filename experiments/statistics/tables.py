"""Six tables, and which of their features belong together."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn import datasets


class Table(NamedTuple):
    """Features, targets, a label for each feature's group, whether the targets are classes, the share to learn from."""

    X: np.ndarray
    y: np.ndarray
    groups: np.ndarray
    classes: bool
    share: float


def diabetes() -> Table:
    """The person's four measurements, and six of the blood serum."""
    X, y = datasets.load_diabetes(return_X_y=True)
    return Table(X, (y - y.mean()) / y.std(), np.repeat(["person", "serum"], [4, 6]), False, 0.5)


def products() -> Table:
    """The same with all products of two features: features, squares, products."""
    X, y, *_ = diabetes()
    X = X / X.std(axis=0)
    first, second = np.triu_indices(X.shape[1])
    kinds = np.where(first == second, "squares", "products")
    return Table(np.hstack([X, X[:, first] * X[:, second]]), y, np.append(["features"] * 10, kinds), False, 0.5)


def cancer() -> Table:
    """Ten measurements of cells: their means, standard errors and worst values."""
    X, y = datasets.load_breast_cancer(return_X_y=True)
    return Table(X, y, np.repeat(["mean", "error", "worst"], 10), True, 0.5)


def wine() -> Table:
    """Alcohol; acid, ash and minerals; phenols; colour; proline."""
    X, y = datasets.load_wine(return_X_y=True)
    groups = np.repeat(["alcohol", "minerals", "phenols", "colour", "proline"], [1, 4, 4, 3, 1])
    return Table(X, y, groups, True, 0.5)


def digits() -> Table:
    """400 digits of 8 x 8 pixels: four rings around the centre."""
    X, y = datasets.load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(y))[:400]
    height, width = np.indices((8, 8))
    rings = np.minimum.reduce([height, width, 7 - height, 7 - width]).ravel()
    return Table(X[chosen], y[chosen], rings, True, 0.5)


def golub() -> Table:
    """Leukaemia by the activity of 3 051 genes, in five groups by how much it varies."""
    folder = os.environ.get("BILEVEL_DATA")
    path = Path(folder or "", "golub", "golub.npz")
    if not folder or not path.is_file():
        raise FileNotFoundError(
            "golub/golub.npz is not in the folder that BILEVEL_DATA names: arrays `features` (38, 3051) and `labels` "
            "(38,), from the R package multtest (Debian: r-bioc-multtest)."
        )
    with np.load(path) as file:
        X, y = np.asarray(file["features"], np.float64), np.asarray(file["labels"])
    spread = np.argsort(np.argsort(X.std(axis=0)))
    return Table(X, y, 5 * spread // len(spread), True, 2 / 3)


def iris() -> Table:
    """In golub's place where that is missing: lengths and widths."""
    X, y = datasets.load_iris(return_X_y=True)
    return Table(X, y, np.array(["length", "width", "length", "width"]), True, 0.5)
