"""Who decides eps and delta: fixed, scheduled (HOAG), adaptive (MAID).

A rule never computes an error; it is told what was reached and answers with the accuracies to ask for next. `asked` is
what a rule remembers; whatever else is in it, it has `eps`, to be reached by x, and `delta`, by the adjoint.
"""

import abc
import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx

from .._arguments import number, positive
from .._results import RESULTS
from .programs import Stop
from .reached import Reached


class Asked(NamedTuple):
    """eps >= ||x - xhat|| and delta >= ||H q - grad_x g||, in the units of x and grad_x g."""

    eps: float
    delta: float
    tolerance: float = math.nan


class AbstractAccuracy(eqx.Module):
    """`sharpening`: how much of what was spent on a certificate in vain may be spent on bounds from H(x) itself."""

    sharpening: ClassVar[float] = 0.0

    @abc.abstractmethod
    def init(self, error: float, norm_g_x: float, value: float) -> Any:
        """The first accuracies, from the certified error of the starting x, and ||grad_x g|| and g there."""

    @abc.abstractmethod
    def wanted(self, asked: Any, reached: Reached) -> float:
        """The largest omega with which z is accurate enough to search along."""

    def tighten(self, asked: Any, reached: Reached, wanted: float, tries: int) -> Any:
        """After `tries` earlier attempts to come to `wanted`: accuracies that are more likely to."""
        raise NotImplementedError(f"{type(self).__name__} wants an omega, but does not say how to come to it")

    def settle(self, asked: Any, reached: Reached) -> Any:
        """Once z is accurate enough: what the next point is asked for first."""
        return asked

    def harder(self, asked: Any, floor: bool, judged: bool) -> Any:
        """After a search found no certified decrease at this accuracy. `floor`: rounding allows no smaller eps;
        `judged`: the last trial could be judged. Raises Stop, with the reason, if the rule has no more to offer."""
        raise Stop(RESULTS.accuracy_floor if floor else RESULTS.no_decrease)

    def rejected(self, asked: Any) -> Any:
        """After a trial was rejected, the accuracy not being to blame."""
        return asked

    def accepted(self, asked: Any) -> Any:
        return asked

    def trial(self, asked: Any) -> Any:
        """The accuracy at which a trial point is solved: the base's."""
        return asked


def first(error: float, norm_g_x: float, value: float, eps: float | None, delta: float | None) -> tuple[float, float]:
    """A tenth of the starting error and of ||grad_x g||, where not given. A start that is solved already says nothing
    about eps: a value known to a thousandth will do."""
    start = max(error / 10, 1e-3 * abs(value) / norm_g_x if norm_g_x > 0 else 0.0)
    return (start or 1.0) if eps is None else eps, (norm_g_x / 10 or 1.0) if delta is None else delta


class Adaptive(AbstractAccuracy):
    """MAID's rule: shrink eps and delta by nu when the certificate or the search fails, relax them by nu_bar on
    acceptance; -z is a descent direction of f once omega <= (1 - eta) ||z||  (arXiv 2308.10098, algorithm 2).

    One shrinking is nu^m with the largest m for which no check skipped on the way could have passed: omega is a
    polynomial of degree two in (eps, delta) without constant term, so m shrinkings divide it by nu^{-2m} at most, as
    long as ||z|| and the constants stay. So the accuracies are those of the published loop, in fewer solves.

    `eps`, `delta`: the first accuracies; `None` takes a tenth of the starting error and of ||grad_x g||.
    """

    eps: float | None = None
    delta: float | None = None
    nu: float = 0.5
    nu_bar: float = 1.05
    eta: float = 1e-4

    def __check_init__(self):
        positive(eps=self.eps, delta=self.delta)

    def init(self, error, norm_g_x, value):
        return Asked(*first(error, norm_g_x, value, self.eps, self.delta))

    def wanted(self, asked, reached):
        return (1 - self.eta) * reached.norm

    def tighten(self, asked, reached, wanted, tries):
        excess = reached.omega / reached.norm if reached.norm > 0 else math.inf
        skipped = math.log(excess) / (2 * math.log(1 / self.nu)) if 1 < excess < math.inf else 1
        return scaled(asked, self.nu ** max(1, math.floor(skipped)))

    def harder(self, asked, floor, judged):
        return super().harder(asked, floor, judged) if floor else scaled(asked, self.nu)

    def accepted(self, asked):
        return scaled(asked, self.nu_bar)


def scaled(asked: Asked, factor: float) -> Asked:
    return Asked(asked.eps * factor, asked.delta * factor)


class Fixed(AbstractAccuracy):
    """eps and delta never change, whatever happens."""

    eps: float
    delta: float

    def __check_init__(self):
        for name, value in (("eps", self.eps), ("delta", self.delta)):
            if not number(name, value) > 0:
                raise ValueError(f"{name} must be positive, not {value!r}")

    def init(self, error, norm_g_x, value):
        return Asked(self.eps, self.delta)

    def wanted(self, asked, reached):
        return math.inf
