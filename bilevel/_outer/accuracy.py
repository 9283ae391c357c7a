"""Who decides eps and delta: fixed, scheduled (HOAG), adaptive (MAID).

A rule never computes an error; it is told what happened and answers with the accuracies to ask for next.
"""

import abc
import enum
import math
from typing import NamedTuple

import equinox as eqx


class Event(enum.Enum):
    CERTIFICATE_FAILED = "omega is too large for -z to be a descent direction"
    TIGHTEN = "the line search found no certified decrease at this accuracy"
    REJECTED = "a trial was rejected, the accuracy is not to blame"
    ACCEPTED = "a trial was accepted"


class Accuracy(NamedTuple):
    """What is asked for: eps >= ||x - xhat|| and delta >= ||H q - grad_x g||, in the units of x and grad_x g.

    `tolerance` is the relative tolerance of a schedule, eps / eps_scale; `accepted` counts accepted steps.
    """

    eps: float
    delta: float
    tolerance: float
    eps_scale: float
    delta_scale: float
    shrunk: float
    accepted: int


class AbstractAccuracy(eqx.Module):
    @abc.abstractmethod
    def init(self, error: float, norm_g_x: float, value: float) -> Accuracy:
        """The first accuracies, from the certified error of the starting x, and ||grad_x g|| and g there."""

    @abc.abstractmethod
    def certifies(self, norm: float, omega: float) -> bool:
        """Whether z is accurate enough to search along: ||z|| against omega."""

    @abc.abstractmethod
    def update(self, accuracy: Accuracy, event: Event, excess: float = 1.0) -> Accuracy:
        """The accuracies after an event; `excess` is omega / ||z|| where a certificate failed."""

    def trial(self, accuracy: Accuracy) -> Accuracy:
        """The accuracy at which a trial point is solved: the base's."""
        return accuracy


class Adaptive(AbstractAccuracy):
    """MAID's rule: shrink eps and delta by nu when the certificate or the line search fails, relax them by nu_bar on
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

    def init(self, error, norm_g_x, value):
        # a start that is solved already says nothing about eps: a value known to a thousandth will do
        start = max(error / 10, 1e-3 * abs(value) / norm_g_x if norm_g_x > 0 else 0.0)
        eps = (start or 1.0) if self.eps is None else self.eps
        delta = (norm_g_x / 10 or 1.0) if self.delta is None else self.delta
        return Accuracy(eps, delta, math.nan, 1.0, 1.0, 1.0, 0)

    def certifies(self, norm, omega):
        return omega <= (1 - self.eta) * norm

    def update(self, accuracy, event, excess=1.0):
        match event:
            case Event.CERTIFICATE_FAILED:
                skipped = math.log(excess) / (2 * math.log(1 / self.nu)) if 1 < excess < math.inf else 1
                factor = self.nu ** max(1, math.floor(skipped))
            case Event.TIGHTEN:
                factor = self.nu
            case Event.ACCEPTED:
                factor = self.nu_bar
            case Event.REJECTED:
                factor = 1.0
        return accuracy._replace(
            eps=accuracy.eps * factor,
            delta=accuracy.delta * factor,
            accepted=accuracy.accepted + (event is Event.ACCEPTED),
        )


class Fixed(AbstractAccuracy):
    """eps and delta never change, whatever happens."""

    eps: float
    delta: float

    def init(self, error, norm_g_x, value):
        return Accuracy(self.eps, self.delta, math.nan, 1.0, 1.0, 1.0, 0)

    def certifies(self, norm, omega):
        return True

    def update(self, accuracy, event, excess=1.0):
        return accuracy._replace(accepted=accuracy.accepted + (event is Event.ACCEPTED))


class Geometric(eqx.Module):
    """tolerance_k = tolerance_0 r^k."""

    ratio: float = 0.9

    def __call__(self, k: int) -> float:
        return self.ratio**k


class Polynomial(eqx.Module):
    """tolerance_k = tolerance_0 / (k + 1)^p: quadratic for p = 2, cubic for p = 3."""

    power: float = 2

    def __call__(self, k: int) -> float:
        return (k + 1) ** -self.power


class Scheduled(AbstractAccuracy):
    """HOAG's rule: tolerances that fall with the accepted steps whatever is seen, halved at a rejection.

        ||rho_k|| <= tolerance_k ||rho_0|| mu(theta_k) / mu(theta_0),   ||H q - grad_x g|| <= tolerance_k ||grad_x g||_0

    With log penalties mu = exp(min theta), which gives the published code's exp(min theta_k - min theta_0). Both sides
    divided by mu it is a schedule for eps in units of the starting error (Pedregosa 2016, arXiv 1602.02355).
    """

    schedule: Geometric | Polynomial
    tolerance: float = 0.1

    def _at(self, accuracy):
        tolerance = self.tolerance * self.schedule(accuracy.accepted) * accuracy.shrunk
        return accuracy._replace(
            tolerance=tolerance, eps=tolerance * accuracy.eps_scale, delta=tolerance * accuracy.delta_scale
        )

    def init(self, error, norm_g_x, value):
        return self._at(Accuracy(math.nan, math.nan, math.nan, error or 1.0, norm_g_x or 1.0, 1.0, 0))

    def certifies(self, norm, omega):
        return True

    def update(self, accuracy, event, excess=1.0):
        if event is Event.ACCEPTED:
            accuracy = accuracy._replace(accepted=accuracy.accepted + 1)
        elif event is Event.REJECTED:
            accuracy = accuracy._replace(shrunk=accuracy.shrunk / 2)
        return self._at(accuracy)

    def trial(self, accuracy):
        return self._at(accuracy._replace(accepted=accuracy.accepted + 1))
