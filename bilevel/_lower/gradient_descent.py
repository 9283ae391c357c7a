"""Gradient descent."""

import optax

from .solver import AbstractLowerSolver


class GradientDescent(AbstractLowerSolver):
    """x+ = x - 2/(L + mu) grad h(x): contracts by (kappa - 1)/(kappa + 1) a step, kappa = L/mu."""

    def init(self, x, rho, curvature):
        return None

    def step(self, level, it):
        return it.move(level, optax.tree.add_scale(it.x, -2 / (it.L + level.mu), it.rho), None)
