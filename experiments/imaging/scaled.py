"""A regulariser that was learnt before, of which only the weight is learnt anew.

R'(x, s) = e^s R(x, theta)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel import Bounds, Constants
from bilevel.problems import AbstractRegulariser


class Scaled(AbstractRegulariser):
    """`Scaled(regulariser, theta)`, convex, theta its own, fixed; the new one is {"scale": ()}, s."""

    inner: AbstractRegulariser
    theta: dict[str, Array]

    def check(self, theta, shape):
        if {name: jnp.shape(leaf) for name, leaf in theta.items()} != {"scale": ()}:
            raise ValueError(f'theta must be {{"scale": ()}}, not {theta}')
        self.inner.check(self.theta, shape)

    def value(self, x, theta):
        return jnp.exp(theta["scale"]) * self.inner.value(x, self.theta)

    def constants(self, theta, shape, reach):
        """J has one column, e^s grad R: it is e^s L_R-Lipschitz, and part of R's own J as the sum of the columns of its
        log weights, so that its rounding is at most the root of their number times that of R's J."""
        s, known = jnp.exp(theta["scale"]), self.inner.constants(self.theta, shape, reach)
        weights = max(jnp.size(leaf) for name, leaf in self.theta.items() if name.startswith("weight"))
        return Constants(
            mu=s * known.mu,
            L=s * known.L,
            L_hessian=s * known.L_hessian,
            L_cross=s * known.L,
            rounding_cross=s * weights**0.5 * known.rounding_cross,
        )

    def bounds(self, x, theta, q, radius):
        s, shape = jnp.exp(theta["scale"]), x.shape
        L = self.inner.constants(self.theta, shape, jnp.zeros_like(s)).L
        M_H = self.inner.bounds(x, self.theta, q, radius).M_H
        return Bounds(M_H=s * M_H, M_J=s * L * jnp.linalg.norm(q), L_J=s * L)

    def columns(self, x, theta):
        return [jax.grad(self.value)(x, theta)]

    def bind(self, data):
        return Scaled(self.inner.bind(data), self.theta)
