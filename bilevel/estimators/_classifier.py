"""Logistic regression whose penalties are learnt."""

from typing import Any

import numpy as np
from scipy.special import expit, log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data

from ..problems.logistic import LogisticRegression as Multinomial
from ..problems.regression import BinomialRegression
from ._base import LinearEstimator


class LogisticRegression(ClassifierMixin, LinearEstimator):
    """Logistic regression with squared penalties that minimise the cross-validated log loss.

        min over w, b of  sum_i s_i CE(w^T x_i + b, y_i) + 1/2 sum_j alpha_j w_j^2,           s: sample_weight

    y (n,): labels of any kind, two classes or more; scikit-learn's C is 1/alpha. A number of folds is stratified. With
    two classes w is one vector, and "class" is "one". `class_weight`: None, "balanced", or a dict from labels to
    weights; they multiply sample_weight, in the loss of the rows left out, too. Other parameters, attributes and errors
    as in `Ridge`; `coef_` is (classes, features), or (1, features) for two classes, and `classes_` their labels.
    """

    def __init__(
        self, *, cv: Any = 5, penalties: Any = "one", class_weight: Any = None, tol: Any = 1e-5, max_steps: Any = 200
    ):
        super().__init__(cv=cv, penalties=penalties, tol=tol, max_steps=max_steps)
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "LogisticRegression":
        """Learn penalties and weights."""
        X, y = validate_data(self, X, y, dtype=np.float64, accept_sparse="csr")
        check_classification_targets(y)
        used = np.ones(len(y), bool) if sample_weight is None else np.asarray(sample_weight) != 0
        if not used.any():
            raise ValueError("all entries of sample_weight are zero")
        self.classes_, labels = np.unique(y, return_inverse=True)
        present = np.unique(labels[used]) if used.shape == labels.shape else self.classes_
        if len(self.classes_) < 2 or len(present) < 2:
            raise ValueError(
                f"a classifier needs rows of at least 2 classes, and all of them are of one class, {self.classes_[0]!r}"
            )
        binary = len(self.classes_) == 2
        targets = labels.astype(np.float64) if binary else labels.astype(np.int64)
        make = BinomialRegression if binary else Multinomial
        if self.class_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            sample_weight = sample_weight * compute_sample_weight(self.class_weight, y)
        learnt = self._learn(X, targets, sample_weight, make, labels, classifier=True)
        self.coef_, self.intercept_ = learnt.coef.T, learnt.intercept
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores (n, classes), or (n,) for two classes."""
        scores = self._scores(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest labels (n,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, classes), in the order of `classes_`."""
        scores = self.decision_function(X)
        return np.stack([expit(-scores), expit(scores)], axis=1) if scores.ndim == 1 else softmax(scores, axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Their logarithms."""
        scores = self.decision_function(X)
        scores = np.stack([np.zeros_like(scores), scores], axis=1) if scores.ndim == 1 else scores
        return log_softmax(scores, axis=1)
