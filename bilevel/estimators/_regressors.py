"""Ridge regression and Poisson regression whose penalties are learnt."""

from typing import Any

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.metrics import d2_tweedie_score
from sklearn.utils.validation import validate_data

from ..problems.regression import LinearRegression, PoissonRegression
from ._base import LinearEstimator


class Ridge(MultiOutputMixin, RegressorMixin, LinearEstimator):
    """Least squares with squared penalties that minimise the cross-validated squared error.

        min over w, b of  sum_i s_i ||y_i - w^T x_i - b||^2 + sum_j alpha_j w_j^2,        s: sample_weight

    X (n, features), dense or SciPy-sparse, which stays sparse; y (n,) or (n, targets), real. The features should be of
    like scales where they share a penalty: put a `StandardScaler` before it.

    **Parameters**

    - `cv`: a number of folds, any splitter of scikit-learn, or pairs of indices; the splits are made once.
    - `penalties`: "one"; "class", one for each target; "feature"; "weight", one for each feature and target; or an
      array (features,) of group labels.
    - `tol`: the descent ends where the gradient of the cross-validated loss in all log penalties is certified to be
      below tol times the loss.
    - `max_steps`: of the descent; a `ConvergenceWarning` says if it ends before.

    **Attributes**

    `coef_` (features,) or (targets, features), `intercept_`, learnt from all rows; `penalties_`: the alphas, a number,
    (targets,), (features,), (groups,) in sorted order of the labels, or as `coef_`; `solution_`, a `bilevel.Solution`,
    in logarithms and per unit of weight; `n_iter_`, its steps; `n_features_in_`, `feature_names_in_`.

    Raises ValueError for NaN, shapes, labels and splits that do not fit, as scikit-learn does.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Ridge":
        """Learn penalties and weights."""
        X, y = validate_data(
            self, X, y, dtype=np.float64, accept_sparse="csr", multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        y = np.asarray(y, np.float64)
        learnt = self._learn(X, y, sample_weight, LinearRegression, y, classifier=False)
        self.coef_, self.intercept_ = learnt.coef.T, learnt.intercept
        if y.ndim == 1:
            self.coef_, self.intercept_ = self.coef_[0], float(self.intercept_[0])
        return self

    def predict(self, X: Any) -> np.ndarray:
        """(n,) or (n, targets)."""
        return self._scores(X)


class PoissonRegressor(RegressorMixin, LinearEstimator):
    """Counts with a log link and squared penalties that minimise the cross-validated deviance.

        min over w, b of  sum_i s_i (e^{z_i} - y_i z_i) / sum_i s_i + 1/2 sum_j alpha_j w_j^2,       z_i = w^T x_i + b

    y (n,), not negative; s: sample_weight. Parameters, attributes and errors as in `Ridge`; `score` is D^2, the share
    of the deviance explained.
    """

    _rescale = False

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "PoissonRegressor":
        """Learn penalties and weights."""
        X, y = validate_data(self, X, y, dtype=np.float64, accept_sparse="csr", y_numeric=True, ensure_min_samples=2)
        y = np.asarray(y, np.float64)
        if (y < 0).any():
            raise ValueError("some value(s) of y are negative: Poisson regression is for counts")
        learnt = self._learn(X, y, sample_weight, PoissonRegression, y, classifier=False)
        self.coef_, self.intercept_ = learnt.coef[:, 0], float(learnt.intercept[0])
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The expected counts (n,)."""
        return np.exp(self._scores(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """D^2 on these rows."""
        return d2_tweedie_score(y, self.predict(X), sample_weight=sample_weight, power=1)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags
