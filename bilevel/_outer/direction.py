"""Where to go, and how a step stays in the box.

    d = -B z,        theta(alpha) = P(theta + alpha d),        P the projection on [lo, hi]

B is 1 for steepest descent, or L-BFGS's inverse Hessian. Entries of theta that lie on a bound with z pushing outwards
are held: B acts on the others alone (Bertsekas 1982). Stationarity is ||P(theta - z) - theta||, ||z|| without a box.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from .._linalg.lbfgs_pairs import Pairs, apply, restrict
from .._linalg.norms import norm
from .._linalg.vectors import Box, Scalar, Vector
from .._problem import AbstractProblem


def projected_step(theta: Vector, d: Vector, alpha: Float[Array, ""], box: Box) -> tuple[Vector, Scalar]:
    """(P(theta + alpha d), the length of the step taken)."""
    trial = optax.tree.add_scale(theta, alpha, d)
    if box is not None:
        trial = jax.tree.map(jnp.clip, trial, *box)
    return trial, norm(optax.tree.sub(trial, theta))


def stationarity(theta: Vector, z: Vector, box: Box) -> Scalar:
    """||P(theta - z) - theta||, without adding z to theta, in whose rounding a small z would be lost."""
    if box is None:
        return norm(z)
    return norm(jax.tree.map(lambda t, z, lo, hi: jnp.clip(-z, lo - t, hi - t), theta, z, *box))


def quasi_newton_direction(pairs: Pairs, theta: Vector, z: Vector, box: Box) -> tuple[Vector, Scalar, Bool[Array, ""]]:
    """(d, ||d||, whether B was used): d = -B z, or -z where <z, d> is not clearly negative."""
    if box is not None:
        lo, hi = box
        free = jax.tree.map(lambda t, z, lo, hi: ~((t <= lo) & (z > 0) | (t >= hi) & (z < 0)), theta, z, lo, hi)
        z = jax.tree.map(lambda z, free: jnp.where(free, z, 0), z, free)
        pairs = restrict(pairs, free)
    d = optax.tree.scale(-1, apply(pairs, z))
    norms = norm(z) * norm(d)
    used = (jnp.max(jnp.diagonal(pairs.products)) > 0) & (optax.tree.vdot(z, d) < -1e-10 * norms) & jnp.isfinite(norms)
    d = optax.tree.where(used, d, optax.tree.scale(-1, z))
    return d, norm(d), used


def keep_certifiable(problem: AbstractProblem, theta: Vector, wall: Scalar) -> Vector:
    """theta, moved to where log(L/mu) <= wall: rounding leaves nothing to certify with beyond it.

        theta <- theta - (k - wall) grad k / ||grad k||^2,    k(theta) = log(L(theta) / mu(theta)),    while k > wall

    For mu = min e^theta it lifts, one by one, the penalties that went too low, and leaves the others. Does nothing
    where mu or L is not declared.
    """
    known = problem.constants(theta)
    if known.mu is None or known.L is None:
        return theta

    def k(theta):
        known = problem.constants(theta)
        return jnp.log(jnp.asarray(known.L) / known.mu).astype(wall.dtype)

    def beyond(carry):
        _, value, _, steps = carry
        return (value > wall + 1e-6) & (steps < 2 * optax.tree.size(theta) + 100)

    def back(carry):
        theta, value, slope, steps = carry
        squared = optax.tree.norm(slope, squared=True)
        theta = optax.tree.add_scale(theta, -(value - wall) / jnp.where(squared > 0, squared, jnp.inf), slope)
        return theta, *jax.value_and_grad(k)(theta), steps + 1

    return lax.while_loop(beyond, back, (theta, *jax.value_and_grad(k)(theta), 0))[0]
