"""Hyper-cleaning in batches: both levels as means over them, with the products that stochastic methods ask for.

    h(w, theta) = 1/K sum_k h_k(w, theta_k),   h_k = 1/m sum_i s(theta_i) CE(w^T a_i, y_i) + penalty/2 ||w||^2
    g(w)        = 1/J sum_j g_j(w),            g_j = 1/m sum_i CE(w^T a_i, y_i),           s(t) = 1 / (1 + e^{-t})

theta_k (m,) are the entries of batch k, which no other batch reads: of an estimate of grad_theta only these are not
zero. w is (features, classes). Derivatives are by hand, r = softmax - e_y: one product with A and one with its
transpose each.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Batches(NamedTuple):
    """A (K, m, features), y (K, m); A_valid (J, m, features), y_valid (J, m)."""

    A: Array
    y: Array
    A_valid: Array
    y_valid: Array
    penalty: Array


class Rates(NamedTuple):
    """Step sizes of the lower level and of theta, and what a method has besides."""

    inner: Array
    outer: Array
    extra: Array


def zeros(data: Batches) -> tuple[Array, Array]:
    """w and theta where all methods start."""
    return jnp.zeros((data.A.shape[2], 10), data.A.dtype), jnp.zeros(data.y.shape, data.A.dtype)


def draw(data: Batches, key: Array) -> tuple[Array, Array]:
    """A batch of each level."""
    first, second = jax.random.split(key)
    return jax.random.randint(first, (), 0, len(data.A)), jax.random.randint(second, (), 0, len(data.A_valid))


def losses(w: Array, A: Array, y: Array) -> Array:
    """CE of every row."""
    s = A @ w
    return jax.nn.logsumexp(s, axis=1) - jnp.take_along_axis(s, y[:, None], axis=1)[:, 0]


def residuals(w: Array, A: Array, y: Array) -> tuple[Array, Array]:
    """The softmax p of every row, and p - e_y."""
    p = jax.nn.softmax(A @ w, axis=1)
    return p, p - jax.nn.one_hot(y, w.shape[1], dtype=w.dtype)


def upper_gradient(w: Array, data: Batches, j: Array) -> Array:
    """grad g_j."""
    A = data.A_valid[j]
    return A.T @ residuals(w, A, data.y_valid[j])[1] / len(A)


def lower_gradient(w: Array, theta: Array, data: Batches, k: Array) -> Array:
    """grad_w h_k."""
    A = data.A[k]
    r = residuals(w, A, data.y[k])[1]
    return A.T @ (jax.nn.sigmoid(theta[k])[:, None] * r) / len(A) + data.penalty * w


def products(w: Array, theta: Array, v: Array, data: Batches, k: Array) -> tuple[Array, Array, Array]:
    """grad_w h_k, its Hessian times v, and d<grad_w h_k, v>/dtheta_k."""
    A, s = data.A[k], jax.nn.sigmoid(theta[k])[:, None]
    p, r = residuals(w, A, data.y[k])
    Av = A @ v
    bent = p * (Av - jnp.sum(p * Av, axis=1, keepdims=True))
    gradient, Hv = (A.T @ (s * t) / len(A) + data.penalty * x for t, x in ((r, w), (bent, v)))
    return gradient, Hv, (s * (1 - s))[:, 0] * jnp.sum(r * Av, axis=1) / len(A)


def slopes(w: Array, theta: Array, data: Batches, k: Array) -> Array:
    """dh_k/dtheta_k."""
    A, s = data.A[k], jax.nn.sigmoid(theta[k])
    return s * (1 - s) * losses(w, A, data.y[k]) / len(A)
