"""Multinomial logistic regression with learned penalties.

    h(W, theta) = 1/n sum_i CE(W^T a_i, y_i) + 1/2 sum_j e^{theta_j} W_j^2,     CE(s, y) = log sum_c e^{s_c} - s_y
    g(W) = 1/n_v sum_i CE(W^T v_i, y_i) on validation data

theta's shape says what is shared: () one penalty in all, (1, classes) one per class, (features, 1) one per feature,
(features, classes) one per weight. Section 4.4 of arXiv 2308.10098.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from bilevel import AbstractProblem, Bounds, Constants
from bilevel.inputs import finite

from .cross_entropy import block_rows, cross_entropy

Weights = Float[Array, "features classes"]
Penalties = Float[Array, "..."]

# S(s) = diag(p) - p p^T, the derivative of p = softmax(s), has norm at most 1/2, and ||S(s) - S(t)|| <= C ||s - t||.
# C is attained with two classes: |d/ds p (1 - p)| <= sqrt(3)/18 along (1, -1), whose norm sqrt(2) enters three times.
HALF = 0.5
C = 6**0.5 / 9


class LogisticRegression(AbstractProblem):
    """`LogisticRegression(train_features, train_labels, valid_features, valid_labels)`.

    Features (n, features), float32 or float64 of one dtype, dense; labels (n,), integers 0 ... classes - 1. There is no
    unpenalised bias, which would make mu zero: append a column of ones, and it is penalised like any feature.
    x is W (features, classes); theta the log penalties, (), (1, classes), (features, 1) or (features, classes).

    Raises ValueError for shapes, labels and values that do not fit, TypeError for dtypes.
    """

    A: Float[Array, "n features"]
    y: Int[Array, " n"]
    A_valid: Float[Array, "n_valid features"]
    y_valid: Int[Array, " n_valid"]
    classes: int = eqx.field(static=True)
    # of the data: A^T A / n and its norm, the same on validation data, max ||a_i||
    gram: Float[Array, "features features"]
    gram_valid: Float[Array, "features features"]
    gram_norm: Float[Array, ""]
    gram_valid_norm: Float[Array, ""]
    longest: Float[Array, ""]
    rows: int = eqx.field(static=True)
    rows_valid: int = eqx.field(static=True)

    def __init__(self, train_features: Any, train_labels: Any, valid_features: Any, valid_labels: Any):
        self.A, self.y = _checked("train", train_features, train_labels)
        self.A_valid, self.y_valid = _checked("valid", valid_features, valid_labels)
        if self.A.shape[1] != self.A_valid.shape[1]:
            raise ValueError(
                f"train has {self.A.shape[1]} features, valid {self.A_valid.shape[1]}: they must be the same columns"
            )
        if self.A.dtype != self.A_valid.dtype:
            raise TypeError(f"train features are {self.A.dtype}, valid {self.A_valid.dtype}: use one dtype")
        self.classes = int(max(self.y.max(), self.y_valid.max())) + 1
        if self.classes < 2:
            raise ValueError("all labels are 0: logistic regression needs at least two classes, 0 ... classes - 1")
        self.gram, self.gram_norm = _gram(self.A)
        self.gram_valid, self.gram_valid_norm = _gram(self.A_valid)
        self.longest = jnp.sqrt(jnp.max(jnp.sum(self.A**2, axis=1)))
        self.rows, self.rows_valid = block_rows(self.A), block_rows(self.A_valid)

    def lower(self, x: Weights, theta: Penalties) -> Float[Array, ""]:
        """h(W, theta). Raises ValueError if theta has none of the four shapes."""
        penalty = self._penalty(theta) * x**2
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
        W_c^{-1/2} G W_c^{-1/2} over the classes c.
        """
        penalty = self._penalty(theta)
        mu = jnp.min(penalty)
        metric = penalty / mu
        return Constants(
            mu=mu,
            L=HALF * self.gram_norm + jnp.max(penalty),
            L_upper=HALF * _weighted_norm(self.gram_valid, self.gram_valid_norm, metric),
            L_upper_theta=0.0,
            L_hessian=C * self.longest * _weighted_norm(self.gram, self.gram_norm, metric),
            L_cross=mu,
            metric=metric,
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
            M_H=C * _weighted_norm(self.gram, self.gram_norm, penalty / mu)
            * jnp.sqrt(jnp.max(jnp.sum((self.A @ q) ** 2, axis=1))),
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
        factors = jnp.linalg.cholesky((w * self.gram)[None] + jax.vmap(jnp.diag)(penalty.T))
        shared = jnp.sum(penalty, axis=1, keepdims=True)

        def apply(r):
            classes = jax.vmap(lambda factor, r: jax.scipy.linalg.cho_solve((factor, True), r))(factors, r.T).T
            return classes + jnp.sum(r, axis=1, keepdims=True) / shared

        return apply

    def accuracy(self, x: Weights, features: Float[Array, "m features"], labels: Int[Array, " m"]) -> Float[Array, ""]:
        """The share of `labels` that the largest score names, in [0, 1]."""
        return jnp.mean(jnp.argmax(features @ x, axis=1) == labels, dtype=x.dtype)

    def _penalty(self, theta):
        p, c = self.A.shape[1], self.classes
        allowed = ((), (1, c), (p, 1), (p, c))
        if jnp.shape(theta) not in allowed:
            raise ValueError(
                f"theta must have one of the shapes {allowed}: one log penalty in all, per class, per feature or per "
                f"weight; it has shape {jnp.shape(theta)}"
            )
        return jnp.broadcast_to(jnp.exp(theta), (p, c))


def _shared_norm(x, theta):
    """Norms of the blocks of x that share a penalty, shaped like theta."""
    axes = tuple(k for k in range(2) if theta.ndim == 0 or theta.shape[k] == 1 < x.shape[k])
    return jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=theta.ndim > 0))


