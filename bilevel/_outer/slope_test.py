"""Acceptance by slope, both value intervals refined until they decide:

    upper(theta+) - lower(theta) <= lambda <z, theta+ - theta>       accept: f itself has decreased
    lower(theta+) - upper(theta) >  lambda <z, theta+ - theta>       shrink alpha

Both intervals are corrected by the base's adjoint q, |f - (g(x) - <q, rho>)| <= delta eps + (L_g + M_H) eps^2 / 2, so
they are of second order in eps at the base and nearly so close to it (the adjoint-weighted residual of goal-oriented
error estimation, Becker and Rannacher 2001, with its remainder bounded). A trial is solved only as accurately as the
expected decrease asks.
"""

import math
from typing import ClassVar, NamedTuple

from .._arguments import positive
from .search import AbstractSearch, Judgement, Verdict, allowance

TRIALS = 12  # after which the accuracy of z is to blame
FREE = 4  # trials after which the limit on theta+ may be what is in the way
FARTHER = 10  # times the last step's length: the longest first trial
CUT = 0.1  # of alpha, after a trial that could not be paid for; the parabola's alpha is never less


class Slope(NamedTuple):
    """`length` of the last step; `grow`, the first alpha to try along a direction that has a scale; `width`, a trial's
    interval over its eps; `trials` of this search; `free`: theta+ is not kept from where rounding ends."""

    alpha: float
    length: float
    grow: float
    width: float
    trials: int
    free: bool


class SlopeTest(AbstractSearch):
    """`step`: the first alpha, a move of about one for each hyperparameter where left out. `decrease`: lambda."""

    step: float | None = None
    decrease: float = 1e-4
    corrects: ClassVar[bool] = True

    def __check_init__(self):
        positive(step=self.step)

    def init(self, norm_g_x):
        return Slope(math.nan, math.nan, 1.0, norm_g_x, 0, False)

    def turned(self, memory, learnt):
        # no curvature seen: the step was too short for it, or f is concave along it
        return memory._replace(grow=1.0 if learnt else 2 * memory.grow)

    def first(self, memory, heading, length, norm, size):
        if not length > 0:
            alpha = 0.0
        elif heading.scaled:
            far = math.inf if math.isnan(memory.length) else FARTHER * memory.length / length
            alpha = min(memory.grow, far)
        elif math.isnan(memory.length):
            alpha = math.sqrt(size) / length if self.step is None else self.step
        else:
            alpha = 2 * memory.length / length
        return memory._replace(alpha=alpha, trials=0, free=False)

    def limit(self, memory, reached):
        """Where rounding makes omega a tenth of ||z||, to first order; that may lie below the base's."""
        if memory.free:
            return math.inf
        lost = reached.floor * reached.per.eps
        return math.log(reached.condition) + (math.log(reached.norm / 10 / lost) if lost > 0 else math.inf)

    def allowance(self, work):
        return allowance(work)

    def eps(self, memory, slope, asked):
        # a quarter of half the slope, which a step to a parabola's minimum gains
        return slope / 8 / memory.width if memory.width > 0 else math.inf

    def worthwhile(self, length, slope):
        return length > 0 and slope > 0

    def stuck(self, memory):
        if memory.free:
            return Judgement(Verdict.TIGHTEN, memory)
        return self.again(memory._replace(free=True))

    def judge(self, memory, base, trial, slope, length):
        if trial is None:
            return self.again(memory._replace(alpha=CUT * memory.alpha))
        if trial.eps > 0:
            memory = memory._replace(width=trial.error / trial.eps)
        change, target = trial.value - base.value, -self.decrease * slope
        if change + trial.error + base.error <= target:
            return Judgement(Verdict.ACCEPT, memory._replace(length=length))
        if change - trial.error - base.error > target:
            # the minimiser of the parabola through both values and the slope
            parabola = slope / (2 * (change + slope)) if change + slope > 0 else 0.5
            return self.again(memory._replace(alpha=memory.alpha * min(max(parabola, CUT), 0.5)))
        return self.undecided(memory, base, trial, abs(change - target))

    def undecided(self, memory, base, trial, gap):
        """Refine the wider interval until it is a quarter of the gap, a thousandfold at most at a time."""

        def finer(interval):
            return interval.eps * (min(0.5, max(1e-3, gap / 4 / interval.error)) if interval.error > 0 else 0.5)

        if base.error > max(trial.error, gap / 4) and not base.floor and base.eps > 0:
            return Judgement(Verdict.REFINE_BASE, memory, finer(base))
        if trial.floor or trial.eps == 0:
            return Judgement(Verdict.TIGHTEN, memory)
        return Judgement(Verdict.REFINE_TRIAL, memory, finer(trial))

    def again(self, memory):
        """The next trial, if there are any left."""
        memory = memory._replace(trials=memory.trials + 1)
        memory = memory._replace(free=memory.free or memory.trials >= FREE)
        return Judgement(Verdict.SHRINK if memory.trials < TRIALS else Verdict.TIGHTEN, memory)
