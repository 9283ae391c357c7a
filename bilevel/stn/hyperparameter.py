"""What one hyperparameter is: a start, a range, how far draws go, and who shares a draw."""

import math
from abc import abstractmethod

import equinox as eqx
from jaxtyping import Array, Float


class AbstractHyperparameter(eqx.Module):
    """One hyperparameter: where it starts, its range, how far draws go, and who shares a draw.

    `scale`: sigma at the start, positive, in the units of u. `draws`: "example", each example of a batch has its own
    draw, or "batch", all share one.
    """

    start: eqx.AbstractVar[float]
    scale: eqx.AbstractVar[float]
    draws: eqx.AbstractVar[str]

    @abstractmethod
    def unconstrained(self) -> float:
        """The u at which the value is `start`."""

    @abstractmethod
    def value(self, u: Float[Array, "..."]) -> Array:
        """range(u), elementwise; floating, but int32 for `Integer`."""

    def __check_init__(self):
        numbers = [v for v in vars(self).values() if isinstance(v, int | float)]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"{self!r}: every number must be finite")
        if not self.scale > 0:
            raise ValueError(f"{self!r}: scale must be positive, it is the standard deviation of the draws")
        if self.draws not in ("example", "batch"):
            raise ValueError(f'{self!r}: draws must be "example" or "batch", not {self.draws!r}')