def _gram(A):
    """G = A^T A / n and its largest eigenvalue, moved up by what its rounding can hide."""
    gram = A.T @ A / A.shape[0]
    return gram, jnp.linalg.eigvalsh(gram)[-1] * (1 + 4 * A.shape[1] * jnp.finfo(A.dtype).eps)


def _weighted_norm(gram, norm, metric, iterations=20):
    """At least the largest eigenvalue of W_c^{-1/2} G W_c^{-1/2} over the columns W_c of the metric, W >= 1.

    For any s > 0 the spectral radius of M is at most max_j (|M| s)_j / s_j (Collatz 1942); s nears the eigenvector of
    |M|, which is M where the features are not negative. Elsewhere ||G|| may be the smaller bound: W >= 1.
    """
    size, root = jnp.abs(gram), 1 / jnp.sqrt(metric)

    def product(s):
        return root * (size @ (root * s))

    def step(_, s):
        s = product(s) + 1e-2 * norm * s  # the shift keeps s positive
        return s / jnp.max(s, axis=0, keepdims=True)

    s = lax.fori_loop(0, iterations, step, jnp.ones_like(metric))
    ratio = jnp.max(product(s) / s, axis=0)
    rounding = 1 + 8 * len(gram) * jnp.finfo(gram.dtype).eps
    return jnp.minimum(norm, rounding * jnp.max(ratio))


def _checked(name, features, labels):
    """(features, labels) as JAX arrays, or an error that says what to write instead."""
    features = features if isinstance(features, jax.Array) else np.asarray(features)
    labels = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if features.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} features are {features.dtype}: pass features.astype(np.float64)")
    if features.dtype == np.float64 and not jax.config.jax_enable_x64:
        raise TypeError(
            f'{name} features are float64 but JAX runs in 32 bits: call jax.config.update("jax_enable_x64", True) '
            "before any other use of JAX, or pass features.astype(np.float32)"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{name} labels are {labels.dtype}: pass integers 0 ... classes - 1")
    if features.ndim != 2 or features.shape[0] == 0 or features.shape[1] == 0:
        raise ValueError(f"{name} features must have shape (n, features), n and features at least 1: {features.shape}")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"{name} has {features.shape[0]} rows of features, but labels of shape {labels.shape}")
    if not finite(features):
        raise ValueError(f"{name} features hold NaN or infinite values: remove or replace them first")
    if int(labels.min()) < 0:
        raise ValueError(f"{name} labels go down to {int(labels.min())}: number the classes from 0")
    return jnp.asarray(features), jnp.asarray(labels, jnp.int32)
