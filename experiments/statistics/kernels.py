"""Ridge regression on groups of features, a penalty for each, in the n x n form.

    h(a, theta) = sum_k 1/2 <a_k, (K_k + I) a_k> - <a_k, Y_k>,      K(theta) = sum_g e^{theta_g} X_g X_g^T
    g(a, theta) = 1/(2 n T) sum_k || Y_-k - K_-k a_k ||^2

K_k has the rows and columns that fold k learns from, K_-k the rows that it leaves out; a_k (rows, targets) are the dual
weights: predictions are K a, and e^{theta_g} is one over the penalty of group g.

    mu = 1,   L = 1 + N,  N = sum_g e^{theta_g} ||X_g||^2,   L_g = N^2/(n T),   L_H = 0
    ||J|| <= (sum_g e^{2 theta_g} ||K_g a||^2)^{1/2},  M_J the same of q,  L_J = (sum_g e^{2 theta_g} ||X_g||^4)^{1/2}

grad_theta g is quadratic in a, and has no Lipschitz constant for every a: it is estimated where the solve ends, so
values are certified and gradients are not called so.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import bilevel

Dual = Float[Array, "folds rows targets"]
Theta = Float[Array, " groups"]


class KernelRidge(bilevel.AbstractProblem):
    """`KernelRidge(kernels, Y, folds)`: kernels (groups, n, n) and Y (n, targets) in float64; folds, pairs of rows
    learnt from and rows left out, of like sizes."""

    kernels: Float[Array, "groups n n"]
    Y: Float[Array, "n targets"]
    rows: Int[Array, "folds rows"]
    left: Int[Array, "folds left"]
    norms: Float[Array, " groups"]

    def __init__(self, kernels: np.ndarray, Y: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]):
        self.kernels, self.Y = jnp.asarray(kernels), jnp.asarray(Y)
        self.rows, self.left = (jnp.asarray(np.stack(part)) for part in zip(*folds, strict=True))
        self.norms = jnp.linalg.eigvalsh(self.kernels)[:, -1] * (1 + 1e-10)

    def _kernel(self, theta: Theta) -> Float[Array, "n n"]:
        return jnp.einsum("g,gij->ij", jnp.exp(theta), self.kernels)

    def _inside(self, kernel):
        return kernel[self.rows[:, :, None], self.rows[:, None, :]]

    def lower(self, x: Dual, theta: Theta):
        product = jnp.einsum("kij,kjt->kit", self._inside(self._kernel(theta)), x) + x
        return jnp.sum(x * (product / 2 - self.Y[self.rows]))

    def upper(self, x: Dual, theta: Theta):
        outside = self._kernel(theta)[self.left[:, :, None], self.rows[:, None, :]]
        residual = self.Y[self.left] - jnp.einsum("kij,kjt->kit", outside, x)
        return jnp.mean(residual**2) / 2

    def guess(self, theta: Theta) -> Dual:
        return jnp.zeros((*self.rows.shape, self.Y.shape[1]), self.Y.dtype)

    def constants(self, theta: Theta) -> bilevel.Constants:
        each = jnp.exp(theta) * self.norms
        return bilevel.Constants(
            mu=1 - 1e-12 * jnp.sum(each),  # the kernels are computed
            L=1 + jnp.sum(each),
            L_upper=jnp.sum(each) ** 2 / (self.left.size * self.Y.shape[1]),
            L_hessian=0.0,
            L_cross=jnp.linalg.norm(each),
            convex_upper=True,
        )

    def bounds(self, x, theta, q, radius):
        return bilevel.Bounds(
            J=self._cross(x, theta),
            M_H=0.0,
            M_J=self._cross(q, theta),
            L_J=jnp.linalg.norm(jnp.exp(theta) * self.norms),
        )

    def _cross(self, x, theta):
        def size(kernel):
            return jnp.sum(jnp.einsum("kij,kjt->kit", self._inside(kernel), x) ** 2)

        return jnp.sqrt(jnp.sum(jnp.exp(2 * theta) * jax.lax.map(size, self.kernels)))

    def preconditioner(self, x, theta):
        """The inverse of H."""
        K = self._inside(self._kernel(theta))
        factors = jnp.linalg.cholesky(K + jnp.eye(K.shape[-1], dtype=K.dtype)[None])
        return lambda r: jax.vmap(lambda factor, r: jax.scipy.linalg.cho_solve((factor, True), r))(factors, r)


def weights(kernels: np.ndarray, Y: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """The dual weights (n, targets) of all rows; theta (groups,) or (groups, targets)."""
    if theta.ndim == 1:
        K = np.einsum("g,gij->ij", np.exp(theta), kernels)
        return np.linalg.solve(K + np.eye(len(K)), Y)
    return np.stack([weights(kernels, Y[:, t], theta[:, t]) for t in range(Y.shape[1])], axis=1)


def predict(kernels: np.ndarray, a: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """sum_g e^{theta_g} K_g a, kernels (groups, rows, n)."""
    scale = np.exp(theta if theta.ndim == 2 else theta[:, None])[:, None]
    return np.sum(scale * (kernels @ a), axis=0)
