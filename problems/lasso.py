"""Lasso and elastic net: which L1 penalty a feature has, and which ridge; see `l1_model` for all else."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from . import tables
from .l1_model import L1Model
from .l1_path import best_of_path
from .penalties import AbstractPenalties

Scalar = Float[Array, ""]


class Lasso(L1Model):
    """`Lasso(A, y, A_valid, y_valid)`, or `Lasso(A, y, folds=5)`; theta = the log L1 penalties.

    theta () is one for all, (features, 1) one a feature; with `penalties`, integers (features,), one a group, or floats
    (features, d), gamma of theta = B gamma. e^theta is scikit-learn's alpha, since the weights w sum to 1.
    `ridge`: rho, at least 0, not learnt; it makes a minimiser unique where features are copies of each other.

    Features (n, features) and targets (n,), float32 or float64 of one dtype, dense. x is (features, 1), or
    (folds, features, 1). `folds`, `weights`, `weights_valid` as in `LogisticRegression`; folds given as a number are
    shuffled. `intercept`: not penalised; eliminated. Raises ValueError for shapes, folds and values that do not fit,
    TypeError for dtypes and sparse features.
    """

    penalties: AbstractPenalties
    ridge: float

    def __init__(
        self,
        A: Any,
        y: Any,
        A_valid: Any = None,
        y_valid: Any = None,
        *,
        folds: Any = None,
        weights: Any = None,
        weights_valid: Any = None,
        intercept: bool = False,
        penalties: Any = None,
        ridge: float = 0.0,
    ):
        self.take(A, y, A_valid, y_valid, folds, weights, weights_valid, intercept)
        if not 0 <= ridge < math.inf:
            raise ValueError(f"ridge must be a number that is not negative, not {ridge!r}")
        self.penalties, self.ridge = tables.shared(penalties, self.shape[-2], 1, self.train.A.dtype), float(ridge)

    def start(self, points: int = 50, least: float = 1e-3) -> Scalar:
        """The log of the best one penalty, for all features, of `points` from `largest` down to `least` times that:
        where to start, since f has several minima."""
        shares = jnp.linspace(0, math.log(least), points, dtype=self.train.A.dtype)
        return best_of_path(self, jnp.log(self.largest) + shares)[0]

    def penalty(self, theta):
        lam = jnp.exp(self.penalties.log_penalties(theta))
        lam = lam if lam.ndim == 0 else lam[:, 0]
        return jnp.broadcast_to(lam, self.shape[-2:-1]), jnp.asarray(self.ridge, lam.dtype)


class ElasticNet(L1Model):
    """`ElasticNet(A, y, A_valid, y_valid)`, or `ElasticNet(A, y, folds=5)`; theta (2,): l = e^{theta_0} for every
    feature, rho = e^{theta_1}. In scikit-learn's words alpha = l + rho and l1_ratio = l / (l + rho).

    Arguments and errors as in `Lasso`.
    """

    def __init__(
        self,
        A: Any,
        y: Any,
        A_valid: Any = None,
        y_valid: Any = None,
        *,
        folds: Any = None,
        weights: Any = None,
        weights_valid: Any = None,
        intercept: bool = False,
    ):
        self.take(A, y, A_valid, y_valid, folds, weights, weights_valid, intercept)

    def penalty(self, theta):
        if jnp.shape(theta) != (2,):
            raise ValueError(f"theta must be (2,), the logs of the L1 and the ridge penalty; not {jnp.shape(theta)}")
        lam, rho = jnp.exp(theta)
        return jnp.broadcast_to(lam, self.shape[-2:-1]), rho
