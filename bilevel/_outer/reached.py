"""What was shown, in plain numbers, for the rules that decide."""

import math
from typing import Any, NamedTuple

import jax

from .._certificate.gradient import Hypergradient


class Per(NamedTuple):
    """omega ~ per.eps eps + per.delta delta + per.eps2 eps^2 + per.both eps delta."""

    eps: float
    delta: float
    eps2: float
    both: float

    @classmethod
    def of(cls, gradient: Hypergradient) -> "Per":
        numbers = gradient.per_eps, gradient.per_delta, gradient.per_eps2, gradient.per_both
        return cls(*map(float, jax.device_get(numbers)))

    def afford(self, share: float, most: float = math.inf) -> tuple[float, float]:
        """The eps, at most `most`, and the delta beside it whose parts of omega are `share` each."""
        root = self.eps + math.hypot(self.eps, 2 * math.sqrt(max(0.0, self.eps2 * share)))
        eps = min(most, 2 * share / root if root > 0 else math.inf)
        steep = self.delta + (self.both * eps if self.both > 0 and 0 < eps < math.inf else 0)
        return eps, share / steep if steep > 0 else math.inf


class Reached(NamedTuple):
    """What was shown of z, in plain numbers, for the rules that decide.

    `norm` is ||P(theta - z) - theta||, `whole` is ||z||; `per` what omega gains with eps and delta; `floor` the part
    of eps that is rounding; `tol` the tolerance, nan while it is not set; `condition` is L/mu.
    """

    eps: float
    delta: float
    norm: float
    whole: float
    omega: float
    per: Per
    floor: float
    condition: float
    tol: float


class Interval(NamedTuple):
    """low <= f(theta) <= high around `value`, |value - f| <= error, from x within eps; `floor`: rounding allows no
    smaller eps. `asked` is what was asked for."""

    low: float
    value: float
    high: float
    error: float
    eps: float
    floor: bool
    asked: Any
