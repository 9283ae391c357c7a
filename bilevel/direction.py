"""Who decides where to go, and how a step stays in the box.

    d = direction(z),        theta(alpha) = P(theta + alpha d),        P the projection on [lo, hi]

Stationarity is ||P(theta - z) - theta||, which is ||z|| without a box.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from .problem import Scalar, Vector

Box = tuple[Vector, Vector] | None


class AbstractDirection(eqx.Module):
    @abc.abstractmethod
    def __call__(self, z: Vector) -> Vector:
        """The direction d, shaped like theta."""


class SteepestDescent(AbstractDirection):
    """d = -z."""

    def __call__(self, z):
        return optax.tree.scale(-1, z)


def projected_step(
    direction: AbstractDirection, theta: Vector, z: Vector, alpha: Float[Array, ""], box: Box
) -> tuple[Vector, Scalar]:
    """(P(theta + alpha d), the length of the step taken)."""
    trial = optax.tree.add_scale(theta, alpha, direction(z))
    if box is not None:
        trial = jax.tree.map(jnp.clip, trial, *box)
    return trial, optax.tree.norm(optax.tree.sub(trial, theta))
