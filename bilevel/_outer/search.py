"""Who decides the step: a constant, HOAG's heuristic, certified backtracking on value intervals.

A rule is shown the base and the trial and answers accept, shrink (the step is to blame) or tighten (the accuracy is).
"""

import abc
import enum
import math
from typing import NamedTuple

import equinox as eqx

from .accuracy import Accuracy


class Verdict(enum.Enum):
    ACCEPT = enum.auto()
    SHRINK = enum.auto()
    TIGHTEN = enum.auto()


class Interval(NamedTuple):
    """low <= f(theta) <= high around the computed value; `accuracy` is what was asked for."""

    low: float
    value: float
    high: float
    accuracy: Accuracy


class Search(NamedTuple):
    """`step` is the next alpha to try, `first` where this search began, `failures` of `allowed` counted trials."""

    step: float
    first: float
    failures: int
    allowed: int


class AbstractLineSearch(eqx.Module):
    step: eqx.AbstractVar[float | None]

    def init(self, norm: float, size: int) -> Search:
        """The first step: the one given, or sqrt(d) / ||z||, a move of about 1 for each (1 if z = 0)."""
        step = self.step if self.step is not None else math.sqrt(size) / norm if norm > 0 else 1.0
        return Search(step, step, 0, 0)

    @abc.abstractmethod
    def allowance(self, work: int) -> float:
        """What a trial's lower level may cost, `work` being what the base's did; one cut off is judged as `None`."""

    @abc.abstractmethod
    def judge(self, search: Search, base: Interval, trial: Interval | None, length: float) -> tuple[Verdict, Search]:
        """Judge the trial at distance `length`; `None` stands for one whose solve was capped or not finite."""


class Constant(AbstractLineSearch):
    """Every finite trial is accepted; one whose solve failed asks for a tenth of the step, for good."""

    step: float | None = None

    def allowance(self, work):
        return math.inf

    def judge(self, search, base, trial, length):
        if trial is None:
            return Verdict.SHRINK, search._replace(step=search.step / 10)
        return Verdict.ACCEPT, search


class HOAGHeuristic(AbstractLineSearch):
    """Step 1/Lam with c = ||d|| the length of the step, tolerances t_k of the schedule:

        g_k <= g_{k-1} + C t_k + t_{k-1} (C + 1) c - Lam c^2   ->  accept, Lam *= 0.95
        g_k >= 1.2 g_{k-1}                                     ->  reject, Lam *= 2 (and the tolerance halves)
        otherwise                                              ->  accept

    As in the published code of Pedregosa 2016 (arXiv 1602.02355), but for a step of its that is applied twice.
    """

    step: float | None = None
    C: float = 0.25

    def allowance(self, work):
        return math.inf

    def judge(self, search, base, trial, length):
        if trial is None:
            return Verdict.SHRINK, search._replace(step=search.step / 2)
        C, Lam, t, t_base = self.C, 1 / search.step, trial.accuracy.tolerance, base.accuracy.tolerance
        if trial.value <= base.value + C * t + t_base * (C + 1) * length - Lam * length**2:
            return Verdict.ACCEPT, search._replace(step=search.step / 0.95)
        if trial.value >= 1.2 * base.value:
            return Verdict.SHRINK, search._replace(step=search.step / 2)
        return Verdict.ACCEPT, search


class CertifiedBacktracking(AbstractLineSearch):
    """Accept alpha if upper(trial) - lower(base) <= -lambda alpha ||z||^2, the ends of the two value intervals: then f
    itself has decreased. Else alpha *= rho; after max_backtracks trials ask for accuracy, start again from the first
    step and allow one trial more. On acceptance alpha *= rho_bar (arXiv 2308.10098, algorithm 3).

    A trial whose solve was capped or not finite is rejected unjudged: alpha *= 0.1, not counted.
    With a box ||z|| alpha is the length of the step taken: the right-hand side is -lambda length^2 / alpha.
    """

    step: float | None = None
    rho: float = 0.5
    rho_bar: float = 10 / 9
    decrease: float = 1e-8
    max_backtracks: int = 10

    def allowance(self, work):
        # Rejecting is always safe, and a step far too long would cost a thousand good ones; but 250 is what a lower
        # level of condition 1e3 takes an accelerated method from anywhere, and a good long step may need as much.
        return max(250, 2 * work)

    def init(self, norm, size):
        return super().init(norm, size)._replace(allowed=self.max_backtracks)

    def judge(self, search, base, trial, length):
        step, first, failures, allowed = search
        if trial is None:
            return Verdict.SHRINK, search._replace(step=0.1 * step, first=0.1 * step)
        if trial.high - base.low <= -self.decrease * length**2 / step:
            step = self.rho_bar * step
            return Verdict.ACCEPT, Search(step, step, 0, self.max_backtracks)
        if failures + 1 < allowed:
            return Verdict.SHRINK, search._replace(step=self.rho * step, failures=failures + 1)
        return Verdict.TIGHTEN, Search(first, first, 0, allowed + 1)
