"""What is not declared is estimated: difference quotients for Lipschitz constants, Lanczos for ||J||.

A difference quotient is a lower bound of the constant it estimates, so twice the largest of eight is a guess and is
labelled as one. ||J|| by Lanczos is a bound that holds with probability 1 - 1e-10 over the random start.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from .._linalg.lanczos import lanczos_steps, largest_eigenvalue
from .._linalg.norms import norm
from .._linalg.vectors import Scalar, Vector
from .._problem import AbstractProblem, cross_product, cross_transpose_product

DIRECTIONS = 8
SAFETY = 2.0


def ball_directions(x: Vector, rho: Vector, q: Vector) -> list[Vector]:
    """Eight unit directions in x: +-rho, +-q (where the error and the adjoint point), and four random ones."""

    def unit(v):
        size = norm(v)
        return jax.tree.map(lambda leaf: leaf / jnp.where(size > 0, size, 1), v)

    keys = jax.random.split(jax.random.key(0), DIRECTIONS - 4)
    random = [unit(optax.tree.random_like(key, x, jax.random.normal)) for key in keys]
    rho, q = unit(rho), unit(q)
    return [rho, optax.tree.scale(-1, rho), q, optax.tree.scale(-1, q), *random]


def lipschitz(function: Callable[[Vector], Vector], base: Vector, x: Vector, radius: Scalar, directions) -> Scalar:
    """2 max over directions v of ||F(x + r v) - F(x)|| / r, with F(x) given as `base`; calls F once a direction.

    r is the radius of the ball, or where that is lost in rounding, sqrt(u) times the size of x.
    """
    root = jnp.sqrt(jnp.finfo(radius.dtype).eps)
    radius = jnp.maximum(radius, root * jnp.maximum(norm(x), 1))
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *directions)

    def quotient(v):
        return norm(optax.tree.sub(function(optax.tree.add_scale(x, radius, v)), base)) / radius

    return SAFETY * jnp.max(jax.lax.map(quotient, stack))


def cross_norm_cost(x: Vector, theta: Vector) -> int:
    """The products that `cross_norm` takes."""
    n, d = optax.tree.size(x), optax.tree.size(theta)
    steps = lanczos_steps(min(n, d))
    return d if d <= 2 * steps else 2 * min(steps, n, d)


def cross_norm(
    problem: AbstractProblem, x: Vector, theta: Vector, seed: Int[Array, ""] | int = 0
) -> tuple[Float[Array, ""], bool]:
    """An upper bound of ||J(x)||, and whether it is certain (else it holds with probability at least 1 - 1e-10).

    For few hyperparameters the Gram matrix J^T J, column by column; for many, Lanczos on J^T J (or J J^T, whichever is
    smaller) with relative error 1/2 in the eigenvalue, so a factor of at most 1.41.
    """
    n, d = optax.tree.size(x), optax.tree.size(theta)
    flat, unravel = ravel_pytree(theta)
    steps = lanczos_steps(min(n, d))
    if d <= 2 * steps:

        def column(e):
            return ravel_pytree(cross_product(problem, x, theta, unravel(e)))[0]

        columns = jax.lax.map(column, jnp.eye(d, dtype=flat.dtype))
        # squared, small entries would vanish
        largest = jnp.max(jnp.abs(columns))
        scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
        columns = columns / scale
        rounding = 1 + 4 * d * jnp.finfo(flat.dtype).eps
        return scale * rounding * jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(columns @ columns.T)[-1], 0)), True

    def J(v):
        return cross_product(problem, x, theta, v)

    def Jt(q):
        return cross_transpose_product(problem, x, theta, q)

    first, second, like = (J, Jt, theta) if d <= n else (Jt, J, x)
    eigenvalue, _ = largest_eigenvalue(lambda v: second(first(v)), like, steps, seed)
    return jnp.sqrt(eigenvalue), False
