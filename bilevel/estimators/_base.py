"""What the estimators have in common: their parameters, their checks, and float64 while they learn."""

import warnings
from numbers import Integral, Real
from typing import Any

import jax
import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import check_cv
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from .._problem import AbstractProblem
from .._results import RESULTS
from ._learn import Learnt, learn
from ._padding import Table

SMALL = 2**20  # numbers: sparse features of at most so many are made dense
MISSED = 1e-6  # of the gradient at zero, what may be left of it in the weights
SHARED = ("one", "class", "feature", "weight")


class LinearEstimator(BaseEstimator):
    """`fit` and `_scores`, for the classes that say which problem they are.

    A subclass sets `_rescale`, whether its penalty counts against the sum of the loss, and has `_problem(columns)`.
    """

    _rescale = True
    _learner = staticmethod(learn)
    _shared = SHARED

    def __init__(self, *, cv: Any = 5, penalties: Any = "one", tol: Any = 1e-5, max_steps: Any = 200):
        self.cv = cv
        self.penalties = penalties
        self.tol = tol
        self.max_steps = max_steps

    def _learn(self, X, y, sample_weight, make: type[AbstractProblem], split_by: Any, classifier: bool) -> Learnt:
        """Everything from checked arrays: sets `coef_`, `intercept_`, `penalties_`, `solution_`, `n_iter_`."""
        if not (isinstance(self.tol, Real) and self.tol > 0):
            raise ValueError(f"tol must be positive, not {self.tol!r}")
        if not (isinstance(self.max_steps, Integral) and self.max_steps > 0):
            raise ValueError(f"max_steps must be a positive integer, not {self.max_steps!r}")
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not weights.any():
            raise ValueError("all entries of sample_weight are zero")
        sharing = self._sharing(X.shape[1])
        splits = [
            (np.asarray(rows), np.asarray(left))
            for rows, left in check_cv(self.cv, split_by, classifier=classifier).split(X, split_by)
        ]
        splits = [(rows[weights[rows] > 0], left[weights[left] > 0]) for rows, left in splits]
        splits = [(rows, left) for rows, left in splits if len(left)]
        if scipy.sparse.issparse(X) and X.shape[0] * X.shape[1] <= SMALL:
            X = X.toarray()  # sooner, and with all of A^T A to precondition it
        table = Table(X, y, weights, splits)
        with jax.enable_x64(True):
            learnt = self._learner(make, table, sharing, float(self.tol), int(self.max_steps), self._rescale)
        self.solution_, self.n_iter_ = learnt.solution, learnt.solution.steps
        scale = learnt.mass if self._rescale else 1.0
        self.penalties_ = np.exp(learnt.log_penalties.T) * scale
        if self.penalties_.ndim == 2 and 1 in self.penalties_.shape:
            self.penalties_ = self.penalties_.ravel()
        ended, one = learnt.solution.result, isinstance(sharing, str) and sharing == "one"
        # rounding ends a good run, too; but several penalties that it never let move are one penalty
        floor = ended == RESULTS.accuracy_floor and (one or learnt.solution.steps > 0)
        if not (learnt.solution.converged or floor or ended == RESULTS.settled):
            warnings.warn(learnt.solution.message, ConvergenceWarning, stacklevel=3)
        if not learnt.missed <= MISSED:
            warnings.warn(
                f"the weights at these penalties are found to a gradient of {learnt.missed:.0e} of that at zero only: "
                "scale the features",
                ConvergenceWarning,
                stacklevel=3,
            )
        return learnt

    def _sharing(self, features):
        if isinstance(self.penalties, str):
            if self.penalties not in self._shared:
                raise ValueError(f"penalties={self.penalties!r}: one of {self._shared}, or an array of group labels")
            return self.penalties
        groups = np.asarray(self.penalties)
        if groups.shape != (features,):
            raise ValueError(
                f"penalties of shape {groups.shape}: pass one of {self._shared}, or {features} labels, a feature's "
                "group each"
            )
        return np.unique(groups, return_inverse=True)[1]

    def _scores(self, X):
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64, accept_sparse="csr")
        return X @ self.coef_.T + self.intercept_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.sparse = True
        return tags
