"""mu and L where a problem does not declare them: what Lanczos sees of H, here and at the distance that is claimed.

    eps = ||rho|| / mu  >=  ||x - xhat||        rests on the curvature all the way from x to xhat

so an estimate of mu is looked at where the solve has come to, not where it began, and a second time where the Newton
step points to, at the distance that the curvature of x alone promises: where h bends away from its quadratic model
within that distance, the promise is void. With at most as many unknowns as Lanczos takes steps both are eigenvalues;
beyond, the smallest Ritz value is larger than the smallest eigenvalue, of which mu = half of it makes up a part.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int

from .._linalg.lanczos import lanczos, lanczos_steps
from .._linalg.norms import norm
from .._linalg.vectors import Scalar, Vector
from .._problem import AbstractProblem, Constants, hessian_product

LANCZOS_STEPS = 20  # for mu: at least as many


class Look(NamedTuple):
    """mu by x alone, mu by the way to xhat as well, the extreme Ritz values at x, and an upper bound of L."""

    near: Scalar
    mu: Scalar
    smallest: Scalar
    largest: Scalar
    L: Scalar


def _steps(constants: Constants, size: int) -> int:
    steps = lanczos_steps(size)
    return min(steps if constants.mu is not None else max(LANCZOS_STEPS, steps), size)


def look_cost(constants: Constants, size: int) -> int:
    """The Hessian products of a `look`; x has `size` entries."""
    if constants.mu is not None:
        return 0 if constants.L is not None else _steps(constants, size)
    return 2 * _steps(constants, size)


def look(problem: AbstractProblem, theta: Vector, x: Vector, rho: Vector, seed: Int[Array, ""]) -> Look:
    """From `look_cost` products, Lanczos's start drawn by `seed`. What is declared is handed back as it is."""
    constants, size = problem.constants(theta), optax.tree.size(x)
    steps, residual = _steps(constants, size), norm(rho)

    def at(point, seed):
        ritz, _ = lanczos(lambda v: hessian_product(problem, point, theta, v), x, steps, seed)
        d, near = ritz.solve(rho), ritz.smallest / 2
        known = (near > 0) & (norm(d) > 0)
        scale = jnp.where(known, residual / jnp.where(known, near * norm(d), 1), 0)
        return optax.tree.add_scale(x, -jnp.where(jnp.isfinite(scale), scale, 0), d), (ritz.smallest, ritz.largest)

    points = 1 if constants.mu is not None else 2
    _, (smallest, largest) = lax.scan(at, x, seed + jnp.arange(points, dtype=jnp.int32))
    # far away h need not be finite
    smallest = jnp.where(jnp.isfinite(smallest), smallest, smallest[:1])
    largest = jnp.where(jnp.isfinite(largest), largest, largest[:1])
    factor = 1 + 16 * size * float(jnp.finfo(residual.dtype).eps) if steps == size else 2.0  # see `lanczos_steps`
    near, mu, L = smallest[0] / 2, jnp.min(smallest) / 2, factor * jnp.max(largest)
    if constants.mu is not None:
        near = mu = jnp.asarray(constants.mu, residual.dtype)
    if constants.L is not None:
        L = jnp.asarray(constants.L, residual.dtype)
    return Look(near, mu, smallest[0], largest[0], L)
