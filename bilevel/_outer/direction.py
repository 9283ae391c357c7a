"""Where to go from theta, given z: a direction d, and what is known of f along it.

    d = -z    steepest descent;        other directions are a file each: `bfgs`, `optimiser`

A direction decides no correctness: what it proposes is judged by the search.
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from .._linalg.norms import norm
from .._linalg.vectors import Box, Scalar, Vector


class Heading(eqx.Module):
    """What a direction says of its d, all of it scalars.

    `length` is ||d||. `scaled`: d comes from a model of f, so that alpha = 1 is its natural step. `learnt`: the last
    step told something of f's curvature. `promised` is the decrease that the model promises from here, `left` the most
    that it leaves to be had; nan for a direction without a model.
    """

    length: Scalar
    scaled: Bool[Array, ""]
    learnt: Bool[Array, ""]
    promised: Scalar
    left: Scalar


class AbstractDirection(eqx.Module):
    """All of it is traceable."""

    @abc.abstractmethod
    def init(self, theta: Vector) -> Any:
        """The memory before the first step."""

    @abc.abstractmethod
    def query(self, memory: Any, theta: Vector, z: Vector, omega: Scalar, box: Box) -> tuple[Any, Vector, Heading]:
        """The memory with what (theta, z) tells, d, and what is known of it; ||z - grad f|| <= omega."""

    def forget(self, memory: Any, theta: Vector) -> Any:
        """The memory after steps along d were tried in vain."""
        return memory


class Steepest(AbstractDirection):
    """d = -z."""

    def init(self, theta):
        return None

    def query(self, memory, theta, z, omega, box):
        return memory, optax.tree.scale(-1, z), plain(z)


def plain(d: Vector) -> Heading:
    """The heading of a direction without a model of f."""
    length, false = norm(d), jnp.asarray(False)
    nan = jnp.full_like(length, jnp.nan)
    return Heading(length, false, false, nan, nan)
