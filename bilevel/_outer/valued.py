"""Accuracy for a descent on values alone: x as accurate as the comparison of two values needs it.

    eps_0 = |g| / (100 ||grad_x g||)          a value known to a hundredth, for a first z

The search refines what it compares. Where it finds nothing, z is made anew, from an x ten times as accurate, and -z is
tried; where that finds nothing either, the run has settled.
"""

import math
from typing import NamedTuple

from .._results import RESULTS
from .accuracy import AbstractAccuracy
from .programs import Stop


class Values(NamedTuple):
    """`tolerance` on values, nan until the first is known; `again`: a search at this theta has found nothing."""

    eps: float
    delta: float
    tolerance: float
    again: bool


class Valued(AbstractAccuracy):
    def init(self, error, norm_g_x, value):
        eps = abs(value) / norm_g_x / 100 if norm_g_x > 0 else 0.0
        return Values(eps or 1.0, math.inf, math.nan, False)

    def wanted(self, asked, reached):
        return math.inf

    def harder(self, asked, floor, judged):
        if asked.again:
            raise Stop(RESULTS.settled if judged else RESULTS.no_decrease)
        return asked._replace(eps=asked.eps / 10, again=True)

    def accepted(self, asked):
        return asked._replace(again=False)
