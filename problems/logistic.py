"""Multinomial logistic regression with learned penalties.

    h(W, theta) = 1/n sum_i CE(W^T a_i, y_i) + 1/2 sum_j e^{theta_j} W_j^2,     CE(s, y) = log sum_c e^{s_c} - s_y
    g(W) = 1/n_v sum_i CE(W^T v_i, y_i) on validation data

theta's shape says what is shared: () one penalty in all, (1, classes) one per class, (features, 1) one per feature,
(features, classes) one per weight. Section 4.4 of arXiv 2308.10098.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel import AbstractProblem, Bounds, Constants
from bilevel._inputs import finite

from .cross_entropy import block_rows, cross_entropy
from .gram import gram, ridge_inverse, weighted_norm
from .inputs import NUMBER, classes, dense, real

Weights = Float[Array, "features classes"]
Penalties = Float[Array, "..."]

# S(s) = diag(p) - p p^T, the derivative of p = softmax(s), has norm at most 1/2, and ||S(s) - S(t)|| <= C ||s - t||.
# C is attained with two classes: |d/ds p (1 - p)| <= sqrt(3)/18 along (1, -1), whose norm sqrt(2) enters three times.
HALF = 0.5
C = 6**0.5 / 9


class LogisticRegression(AbstractProblem):
    """`LogisticRegression(train_features, train_labels, valid_features, valid_labels)`.

    Features (n, features), float32 or float64 of one dtype, dense; labels (n,), integers 0 ... classes - 1, each of
    which occurs in train. With more features than rows nothing of size (features, features) is made. There is no
    unpenalised bias, which would make mu zero: append a column of ones, and it is penalised like any feature.
    x is W (features, classes); theta the log penalties, (), (1, classes), (features, 1) or (features, classes).

    Raises ValueError for shapes, labels and values that do not fit, TypeError for dtypes and sparse features.
    """

    A: Float[Array, "n features"]
    y: Int[Array, " n"]
    A_valid: Float[Array, "n_valid features"]
    y_valid: Int[Array, " n_valid"]
    classes: int = eqx.field(static=True)
    # of the data: A^T A / n, or A A^T / n where that is smaller, and its norm, the same on validation data; the largest
    # and the mean ||a_i||
    gram: Float[Array, "small small"]
    gram_valid: Float[Array, "small_valid small_valid"]
    gram_norm: Float[Array, ""]
    gram_valid_norm: Float[Array, ""]
    longest: Float[Array, ""]
    mean_length: Float[Array, ""]
    rows: int = eqx.field(static=True)
    rows_valid: int = eqx.field(static=True)

    def __init__(self, train_features: Any, train_labels: Any, valid_features: Any, valid_labels: Any):
        self.A, train_labels = _checked("train", train_features, train_labels)
        self.A_valid, valid_labels = _checked("valid", valid_features, valid_labels)
        if self.A.shape[1] != self.A_valid.shape[1]:
            raise ValueError(
                f"train has {self.A.shape[1]} features, valid {self.A_valid.shape[1]}: they must be the same columns"
            )
        if self.A.dtype != self.A_valid.dtype:
            raise TypeError(f"train features are {self.A.dtype}, valid {self.A_valid.dtype}: use one dtype")
        self.classes = classes(train_labels, valid_labels)
        self.y, self.y_valid = jnp.asarray(train_labels, jnp.int32), jnp.asarray(valid_labels, jnp.int32)
        self.gram, self.gram_norm = gram(self.A)
        self.gram_valid, self.gram_valid_norm = gram(self.A_valid)
        lengths = jnp.sum(self.A**2, axis=1)
        self.longest, self.mean_length = jnp.sqrt(jnp.max(lengths)), jnp.mean(jnp.sqrt(lengths))
        self.rows, self.rows_valid = block_rows(self.A), block_rows(self.A_valid)

    def lower(self, x: Weights, theta: Penalties) -> Float[Array, ""]:
        """h(W, theta). Raises ValueError if theta has none of the four shapes."""
        penalty = self._spread(self._penalty(theta)) * x**2
        return cross_entropy(x, self.A, self.y, self.rows) + jnp.sum(penalty) / 2

    def upper(self, x: Weights, theta: Penalties) -> Float[Array, ""]:
        """g(W): mean cross-entropy of the validation data."""
        return cross_entropy(x, self.A_valid, self.y_valid, self.rows_valid)

    def guess(self, theta: Penalties) -> Weights:
        """Zeros: every class equally likely."""
        return jnp.zeros((self.A.shape[1], self.classes), self.A.dtype)

    def constants(self, theta: Penalties) -> Constants:
        """mu = min e^theta,  metric W = e^theta / mu,  L = lambda_max(A^T A / n) / 2 + max e^theta,  L_J = mu,
        L_H = C max ||a_i|| lambda_W(A^T A / n),  L_g = lambda_W(A_v^T A_v / n_v) / 2.

        H >= diag(e^theta), so distances are measured with these weights: a tiny penalty then costs the certificate
        what its own feature can do, not what the strongest one can. lambda_W(G): the largest eigenvalue of
        W_c^{-1/2} G W_c^{-1/2} over the classes c. H changes by factors of e^{+-R} at most, R the largest range of a
        row's scores, at most sqrt(2) ||a_i|| times the distance (Bach 2010): concordance = sqrt(2) max ||a_i||. The
        gradient of the loss is a mean of a_i (p_i - e_i)^T, each of them rounded, and ||p - e|| <= sqrt(2): rounding =
        sqrt(2) mean ||a_i||. J's columns are products, rounded some three times, and h(xhat) <= h(0) = log classes
        bounds them: e^{theta/2} ||W_j|| <= sqrt(2 log classes).
        """
        penalty = self._penalty(theta)
        mu = jnp.min(penalty)
        W = penalty / mu
        return Constants(
            mu=mu,
            L=HALF * self.gram_norm + jnp.max(penalty),
            L_upper=HALF * weighted_norm(self.A_valid, self.gram_valid, self.gram_valid_norm, W, self.classes),
            L_upper_theta=0.0,
            L_hessian=C * self.longest * weighted_norm(self.A, self.gram, self.gram_norm, W, self.classes),
            L_cross=mu,
            rounding=2**0.5 * self.mean_length,
            rounding_cross=3 * jnp.sqrt(2 * math.log(self.classes) * mu),
            concordance=2**0.5 * self.longest,
            metric=self._spread(W),
            convex_upper=True,
        )

    def bounds(self, x: Weights, theta: Penalties, q: Weights, radius: Float[Array, ""]) -> Bounds:
        """||J|| = max_j sqrt(mu e^{theta_j}) ||W_j||, the norm over the weights that share penalty j, M_J the same
        with q, M_H = C lambda_W(A^T A / n) max_i ||a_i^T q||, L_J = mu; all in the metric of `constants`.

        J maps theta_j to e^{theta_j} W_j and is zero elsewhere: its columns are orthogonal, and the metric's weight on
        them is e^{theta_j} / mu.
        """
        penalty = self._penalty(theta)
        mu = jnp.min(penalty)
        root = jnp.sqrt(mu * jnp.exp(theta))
        return Bounds(
            J=jnp.max(root * _shared_norm(x, theta)),
            M_H=C * weighted_norm(self.A, self.gram, self.gram_norm, penalty / mu, self.classes)
            * jnp.sqrt(jnp.max(jnp.sum(jnp.matmul(self.A, q, precision="highest") ** 2, axis=1))),
            M_J=jnp.max(root * _shared_norm(q, theta)),
            L_J=mu,
        )  # fmt: skip

    def preconditioner(self, x: Weights, theta: Penalties) -> Callable[[Weights], Weights]:
        """P^{-1} for P of two levels: w G + diag(e^theta_c) for each class c, and sum_c e^theta_c where all classes'
        weights shift alike, which H itself sees through the penalties alone. It does not depend on x or the labels.

        G = A^T A / n; w, the mean of p (1 - p), is put at a third of what p = 1/classes has: a tenth does as well.
        """
        penalty = self._penalty(theta)
        w = (1 - 1 / self.classes) / self.classes / 3
        inverse = ridge_inverse(self.A, self.gram, self.gram_norm, w, penalty, self.classes)
        shared = jnp.sum(self._spread(penalty), axis=1, keepdims=True)
        return lambda r: inverse(r) + jnp.sum(r, axis=1, keepdims=True) / shared

    def accuracy(self, x: Weights, features: Float[Array, "m features"], labels: Int[Array, "..."]) -> Float[Array, ""]:
        """The share of `labels` that the largest score names, in [0, 1]. ValueError unless there is one a row."""
        if jnp.shape(labels) != jnp.shape(features)[:1]:
            raise ValueError(f"features {jnp.shape(features)} and labels {jnp.shape(labels)}: pass one label a row")
        best = jnp.argmax(features @ x, axis=1)
        return jnp.mean(best == jnp.asarray(labels, best.dtype), dtype=x.dtype)

    def _penalty(self, theta):
        """e^theta, shaped as theta."""
        p, c = self.A.shape[1], self.classes
        allowed = ((), (1, c), (p, 1), (p, c))
        if jnp.shape(theta) not in allowed:
            raise ValueError(
                f"theta must have one of the shapes {allowed}: one log penalty in all, per class, per feature or per "
                f"weight; it has shape {jnp.shape(theta)}"
            )
        return jnp.exp(theta)

    def _spread(self, penalty):
        return jnp.broadcast_to(penalty, (self.A.shape[1], self.classes))


def _shared_norm(x, theta):
    """Norms of the blocks of x that share a penalty, shaped like theta."""
    axes = tuple(k for k in range(2) if theta.ndim == 0 or theta.shape[k] == 1 < x.shape[k])
    return jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=theta.ndim > 0))


def _checked(name, features, labels):
    """Features as a JAX array, labels as an array of integers, or an error that says what to write instead."""
    features, labels = dense(f"{name} features", features), dense(f"{name} labels", labels)
    real(f"{name} features", features)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{name} labels are {labels.dtype}, not integers: {NUMBER}")
    if features.ndim != 2 or features.shape[0] == 0 or features.shape[1] == 0:
        column = "; for one feature pass features[:, None]" if features.ndim == 1 else ""
        raise ValueError(
            f"{name} features must have shape (n, features), n and features at least 1, not {features.shape}{column}"
        )
    if labels.shape != features.shape[:1]:
        hot = "; if they are one-hot, pass labels.argmax(axis=1)" if labels.ndim == 2 else ""
        raise ValueError(
            f"{name} has {features.shape[0]} rows of features, but labels of shape {labels.shape}: pass one a row{hot}"
        )
    if not finite(features):
        raise ValueError(f"{name} features hold NaN or infinite values: remove or replace them first")
    features = jnp.asarray(features)
    # the constants are made of squares, summed over the data
    limits, reach = jnp.finfo(features.dtype), float(jnp.maximum(jnp.max(features), -jnp.min(features)))
    if reach and not float(limits.tiny) ** 0.5 < reach < (float(limits.max) / features.size) ** 0.5:
        raise ValueError(f"{name} features reach {reach:.1e}, whose squares {features.dtype} cannot hold: scale them")
    return features, labels
