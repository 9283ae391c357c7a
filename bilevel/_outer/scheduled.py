"""HOAG's rule: tolerances that fall with the accepted steps whatever is seen, halved at a rejection.

    ||rho_k|| <= tolerance_k ||rho_0|| mu(theta_k) / mu(theta_0),   ||H q - grad_x g|| <= tolerance_k ||grad_x g||_0

With log penalties mu = exp(min theta), which gives the published code's exp(min theta_k - min theta_0). Both sides
divided by mu it is a schedule for eps in units of the starting error (Pedregosa 2016, arXiv 1602.02355).
"""

import math
from typing import NamedTuple

import equinox as eqx

from .._arguments import number, positive
from .accuracy import AbstractAccuracy


class Geometric(eqx.Module):
    """tolerance_k = tolerance_0 r^k, 0 < r <= 1."""

    ratio: float = 0.9

    def __check_init__(self):
        if not 0 < number("ratio", self.ratio) <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1, so that tolerances fall, not {self.ratio!r}")

    def __call__(self, k: int) -> float:
        return self.ratio**k


class Polynomial(eqx.Module):
    """tolerance_k = tolerance_0 / (k + 1)^p: quadratic for p = 2, cubic for p = 3."""

    power: float = 2

    def __check_init__(self):
        positive(power=self.power)

    def __call__(self, k: int) -> float:
        return (k + 1) ** -self.power


class Place(NamedTuple):
    """Where on its schedule a run is: `tolerance` is eps / eps_scale and delta / delta_scale, `accepted` counts steps,
    `shrunk` is what rejections have made of the schedule."""

    eps: float
    delta: float
    tolerance: float
    eps_scale: float
    delta_scale: float
    shrunk: float
    accepted: int


class Scheduled(AbstractAccuracy):
    """`tolerance`: the first, relative to the start. `schedule`: what becomes of it."""

    schedule: Geometric | Polynomial
    tolerance: float = 0.1

    def __check_init__(self):
        if not isinstance(self.schedule, Geometric | Polynomial):
            raise TypeError(f"schedule must be bilevel.Geometric(0.9) or bilevel.Polynomial(2), not {self.schedule!r}")
        positive(tolerance=self.tolerance)

    def at(self, place: Place) -> Place:
        tolerance = self.tolerance * self.schedule(place.accepted) * place.shrunk
        return place._replace(
            tolerance=tolerance, eps=tolerance * place.eps_scale, delta=tolerance * place.delta_scale
        )  # fmt: skip

    def init(self, error, norm_g_x, value):
        return self.at(Place(math.nan, math.nan, math.nan, error or 1.0, norm_g_x or 1.0, 1.0, 0))

    def wanted(self, asked, reached):
        return math.inf

    def rejected(self, asked):
        return self.at(asked._replace(shrunk=asked.shrunk / 2))

    def accepted(self, asked):
        return self.trial(asked)

    def trial(self, asked):
        return self.at(asked._replace(accepted=asked.accepted + 1))
