"""Denoising: the image itself was measured."""

import jax.numpy as jnp

from .base import AbstractOperator


class Identity(AbstractOperator):
    """A x = x."""

    rounding = 0.0

    def apply(self, x):
        return x

    def adjoint(self, y):
        return y

    def extremes(self, shape):
        return 1.0, 1.0

    def misfit(self, x, y):
        return jnp.sum((x - y) ** 2) / 2
