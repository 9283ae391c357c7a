"""Acceptance by values alone, with a tolerance t on them; both intervals are refined until they decide:

    upper(theta+) - lower(theta) <= -t/2                                        accept: f has decreased by t/2
    lower(theta+) - upper(theta) >  -t/2,   or both intervals within t/8        shrink alpha

What is rejected lowers f by less than t, and a run has at most 2 (f(theta0) - min f)/t steps, whatever z is. A search
ends where z promises t/2 or less.
"""

import math
from typing import NamedTuple

from .._arguments import positive
from .search import AbstractSearch, Judgement, Verdict, allowance
from .slope_test import CUT, FARTHER, TRIALS


class Trials(NamedTuple):
    """`length` of the last step; `grow`, the first alpha along a direction that has a scale; `width`, a trial's
    interval over its eps; `least`, t/2 once it is known; `trials` of this search."""

    alpha: float
    length: float
    grow: float
    width: float
    least: float
    trials: int


class ValueTest(AbstractSearch):
    """`step`: the length of the first step, the root of theta's size where left out."""

    step: float | None = None

    def __check_init__(self):
        positive(step=self.step)

    def init(self, norm_g_x):
        return Trials(math.nan, math.nan, 1.0, norm_g_x, 0.0, 0)

    def turned(self, memory, learnt):
        # no curvature seen: the step was too short for it, or f is concave along it
        return memory._replace(grow=1.0 if learnt else 2 * memory.grow)

    def first(self, memory, heading, length, norm, size):
        if not length > 0:
            alpha = 0.0
        elif math.isnan(memory.length):
            alpha = (math.sqrt(size) if self.step is None else self.step) / length
        elif heading.scaled:
            alpha = min(memory.grow, FARTHER * memory.length / length)
        else:
            alpha = 2 * memory.length / length
        return memory._replace(alpha=alpha, trials=0)

    def allowance(self, work):
        # where h has a kink, a tenth of the error may take ten times the gradients
        return 10 * allowance(work)

    def eps(self, memory, slope, asked):
        return max(slope, memory.least) / 8 / memory.width if memory.width > 0 else math.inf

    def worthwhile(self, length, slope):
        return length > 0 and slope > 0

    def stuck(self, memory):
        return Judgement(Verdict.TIGHTEN, memory)

    def judge(self, memory, base, trial, slope, length):
        least = base.asked.tolerance / 2
        memory = memory._replace(least=least)
        if trial is None:
            return self.again(memory, CUT, slope)
        if trial.eps > 0:
            memory = memory._replace(width=trial.error / trial.eps)
        if trial.high - base.low <= -least:
            return Judgement(Verdict.ACCEPT, memory._replace(length=length))
        change = trial.value - base.value
        if trial.low - base.high > -least or max(trial.error, base.error) <= least / 4:
            # the minimiser of the parabola through both values and the slope
            parabola = slope / (2 * (change + slope)) if change + slope > 0 else 0.5
            return self.again(memory, min(max(parabola, CUT), 0.5), slope)
        return self.undecided(memory, base, trial, max(abs(change + least), least) / 4)

    def undecided(self, memory, base, trial, goal):
        """Refine the wider interval that rounding lets be refined to the goal, a thousandfold at most at a time."""
        wider = sorted((base, trial), key=lambda interval: -interval.error)
        for interval in wider:
            if not interval.floor and interval.error > goal:
                eps = interval.eps * max(1e-3, 0.9 * goal / interval.error)
                return Judgement(Verdict.REFINE_BASE if interval is base else Verdict.REFINE_TRIAL, memory, eps)
        return Judgement(Verdict.FLOOR, memory)

    def again(self, memory, factor, slope):
        """The next trial, if z promises enough of it and there are any left."""
        if memory.trials + 1 >= TRIALS or factor * slope <= memory.least:
            return Judgement(Verdict.TIGHTEN, memory)
        return Judgement(Verdict.SHRINK, memory._replace(alpha=factor * memory.alpha, trials=memory.trials + 1))
