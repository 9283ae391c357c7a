"""Ridge regression on groups of features, a penalty for each, in the n x n form.

    h(a, theta) = sum_k 1/2 <a_k, (K_k + I) a_k> - <a_k, Y_k>,      K(theta) = sum_g e^{theta_g} X_g X_g^T
    g(a, theta) = 1/(2 n T) sum_k || Y_-k - K_-k a_k ||^2

K_k has the rows and columns that fold k learns from, K_-k the rows that it leaves out; a_k (rows, targets) are the dual
weights: predictions are K a, and e^{theta_g} is one over the penalty of group g. theta is (groups,), or (groups,
targets): each target t then has a K of its own, and everything is a sum over targets, so norms are the largest of them.

    mu = 1,   L = 1 + N,  N = max_t sum_g e^{theta_gt} ||X_g||^2,   L_g = N^2/(n T),   L_H = 0
    ||J|| <= max_t (sum_g e^{2 theta_gt} ||K_g a_t||^2)^{1/2},  M_J the same of q,
    L_J = max_t (sum_g e^{2 theta_gt} ||X_g||^4)^{1/2};         one theta for all: sums over t in J and M_J

grad_theta g is quadratic in a, and has no Lipschitz constant for every a: it is estimated where the solve ends, so
values are certified and gradients are not called so.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import bilevel

Dual = Float[Array, "folds rows targets"]
Theta = Float[Array, " groups"] | Float[Array, "groups targets"]


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

    def _part(self, kernel: Float[Array, "n n"], left: Int[Array, "folds left"]) -> Float[Array, "folds left rows"]:
        return kernel[left[:, :, None], self.rows[:, None, :]]

    def _product(self, theta: Theta, left: Int[Array, "folds left"], x: Dual):
        """K(theta) x: rows `left` of the kernels, columns `rows`."""
        if theta.ndim == 1:
            return self._part(jnp.einsum("g,gij->ij", jnp.exp(theta), self.kernels), left) @ x

        def add(total, group):
            scale, kernel = group
            return total + scale[None, None] * (self._part(kernel, left) @ x), None

        zero = jnp.zeros((*left.shape, x.shape[-1]), x.dtype)
        return jax.lax.scan(add, zero, (jnp.exp(theta), self.kernels))[0]

    def lower(self, x: Dual, theta: Theta):
        return jnp.sum(x * ((self._product(theta, self.rows, x) + x) / 2 - self.Y[self.rows]))

    def upper(self, x: Dual, theta: Theta):
        return jnp.mean(self.errors(x, theta))

    def errors(self, x: Dual, theta: Theta) -> Float[Array, " targets"]:
        """g of each target."""
        return jnp.mean((self.Y[self.left] - self._product(theta, self.left, x)) ** 2, axis=(0, 1)) / 2

    def guess(self, theta: Theta) -> Dual:
        return jnp.zeros((*self.rows.shape, self.Y.shape[1]), self.Y.dtype)

    def _scales(self, theta: Theta):
        """e^theta_gt ||X_g||^2, (groups, targets or 1)."""
        return jnp.exp(theta.reshape(len(self.kernels), -1)) * self.norms[:, None]

    def constants(self, theta: Theta) -> bilevel.Constants:
        each = self._scales(theta)
        N = jnp.max(jnp.sum(each, axis=0))
        return bilevel.Constants(
            mu=1 - 1e-12 * N,  # the kernels are computed
            L=1 + N,
            L_upper=N**2 / (self.left.size * self.Y.shape[1]),
            L_hessian=0.0,
            L_cross=jnp.max(jnp.linalg.norm(each, axis=0)),
            convex_upper=True,
        )

    def bounds(self, x, theta, q, radius):
        L_J = jnp.max(jnp.linalg.norm(self._scales(theta), axis=0))
        return bilevel.Bounds(J=self._cross(x, theta), M_H=0.0, M_J=self._cross(q, theta), L_J=L_J)

    def _cross(self, x, theta):
        def sizes(kernel):
            return jnp.sum((self._part(kernel, self.rows) @ x) ** 2, axis=(0, 1))

        squares = jax.lax.map(sizes, self.kernels)  # (groups, targets)
        if theta.ndim == 1:
            return jnp.sqrt(jnp.sum(jnp.exp(2 * theta)[:, None] * squares))
        return jnp.sqrt(jnp.max(jnp.sum(jnp.exp(2 * theta) * squares, axis=0)))

    def preconditioner(self, x, theta):
        """The inverse of H: a factor a fold and, if each has its own, a target."""
        scales = jnp.exp(theta.reshape(len(self.kernels), -1))

        def factor(scale):
            K = self._part(jnp.einsum("g,gij->ij", scale, self.kernels), self.rows)
            return jnp.linalg.cholesky(K + jnp.eye(K.shape[-1], dtype=K.dtype)[None])

        factors = jax.lax.map(factor, scales.T)  # (targets or 1, folds, rows, rows)
        solve = jax.vmap(jax.vmap(lambda factor, r: jax.scipy.linalg.cho_solve((factor, True), r)))

        def inverse(r):
            columns = r.reshape(*self.rows.shape, len(factors), -1)
            return solve(factors, columns.transpose(2, 0, 1, 3)).transpose(1, 2, 0, 3).reshape(r.shape)

        return inverse


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
