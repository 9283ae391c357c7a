"""Sparse features for all folds: norms from products with |A|, and a diagonal preconditioner; nothing gets dense.

    |G_k|  <=  B^T diag(w) B,     B = |A| + |U| M,   w = max_k w_k,  M = max_k |M_k|,   entry by entry

For any t > 0 and the symmetric matrix G_k the spectral norm of W^{-1/2} G_k W^{-1/2} is at most
max_j (|G_k| t)_j / (t_j W_j) (Collatz 1942, with W^{1/2} t for its vector). Two such t are kept: ones, and what twenty
products leave of them, which nears the eigenvector.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .families import AbstractFamily
from .fold_rows import AbstractFoldRows, FoldData
from .sparse import absolute, times

ITERATIONS = 20


class SparseRows(AbstractFoldRows):
    """`ratios`: (|G| t)_j / t_j of both t; `squares`: sum_i w_i a_ij^2, w the folds' mean."""

    ratios: Float[Array, "two features"]
    squares: Float[Array, " features"]

    def __init__(self, data: FoldData, family: AbstractFamily, targets: Float[Array, "folds columns"]):
        self.ratios, self.squares, lengths = _norms(data)
        self._fill(data, family, jnp.min(jnp.max(self.ratios, axis=1)), lengths, targets)

    def weighted(self, W, columns):
        least = jnp.min(jnp.broadcast_to(W, (self.A.shape[1], columns)), axis=1)
        return jnp.min(jnp.max(self.ratios / least[None], axis=1))

    def mean_squares(self):
        return self.squares

    def inverse(self, penalty, columns):
        D = self.curvature * self.squares[:, None] + penalty
        return lambda r: r / jnp.broadcast_to(D, r.shape)


@jax.jit
def _norms(data: FoldData):
    A, w, U, M = data.A, data.weights, jnp.abs(data.fixed), jnp.max(jnp.abs(data.means), axis=0)
    B, heaviest = absolute(A), jnp.max(w, axis=0)

    def forth(t):
        return times(B, t[None, :, None])[0, 0] + _product(U, _product(M, t))

    def product(t):
        z, back = jax.vjp(forth, t)
        return back(heaviest * z)[0]

    def step(_, t):
        t = product(t) + 1e-2 * jnp.max(sums) * t
        top = jnp.max(t)
        return jnp.maximum(t / jnp.where(top > 0, top, 1), lowest)

    lowest = float(jnp.finfo(A.dtype).tiny) ** 0.5
    ones = jnp.ones(A.shape[1], A.dtype)
    sums = product(ones)
    slack = 1 + 8 * sum(A.shape) * float(jnp.finfo(A.dtype).eps)  # every sum is of numbers that are not negative
    ratios = jnp.stack([slack * product(t) / t for t in (ones, lax.fori_loop(0, ITERATIONS, step, ones))])
    squared = A.data**2
    rows, columns = A.indices[:, 0], A.indices[:, 1]
    squares = jax.ops.segment_sum(squared * jnp.mean(w, axis=0)[rows], columns, A.shape[1])
    # ||a_i - M_k^T u_i|| <= ||a_i|| + ||M_k^T u_i||
    lengths = jnp.sqrt(jax.ops.segment_sum(squared, rows, A.shape[0], indices_are_sorted=True))
    means = jnp.einsum("kup,kvp->kuv", data.means, data.means, precision="highest")
    eliminated = jnp.einsum("nu,kuv,nv->kn", data.fixed, means, data.fixed, precision="highest")
    return ratios, squares, lengths[None] + jnp.sqrt(jnp.maximum(eliminated, 0))


def _product(a, b):
    return jnp.matmul(a, b, precision="highest")
