"""Who decides the step: a constant, HOAG's heuristic, certified backtracking on value intervals.

A rule names alpha, is shown the intervals of base and trial, and answers what is to be done. Another search is a file
of its own: `slope_test`.
"""

import abc
import enum
import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx

from .._arguments import positive
from .direction import Heading
from .reached import Interval, Reached


class Verdict(enum.Enum):
    ACCEPT = enum.auto()
    SHRINK = enum.auto()  # the step is to blame: try the next alpha
    REFINE_TRIAL = enum.auto()  # judge again, the trial's x solved to `eps`
    REFINE_BASE = enum.auto()  # judge again, the base's x solved to `eps`
    TIGHTEN = enum.auto()  # the accuracy of z is to blame
    FLOOR = enum.auto()  # rounding hides what would decide


class Judgement(NamedTuple):
    verdict: Verdict
    memory: Any
    eps: float = math.nan


class AbstractSearch(eqx.Module):
    """Whatever it remembers has `alpha`, the next one to try. `corrects`: the intervals that it is shown are corrected
    by the base's adjoint, and of second order in eps."""

    corrects: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self, norm_g_x: float) -> Any:
        """The memory before the first step; norm_g_x is ||grad_x g|| there."""

    def turned(self, memory: Any, learnt: bool) -> Any:
        """At a new theta, `learnt` being what the direction's `Heading` says."""
        return memory

    @abc.abstractmethod
    def first(self, memory: Any, heading: Heading, length: float, norm: float, size: int) -> Any:
        """The memory with the first alpha along a new d. `length`: ||d||, without entries that the box holds; `norm`:
        ||P(theta - z) - theta||; `size`: of theta. Asked again at the same theta after TIGHTEN."""

    def limit(self, memory: Any, reached: Reached | None) -> float | None:
        """The largest log(L/mu) at which a trial could still be certified; None: do not ask."""
        return None

    def allowance(self, work: int) -> float:
        """What a trial's lower level may cost, `work` being what the base's did; one cut off is judged as `None`."""
        return math.inf

    def eps(self, memory: Any, slope: float, asked: Any) -> float:
        """To what a trial is solved first, `asked` by the accuracy rule, `-<z, theta+ - theta>` = slope."""
        return asked.eps

    def worthwhile(self, length: float, slope: float) -> bool:
        """Whether a trial at this distance is worth to be solved; else `stuck` says what to do."""
        return length > 0

    @abc.abstractmethod
    def judge(self, memory: Any, base: Interval, trial: Interval | None, slope: float, length: float) -> Judgement:
        """Judge the trial at distance `length`; `None` stands for one whose solve was cut off or not finite."""

    def stuck(self, memory: Any) -> Judgement:
        """What to do about a trial that is not worth it."""
        return Judgement(Verdict.FLOOR, memory)


class Step(NamedTuple):
    """alpha, `first` where this search began, `failures` of `allowed` counted trials."""

    alpha: float
    first: float
    failures: int
    allowed: int


class AbstractStep(AbstractSearch):
    """A search whose alpha goes on from step to step: the one given, or at first sqrt(d) / ||z||, a move of about 1 for
    each hyperparameter."""

    step: eqx.AbstractVar[float | None]

    def __check_init__(self):
        positive(step=self.step)

    def init(self, norm_g_x):
        return Step(math.nan, math.nan, 0, 0)

    def first(self, memory, heading, length, norm, size):
        if not math.isnan(memory.alpha):
            return memory
        alpha = self.step if self.step is not None else math.sqrt(size) / norm if norm > 0 else 1.0
        return memory._replace(alpha=alpha, first=alpha)


class Constant(AbstractStep):
    """Every finite trial is accepted; one whose solve failed asks for a tenth of the step, for good."""

    step: float | None = None

    def judge(self, memory, base, trial, slope, length):
        if trial is None:
            return Judgement(Verdict.SHRINK, memory._replace(alpha=memory.alpha / 10))
        return Judgement(Verdict.ACCEPT, memory)


class Always(AbstractSearch):
    """theta + d is taken, whatever comes of it: for a d with its own length. An optimiser's may be zero at first."""

    def init(self, norm_g_x):
        return Step(1.0, 1.0, 0, 0)

    def first(self, memory, heading, length, norm, size):
        return memory

    def worthwhile(self, length, slope):
        return length >= 0

    def judge(self, memory, base, trial, slope, length):
        return Judgement(Verdict.FLOOR if trial is None else Verdict.ACCEPT, memory)


class HOAGHeuristic(AbstractStep):
    """Step 1/Lam with c = ||d|| the length of the step, tolerances t_k of the schedule:

        g_k <= g_{k-1} + C t_k + t_{k-1} (C + 1) c - Lam c^2   ->  accept, Lam *= 0.95
        g_k >= 1.2 g_{k-1}                                     ->  reject, Lam *= 2 (and the tolerance halves)
        otherwise                                              ->  accept

    As in the published code of Pedregosa 2016 (arXiv 1602.02355), but for a step of its that is applied twice.
    """

    step: float | None = None
    C: float = 0.25

    def judge(self, memory, base, trial, slope, length):
        shrink = Judgement(Verdict.SHRINK, memory._replace(alpha=memory.alpha / 2))
        if trial is None:
            return shrink
        C, Lam, t, t_base = self.C, 1 / memory.alpha, trial.asked.tolerance, base.asked.tolerance
        if trial.value <= base.value + C * t + t_base * (C + 1) * length - Lam * length**2:
            return Judgement(Verdict.ACCEPT, memory._replace(alpha=memory.alpha / 0.95))
        return shrink if trial.value >= 1.2 * base.value else Judgement(Verdict.ACCEPT, memory)


class CertifiedBacktracking(AbstractStep):
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
        return allowance(work)

    def init(self, norm_g_x):
        return Step(math.nan, math.nan, 0, self.max_backtracks)

    def judge(self, memory, base, trial, slope, length):
        alpha, first, failures, allowed = memory
        if trial is None:
            return Judgement(Verdict.SHRINK, memory._replace(alpha=0.1 * alpha, first=0.1 * alpha))
        if trial.high - base.low <= -self.decrease * length**2 / alpha:
            alpha = self.rho_bar * alpha
            return Judgement(Verdict.ACCEPT, Step(alpha, alpha, 0, self.max_backtracks))
        if failures + 1 < allowed:
            return Judgement(Verdict.SHRINK, memory._replace(alpha=self.rho * alpha, failures=failures + 1))
        return Judgement(Verdict.TIGHTEN, Step(first, first, 0, allowed + 1))


def allowance(work: int) -> float:
    """Twice what the base cost. Rejecting is always safe, and a step far too long would cost a thousand good ones; but
    250 is what a lower level of condition 1e3 takes an accelerated method from anywhere, and a good long step may need
    as much."""
    return max(250, 2 * work)
