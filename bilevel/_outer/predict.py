"""Who guesses the x of a trial point: the last one, or an affine best response fitted to points already solved.

    x(theta + d) ~ x + sum c_i (x_i - x),      c = argmin ||d - sum c_i (theta_i - theta)||^2 + tau sum w_i c_i^2

A bad guess costs time, never correctness: the certificate is made from the residual where the solve ends.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from .._linalg.sharding import replicate, zeros
from .._linalg.vectors import Vector

LARGE = 2**20  # numbers in x


class AbstractPredictor(eqx.Module):
    """All of it is traceable."""

    @abc.abstractmethod
    def init(self, theta: Vector, x: Vector) -> Any:
        """The memory before anything was solved; x tells its shapes."""

    @abc.abstractmethod
    def observe(self, memory: Any, theta: Vector, x: Vector) -> Any:
        """The memory after the lower level was solved at theta, for a trial that was rejected or a new base."""

    @abc.abstractmethod
    def guess(self, memory: Any, theta: Vector, x: Vector, trial: Vector) -> Vector:
        """A starting x at `trial`."""


class Previous(AbstractPredictor):
    """x itself."""

    def init(self, theta, x):
        return None

    def observe(self, memory, theta, x):
        return memory

    def guess(self, memory, theta, x, trial):
        return x


class Points(eqx.Module):
    """Solved points in slots, the oldest overwritten first; slot `count` % slots is next."""

    theta: Vector
    x: Vector
    count: Int[Array, ""]

    @property
    def slots(self) -> int:
        return len(jax.tree.leaves(self.theta)[0])  # a `Chunked` x has no leaves


class Secants(AbstractPredictor):
    """The affine response through the last solved points, which costs no gradient.

    A point's weight w_i = ||theta_i - theta||^4 / ||d||^2 is how much its own curvature would be in the way: x_i - x
    is linear in theta_i - theta only to second order. `points`: how many are kept; left out, 8, or 4 where x has more
    than 2^20 numbers, for they are most of what is kept from step to step.
    """

    points: int | None = eqx.field(static=True, default=None)
    tau: float = eqx.field(static=True, default=1e-2)

    def init(self, theta, x):
        count = replicate(jax.device_put(np.zeros((), np.int32)), x)
        slots = (8 if optax.tree.size(x) <= LARGE else 4) if self.points is None else self.points
        return Points(zeros(theta, slots), zeros(x, slots), count)

    def observe(self, memory, theta, x):
        at = memory.count % memory.slots

        def write(stack, v):
            return stack.at[at].set(v)

        return Points(
            jax.tree.map(write, memory.theta, theta), jax.tree.map(write, memory.x, x), memory.count + 1
        )  # fmt: skip

    def guess(self, memory, theta, x, trial):
        slots = memory.slots
        used = jnp.arange(slots, dtype=memory.count.dtype) < memory.count

        def rows(stack, base):
            return jnp.concatenate([
                jnp.where(used[:, None], (s - b[None]).reshape(slots, -1), 0)
                for s, b in zip(jax.tree.leaves(stack), jax.tree.leaves(base), strict=True)
            ], axis=1)  # fmt: skip

        T = rows(memory.theta, theta)
        d = jnp.concatenate([v.reshape(-1) for v in jax.tree.leaves(optax.tree.sub(trial, theta))])
        squares = jnp.sum(T**2, axis=1)
        known = squares > 0
        # in units of each point's own distance, so that near and far ones are equally well conditioned
        scale = jnp.sqrt(jnp.where(known, squares, 1))
        U = T / scale[:, None]
        system = U @ U.T + self.tau * jnp.diag(
            jnp.where(known, squares / jnp.maximum(d @ d, jnp.finfo(d.dtype).tiny), 1)
        )
        c = jnp.linalg.solve(system + 1e-9 * jnp.eye(slots, dtype=d.dtype), U @ d) / scale
        c = jnp.where(known, c, 0)

        def shift(base, stack):  # the differences themselves would be another stack
            return (1 - jnp.sum(c)) * base + jnp.tensordot(c, stack, axes=1)

        return jax.tree.map(shift, x, memory.x)
