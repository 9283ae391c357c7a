"""Where theta may go: the box on it, and the part of it where anything can be certified.

    theta(alpha) = P(theta + alpha d),        P the projection on [lo, hi]

Stationarity is ||P(theta - z) - theta||, ||z|| without a box.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, PyTree

from .._linalg.norms import norm
from .._linalg.vectors import Box, Scalar, Vector
from .._problem import AbstractProblem


def project(theta: Vector, box: Box) -> Vector:
    """P(theta)."""
    return theta if box is None else jax.tree.map(jnp.clip, theta, *box)


def free(theta: Vector, z: Vector, box: tuple[Vector, Vector]) -> PyTree[Bool[Array, "..."]]:
    """Which entries of theta are not held: on a bound, with z pushing outwards (Bertsekas 1982)."""
    return jax.tree.map(lambda t, z, lo, hi: ~((t <= lo) & (z > 0) | (t >= hi) & (z < 0)), theta, z, *box)


def stationarity(theta: Vector, z: Vector, box: Box) -> Scalar:
    """||P(theta - z) - theta||, without adding z to theta, in whose rounding a small z would be lost."""
    if box is None:
        return norm(z)
    return norm(jax.tree.map(lambda t, z, lo, hi: jnp.clip(-z, lo - t, hi - t), theta, z, *box))


def keep_certifiable(problem: AbstractProblem, theta: Vector, limit: Scalar) -> Vector:
    """theta, moved to where log(L/mu) <= limit: rounding leaves nothing to certify with beyond it.

        theta <- theta - (k - limit) grad k / ||grad k||^2,    k(theta) = log(L(theta) / mu(theta)),    while k > limit

    For mu = min e^theta it lifts, one by one, the penalties that went too low, and leaves the others. Does nothing
    where mu or L is not declared.
    """
    known = problem.constants(theta)
    if known.mu is None or known.L is None:
        return theta

    def k(theta):
        known = problem.constants(theta)
        return jnp.log(jnp.asarray(known.L) / known.mu).astype(limit.dtype)

    def beyond(carry):
        _, value, _, steps = carry
        return (value > limit + 1e-6) & (steps < 2 * optax.tree.size(theta) + 100)

    def back(carry):
        theta, value, slope, steps = carry
        squared = optax.tree.norm(slope, squared=True)
        theta = optax.tree.add_scale(theta, -(value - limit) / jnp.where(squared > 0, squared, jnp.inf), slope)
        return theta, *jax.value_and_grad(k)(theta), steps + 1

    return lax.while_loop(beyond, back, (theta, *jax.value_and_grad(k)(theta), 0))[0]
