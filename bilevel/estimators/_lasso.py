"""Lasso and elastic net whose penalties are learnt."""

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import validate_data

from .. import problems
from ._base import LinearEstimator
from ._learn_l1 import learn_l1


class _L1(RegressorMixin, LinearEstimator):
    _rescale = False
    _learner = staticmethod(learn_l1)
    _shared = ("one", "feature")

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "_L1":
        """Learn penalties and weights."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        y = np.asarray(y, np.float64)
        learnt = self._learn(X, y, sample_weight, self._problem, y, classifier=False)
        self.coef_, self.intercept_ = learnt.coef[:, 0], float(learnt.intercept[0])
        return self

    def predict(self, X: Any) -> np.ndarray:
        """(n,)."""
        return self._scores(X)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags


class Lasso(_L1):
    """Least squares with absolute penalties that minimise the cross-validated squared error.

        min over w, b of  1/2 sum_i s_i (y_i - w^T x_i - b)^2 / sum_i s_i + sum_j alpha_j |w_j|,     s: sample_weight

    X (n, features), dense, y (n,). `penalties`: "one", "feature", or an array (features,) of group labels;
    `tol`: the descent ends where no step that it tries lowers the loss by more than tol times itself, as certified
    values show; what is learnt is a minimum near the best of a grid. `penalties_`: the alphas, a number, (features,),
    or (groups,). All else as in `Ridge`, but that `solution_.converged` is never claimed: the loss has kinks.
    """

    _problem = problems.Lasso


class ElasticNet(_L1):
    """Least squares with an absolute and a squared penalty that minimise the cross-validated squared error.

        min over w, b of  1/2 sum_i s_i (y_i - w^T x_i - b)^2 / sum_i s_i + l sum_j |w_j| + rho/2 sum_j w_j^2

    `penalties_` is (l, rho): in scikit-learn's words alpha = l + rho, l1_ratio = l / (l + rho). All else as in `Lasso`.
    """

    _problem = problems.ElasticNet
    penalties = "one"

    def __init__(self, *, cv: Any = 5, tol: Any = 1e-5, max_steps: Any = 200):
        self.cv = cv
        self.tol = tol
        self.max_steps = max_steps
