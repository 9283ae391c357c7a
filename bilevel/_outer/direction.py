"""Where to go from theta, given z: a direction d, and what is known of f along it.

    d = -z    steepest descent;        other directions are a file each: `bfgs`, `optimiser`

A direction decides no correctness: what it proposes is judged by the search.
"""

import abc
import math
from typing import Any

import equinox as eqx
import optax
from jaxtyping import Array, Bool

from .._linalg.vectors import Box, Scalar, Vector


class Heading(eqx.Module):
    """What a direction says of its d; `Heading()` for one that knows nothing of f.

    `scaled`: d has the length that its author would go, so that alpha = 1 is tried first. `learnt`: the last step told
    something of f's curvature; where it did not, a search for a scaled d begins with a longer step. `promised` is the
    decrease that a model of f promises from here, `left` the most that it leaves to be had; nan without a model.
    """

    scaled: Bool[Array, ""] | bool = False
    learnt: Bool[Array, ""] | bool = False
    promised: Scalar | float = math.nan
    left: Scalar | float = math.nan


class AbstractDirection(eqx.Module):
    """All of it is traceable: choices are `jnp.where`, not `if`. theta, z and d are pytrees of the same structure.

    Only what `query` and `forget` return is remembered, and only if the step then accepts a trial; so a memory keeps
    its structure, shapes and dtypes.
    """

    @abc.abstractmethod
    def init(self, theta: Vector) -> Any:
        """The memory before the first step."""

    @abc.abstractmethod
    def query(self, memory: Any, theta: Vector, z: Vector, omega: Scalar, box: Box) -> tuple[Any, Vector, Heading]:
        """The memory with what (theta, z) tells, d, and what is known of it; ||z - grad f|| <= omega.

        Asked again at the same theta where z has become more accurate: theta - theta_before is zero then.
        `box`: (lo, hi) or None; theta + alpha d is projected on it."""

    def forget(self, memory: Any, theta: Vector) -> Any:
        """The memory after steps along d were tried in vain. z gets more accurate next; from this memory, d should be
        one along which f falls if z is grad f."""
        return memory


class Steepest(AbstractDirection):
    """d = -z."""

    def init(self, theta):
        return None

    def query(self, memory, theta, z, omega, box):
        return memory, optax.tree.scale(-1, z), Heading()
