"""More ranges of hyperparameters, each a class of its own as one of yours would be.

low (high / low)^sigmoid(u)     LogReal     between two positive numbers, even in the logarithm
low + exp(u)                    AtLeast     above a number
start + unit u                  Free        any number
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .space import LARGEST_EXPONENT, AbstractHyperparameter


class LogReal(AbstractHyperparameter):
    """A number strictly between the positive `low` and `high`, of unknown size: a decay that shall not run away.

    Raises ValueError unless 0 < low < start < high.
    """

    start: float = eqx.field(static=True, converter=float)
    low: float = eqx.field(static=True, converter=float)
    high: float = eqx.field(static=True, converter=float)
    scale: float = eqx.field(static=True, default=0.5, converter=float)
    draws: str = eqx.field(static=True, default="example")

    def __check_init__(self):
        if not 0 < self.low < self.start < self.high:
            raise ValueError(f"{self!r}: it needs 0 < low < start < high; for negative numbers use stn.Real")

    def unconstrained(self) -> float:
        return math.log(math.log(self.start / self.low)) - math.log(math.log(self.high / self.start))

    def value(self, u: Float[Array, "..."]) -> Array:
        return jnp.exp(math.log(self.low) + math.log(self.high / self.low) * jax.nn.sigmoid(u))


class AtLeast(AbstractHyperparameter):
    """A number above `low`, u the logarithm of by how much. Raises ValueError unless start > low."""

    start: float = eqx.field(static=True, converter=float)
    low: float = eqx.field(static=True, converter=float)
    scale: float = eqx.field(static=True, default=0.5, converter=float)
    draws: str = eqx.field(static=True, default="example")

    def __check_init__(self):
        if not self.start > self.low:
            raise ValueError(f"{self!r}: start must be above low, which is never reached")

    def unconstrained(self) -> float:
        return math.log(self.start - self.low)

    def value(self, u: Float[Array, "..."]) -> Array:
        return self.low + jnp.exp(jnp.clip(u, -LARGEST_EXPONENT, LARGEST_EXPONENT))


class Free(AbstractHyperparameter):
    """Any number; `unit` is about as far as it may change at once. Raises ValueError unless unit > 0."""

    start: float = eqx.field(static=True, converter=float)
    unit: float = eqx.field(static=True, default=1.0, converter=float)
    scale: float = eqx.field(static=True, default=0.5, converter=float)
    draws: str = eqx.field(static=True, default="example")

    def __check_init__(self):
        if not self.unit > 0:
            raise ValueError(f"{self!r}: unit must be positive")

    def unconstrained(self) -> float:
        return 0.0

    def value(self, u: Float[Array, "..."]) -> Array:
        return self.start + self.unit * u
