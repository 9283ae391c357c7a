"""The ranges of hyperparameters, each a class of its own as one of yours would be: value = range(u).

low + (high - low) sigmoid(u)               Rate, Real  between two numbers
exp(u)                                      Positive    above zero
floor(low + (high + 1 - low) sigmoid(u))    Integer     at most high
low (high / low)^sigmoid(u)                 LogReal     between two positive numbers, even in the logarithm
low + exp(u)                                AtLeast     above a number
start + unit u                              Free        any number
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .hyperparameter import AbstractHyperparameter

LARGEST_EXPONENT = 80.0  # exp of it and of its negative are normal in float32: a wild draw gives a huge value, not inf


def _stretch(u, low, high):
    return low + (high - low) * jax.nn.sigmoid(u)


def _unstretch(value, low, high):
    return math.log(value - low) - math.log(high - value)


class Real(AbstractHyperparameter):
    """A number strictly between `low` and `high`: a jitter, a noise level.

    Raises ValueError unless low < start < high.
    """

    start: float = eqx.field(static=True, converter=float)
    low: float = eqx.field(static=True, converter=float)
    high: float = eqx.field(static=True, converter=float)
    scale: float = eqx.field(static=True, default=0.5, converter=float)
    draws: str = eqx.field(static=True, default="example")

    def __check_init__(self):
        if not self.low < self.start < self.high:
            raise ValueError(
                f"{self!r}: start must lie strictly between low and high, whose ends are never reached; "
                "move the start inside, or widen the range"
            )

    def unconstrained(self) -> float:
        return _unstretch(self.start, self.low, self.high)

    def value(self, u: Float[Array, "..."]) -> Array:
        return _stretch(u, self.low, self.high)


class Rate(AbstractHyperparameter):
    """A probability of dropping, in (low, high). The cap `high` keeps 1 / (1 - rate) finite.

    Raises ValueError unless 0 <= low < start < high < 1.
    """

    start: float = eqx.field(static=True, converter=float)
    low: float = eqx.field(static=True, default=0.0, converter=float)
    high: float = eqx.field(static=True, default=0.95, converter=float)
    scale: float = eqx.field(static=True, default=0.5, converter=float)
    draws: str = eqx.field(static=True, default="example")

    def __check_init__(self):
        if not 0 <= self.low < self.start < self.high < 1:
            raise ValueError(
                f"{self!r}: a rate needs 0 <= low < start < high < 1; to begin without dropping take a small start "
                "such as 0.01"
            )

    def unconstrained(self) -> float:
        return _unstretch(self.start, self.low, self.high)

    def value(self, u: Float[Array, "..."]) -> Array:
        return _stretch(u, self.low, self.high)


class Positive(AbstractHyperparameter):
    """A positive number without a natural scale: a weight decay, an activation penalty. u is its logarithm.

    Raises ValueError unless start > 0.
    """

    start: float = eqx.field(static=True, converter=float)
    scale: float = eqx.field(static=True, default=0.5, converter=float)
    draws: str = eqx.field(static=True, default="example")

    def __check_init__(self):
        if not self.start > 0:
            raise ValueError(f"{self!r}: start must be positive; for no penalty take a small one such as 1e-8")

    def unconstrained(self) -> float:
        return math.log(self.start)

    def value(self, u: Float[Array, "..."]) -> Array:
        return jnp.exp(jnp.clip(u, -LARGEST_EXPONENT, LARGEST_EXPONENT))


class Integer(AbstractHyperparameter):
    """An integer from `low` to `high`, both of them reached: each has an interval of u of its own.

    Raises ValueError unless these are integers and low <= start <= high, low < high.
    """

    start: float = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    scale: float = eqx.field(static=True, default=0.5, converter=float)
    draws: str = eqx.field(static=True, default="example")

    def __check_init__(self):
        if not all(isinstance(number, int) for number in (self.start, self.low, self.high)):
            raise ValueError(f"{self!r}: start, low and high must be integers; use Real for numbers between them")
        if not self.low <= self.start <= self.high or self.low == self.high:
            raise ValueError(f"{self!r}: an integer needs low <= start <= high and low < high")

    def unconstrained(self) -> float:
        """The middle of the interval that `start` owns."""
        return _unstretch(self.start + 0.5, self.low, self.high + 1)

    def value(self, u: Float[Array, "..."]) -> Array:
        # the sigmoid rounds to 1 for large u, where floor gives high + 1
        return jnp.minimum(jnp.floor(_stretch(u, self.low, self.high + 1)).astype(jnp.int32), self.high)


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
