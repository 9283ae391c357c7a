"""Nesterov's accelerated gradient descent."""

import jax
import jax.numpy as jnp
import optax

from .solver import AbstractLowerSolver


class Nesterov(AbstractLowerSolver):
    """v+ = x - grad h(x)/L,  x+ = v+ + beta (v+ - v),  beta = (sqrt(kappa) - 1)/(sqrt(kappa) + 1): about sqrt(kappa)
    steps a digit. Nesterov, Lectures on Convex Optimization (2018), scheme 2.2.22. The gradient, and so the
    certificate, is at x.
    """

    def init(self, x, rho, curvature):
        return optax.tree.zeros_like(x)

    def step(self, level, it):
        # kept as u = v+ - v, which is updated in place; v itself would be copied twice a step
        root, s = jnp.sqrt(it.L / level.mu), 1 / it.L
        beta = (root - 1) / (root + 1)
        u = jax.tree.map(lambda u, rho: beta * u - s * rho, it.memory, it.rho)
        x = jax.tree.map(lambda x, rho, u: (x - s * rho) + beta * u, it.x, it.rho, u)
        return it.move(level, x, u)
