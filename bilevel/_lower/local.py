"""What H(x) tells beyond mu, in the notation of `_certificate/local_curvature.py`, which finds it out."""

import equinox as eqx
import jax.numpy as jnp

from .._linalg.vectors import Scalar


class Local(eqx.Module):
    """m, t, ||K|| and sqrt(||J^T K||) of the equations above; t is infinite where nothing is known."""

    m: Scalar
    t: Scalar
    response: Scalar
    energy: Scalar

    @classmethod
    def unknown(cls, mu: Scalar) -> "Local":
        inf = jnp.full_like(mu, jnp.inf)
        return cls(mu, inf, inf, inf)

    def amplification(self, eps: Scalar, L_J: Scalar | float) -> Scalar:
        """The bound of ||H(xhat)^{-1} J(xhat)||, infinite where t is not below 1."""
        usable = self.t < 1
        t = jnp.where(usable, self.t, 0)
        inside = self.response + t / (1 - t) * self.energy / jnp.sqrt(self.m) + L_J * eps / (self.m * (1 - t))
        return jnp.where(usable, inside, jnp.inf)
