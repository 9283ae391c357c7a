"""d by an optax optimiser: theta+ = P(theta + d), or alpha d where the search says so."""

from typing import Any

import equinox as eqx
import optax

from .direction import AbstractDirection, Heading


class Optax(AbstractDirection):
    """`Optax(optax.adam(0.1))`: the update of `optimiser`, an optax gradient transformation, for the gradient z.

    With a search that certifies, alpha = 1 is tried first, and where no step along d is accepted, as where momentum
    points uphill, the optimiser starts again.
    Raises TypeError for what is no optax optimiser.
    """

    optimiser: Any = eqx.field(static=True)

    def __check_init__(self):
        if not isinstance(self.optimiser, optax.GradientTransformation):
            raise TypeError(f"optimiser must be an optax optimiser such as optax.adam(0.1), not {self.optimiser!r}")

    def init(self, theta):
        return self.optimiser.init(theta)

    def query(self, memory, theta, z, omega, box):
        d, memory = self.optimiser.update(z, memory, theta)
        return memory, d, Heading(scaled=True, learnt=True)

    def forget(self, memory, theta):
        return self.init(theta)
