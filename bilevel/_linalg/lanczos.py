"""Lanczos for extreme eigenvalues."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from .norms import norm
from .vectors import Scalar, Vector


def lanczos_steps(size: int, relative_error: float = 0.5, failure: float = 1e-10) -> int:
    """The k for which k Lanczos steps from a random start give lambda_max <= ritz / (1 - e) with failure probability

    1.648 sqrt(size) exp(-sqrt(e) (2 k - 1))  <=  failure       (Kuczynski, Wozniakowski 1992, theorem 4.2).
    """
    log_ratio = math.log(1.648 * math.sqrt(size) / failure)
    return math.ceil((log_ratio / math.sqrt(relative_error) + 1) / 2)


class Ritz(eqx.Module):
    """`smallest` and `largest` Ritz values, in between the extreme eigenvalues or equal to them; the orthonormal rows
    of `basis` and the matrix T of the operator on them, whose ended part is a multiple of 1."""

    smallest: Scalar
    largest: Scalar
    basis: Float[Array, "k n"]
    T: Float[Array, "k k"]

    def solve(self, b: Vector) -> Vector:
        """An approximation of H^{-1} b: Q^T T^{-1} Q b, and what lies outside Q's span over the smallest value."""
        flat, unravel = ravel_pytree(b)
        along = self.basis @ flat
        inside = self.basis.T @ jnp.linalg.solve(self.T, along)
        return unravel(inside + (flat - self.basis.T @ along) / self.smallest)


def lanczos(
    product: Callable[[Vector], Vector], like: Vector, steps: int, seed: Int[Array, ""] | int = 0
) -> tuple[Ritz, int]:
    """Ritz values of a symmetric operator after min(steps, size) steps, and the products it took.

    Fully reorthogonalised. The start is Gaussian, drawn by `seed`: runs repeat bit for bit, and what holds with a
    probability is drawn anew where the seed is new. Ritz values lie inside the spectrum: the largest is a *lower*
    bound of lambda_max.
    """
    flat, unravel = ravel_pytree(like)
    n = flat.size
    k = min(steps, n)
    start = jax.random.normal(jax.random.fold_in(jax.random.key(0), seed), (n,), flat.dtype)
    tiny = jnp.finfo(flat.dtype).tiny

    def step(j, carry):
        basis, diagonal, offdiagonal = carry
        v = basis[j]
        w = ravel_pytree(product(unravel(v)))[0]
        diagonal = diagonal.at[j].set(v @ w)
        for _ in range(2):  # twice is enough
            w = w - basis.T @ (basis @ w)
        beta = norm(w)
        # an invariant subspace ends the process: beta is rounding noise, and what it would couple to is not the matrix
        alive = beta > 16 * jnp.finfo(flat.dtype).eps * jnp.max(jnp.abs(diagonal))
        basis = basis.at[j + 1].set(jnp.where(alive, w / jnp.maximum(beta, tiny), 0))
        return basis, diagonal, offdiagonal.at[j].set(jnp.where(alive, beta, 0))

    basis = jnp.zeros((k + 1, n), flat.dtype).at[0].set(start / jnp.linalg.norm(start))
    basis, diagonal, off = lax.fori_loop(0, k, step, (basis, jnp.zeros(k, flat.dtype), jnp.zeros(k, flat.dtype)))
    T = jnp.diag(diagonal) + jnp.diag(off[:-1], 1) + jnp.diag(off[:-1], -1)
    # where the process ended early the rest of T is zero: repeat its first entry there so that min and max ignore it
    ended = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), off[:-1] == 0])) > 0
    T = T + jnp.diag(jnp.where(ended, diagonal[0], 0))
    values = jnp.linalg.eigvalsh(T)
    return Ritz(values[0], values[-1], basis[:k], T), k


def largest_eigenvalue(product: Callable[[Vector], Vector], like: Vector, steps: int, seed: Int[Array, ""] | int = 0):
    """(at least lambda_max of a positive semidefinite operator, the products it took), by `steps` Lanczos steps.

    ritz / (1 - 1/2), which fails with a probability of at most 1e-10 where `steps` is at least
    `lanczos_steps(size)`; with as many steps as entries the Ritz value is the eigenvalue, but for rounding.
    """
    ritz, products = lanczos(product, like, steps, seed)
    size = optax.tree.size(like)
    whole = products == size
    factor = 1 + 16 * size * float(jnp.finfo(ritz.largest.dtype).eps) if whole else 2.0
    return jnp.maximum(ritz.largest, 0) * factor, products
