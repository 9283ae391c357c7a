"""d = -B z, B by L-BFGS from accepted points; -z where <z, d> is not clearly negative.

Entries of theta that lie on a bound with z pushing outwards are held: B acts on the others alone (Bertsekas 1982).
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._linalg import lbfgs_pairs
from .._linalg.norms import norm
from .._linalg.sharding import replicate, zeros
from .._linalg.vectors import Scalar, Vector
from .direction import AbstractDirection, Heading
from .region import free, stationarity

# y = z+ - z is meaningless where its error could be all of it; omega is some hundred times the error of z.
MEANINGLESS = 0.01
MOST = 2**24  # numbers in all pairs: an eighth of a gigabyte, twice, for a state and the next


class Pairing(NamedTuple):
    """The pairs, and theta, z, omega where the next one starts."""

    pairs: lbfgs_pairs.CurvaturePairs
    theta: Vector
    z: Vector
    omega: Scalar


class QuasiNewton(AbstractDirection):
    """`pairs`: how many are kept; left out, 100, or as many as have 2^24 numbers, but at least 8."""

    pairs: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.pairs is not None and self.pairs < 1:
            raise ValueError(f"pairs={self.pairs}: keep at least one, or use Steepest()")

    def init(self, theta):
        nothing, leaf = zeros(theta), jax.tree.leaves(theta)[0]
        omega = replicate(jax.device_put(np.asarray(np.inf, leaf.dtype)), theta)
        return Pairing(self.empty(theta), nothing, nothing, omega)

    def empty(self, theta):
        fitting = max(8, min(100, MOST // (2 * optax.tree.size(theta))))
        return lbfgs_pairs.empty(theta, fitting if self.pairs is None else self.pairs)

    def query(self, memory, theta, z, omega, box):
        s, y = optax.tree.sub(theta, memory.theta), optax.tree.sub(z, memory.z)
        y = optax.tree.where(norm(y) > MEANINGLESS * (omega + memory.omega), y, optax.tree.zeros_like(y))
        pairs = lbfgs_pairs.push(memory.pairs, s, y)
        learnt = pairs.count > memory.pairs.count
        d, used = descend(pairs, theta, z, box)
        length, slope = norm(d), optax.tree.vdot(z, d)
        promised = jnp.where(used, -slope / 2, jnp.where(length > 0, jnp.inf, 0))
        # or as if all of z lay along the flattest direction seen: B knows little of those that it has not
        flattest = flatness(pairs) * stationarity(theta, z, box) ** 2
        heading = Heading(used, learnt, promised, jnp.maximum(promised, flattest / 2))
        return Pairing(pairs, theta, z, omega), d, heading

    def forget(self, memory, theta):
        return memory._replace(pairs=self.empty(theta))


def descend(pairs, theta, z, box):
    """(d, whether B made it)."""
    moving = None if box is None else free(theta, z, box)
    if moving is not None:
        z, pairs = lbfgs_pairs.mask(z, moving), lbfgs_pairs.restrict(pairs, moving)
    d = optax.tree.scale(-1, lbfgs_pairs.apply(pairs, z, free=moving))
    norms = norm(z) * norm(d)
    used = (jnp.max(jnp.diagonal(pairs.products)) > 0) & (optax.tree.vdot(z, d) < -1e-10 * norms) & jnp.isfinite(norms)
    return optax.tree.where(used, d, optax.tree.scale(-1, z)), used


def flatness(pairs: lbfgs_pairs.CurvaturePairs) -> Scalar:
    """1 over the least curvature <s, y> / ||s||^2 of all pairs; 0 without any."""
    curved = jnp.diagonal(pairs.products)
    return jnp.max(jnp.where(curved > 0, jax.vmap(norm)(pairs.s) ** 2 / jnp.where(curved > 0, curved, 1), 0))
