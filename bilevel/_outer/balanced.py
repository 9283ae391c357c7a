"""Accuracy where a decision needs it: omega <= C ||z||, eps and delta having equal shares in it.

    omega ~ per_eps eps + per_delta delta + per_eps2 eps^2 + per_both eps delta:

each gets its share of what omega may be, and less at every repetition.

||grad f|| <= (1 + C) ||z|| at every step, so z -> 0 is stationarity. C is above one because the bound omega is 25 to
800 times the error that it bounds. Where no step along z's descent directions is accepted, C falls to below one: then
-z is a certified direction of descent, and short enough steps along it are accepted, as in MAID.
"""

import math
from typing import ClassVar, NamedTuple

from .._arguments import positive
from .._results import RESULTS
from .accuracy import AbstractAccuracy, first
from .programs import Stop
from .refine import SHARE, split

CERTAIN = 0.5  # C at which -z certainly descends
# The next point is asked for a fifth of what this one was, in the hope of a norm that is smaller.
NEXT = 0.2
# So close to the tolerance, all that is missing is the certificate.
NEAR = 0.9


class Shares(NamedTuple):
    """C in this step, beside eps and delta."""

    eps: float
    delta: float
    C: float


class Balanced(AbstractAccuracy):
    """omega <= C ||z||; near the tolerance what the tolerance needs; at theta0, while there is no tolerance, half of
    ||z||. `eps`, `delta`: the first accuracies, chosen from the problem where left out."""

    eps: float | None = None
    delta: float | None = None
    C: float = 3.0
    sharpening: ClassVar[float] = 1 / 3

    def __check_init__(self):
        positive(eps=self.eps, delta=self.delta, C=self.C)

    def init(self, error, norm_g_x, value):
        return Shares(*first(error, norm_g_x, value, self.eps, self.delta), self.C)

    def wanted(self, asked, reached):
        norm, tol = reached.norm, reached.tol
        met = norm + reached.omega <= tol or norm + reached.omega == 0
        wanted = tol - norm if norm < NEAR * tol and not met else asked.C * norm
        if math.isnan(tol):
            return min(wanted, reached.whole / 2) if norm > 0 else reached.whole / 2
        return wanted

    def tighten(self, asked, reached, wanted, tries):
        eps, delta = split(
            SHARE / 2**tries * wanted, reached.per, (reached.eps, reached.delta), (asked.eps, asked.delta)
        )
        return asked._replace(eps=eps, delta=delta)

    def settle(self, asked, reached):
        eps, delta = reached.per.afford(NEXT * self.C * reached.norm)
        return asked._replace(eps=eps, delta=delta)

    def harder(self, asked, floor, judged):
        if asked.C < 1:  # -z itself is certified to descend, and no step along it could be shown to
            raise Stop(RESULTS.accuracy_floor if judged or floor else RESULTS.no_decrease)
        return asked._replace(C=CERTAIN)

    def accepted(self, asked):
        return asked._replace(C=self.C)
