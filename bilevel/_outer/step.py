"""One outer step of an inexact descent with certificates, on one page.

    certify:   x to eps and q to delta, until z is accurate enough: omega <= what the accuracy rule wants.
    direct:    d from z.
    search:    theta+ = P(theta + alpha d); accept, shrink alpha, refine what is judged, or tighten eps and delta.

MAID (Salehi, Mukherjee, Roberts, Ehrhardt, arXiv 2308.10098, algorithms 2 and 3), HOAG, certified quasi-Newton descent
and self-tuning are this loop with other parts. It runs on the host, in Python floats; jitted programs do the work.
"""

import dataclasses
import math

import optax

from .._arguments import given
from .._certificate.value import Point
from .._linalg.sharding import zeros
from .._linalg.vectors import Vector
from .._lower.choose import choose
from .._lower.solver import AbstractLowerSolver
from .._nonsmooth import AbstractNonsmoothProblem
from .._results import RESULTS, told
from .accuracy import AbstractAccuracy
from .base import Base, Trial, interval
from .chunks import meter
from .direction import AbstractDirection, Steepest
from .gradient import AbstractGradient, Adjoint
from .method import AbstractMethod, Memory, State
from .predict import AbstractPredictor, Previous
from .programs import Stop
from .search import AbstractSearch, Verdict


class Method(AbstractMethod):
    """Who decides the accuracy, the direction and the step; who solves the lower level, from whose guess; where z comes
    from. `maid()`, `hoag()`, `fixed_accuracy()`, `quasi_newton()` and `self_tuning()` are such compositions. Without
    a solver one is chosen for the problem, see `choose`."""

    accuracy: AbstractAccuracy
    search: AbstractSearch
    direction: AbstractDirection = Steepest()
    solver: AbstractLowerSolver | None = None
    predictor: AbstractPredictor = Previous()
    gradient: AbstractGradient = Adjoint()

    def __check_init__(self):
        for field in dataclasses.fields(self):
            part = getattr(self, field.name)
            if not isinstance(part, field.type):
                wanted = getattr(field.type, "__name__", "AbstractLowerSolver")
                raise TypeError(f"{field.name} must be an {wanted}, not {given(part)}")

    def settle(self, problem, theta0, x0):
        self.gradient.suits(problem, theta0, x0)
        if self.solver is not None or isinstance(problem, AbstractNonsmoothProblem):
            return self
        return dataclasses.replace(self, solver=choose(problem, theta0, x0))

    def init(self, problem, theta0, x0, max_cost=math.inf):
        spent = meter(problem, self.solver, max_cost)
        point = spent.solve(theta0, x0, math.inf)
        error, norm_g_x, value = float(point.lower.error), float(point.norm_g_x), float(point.value)
        memory = Memory(
            q=zeros(x0),
            asked=self.accuracy.init(error, norm_g_x, value),
            direction=self.direction.init(theta0),
            search=self.search.init(norm_g_x),
            gradient=self.gradient.init(theta0, x0),
            guesses=self.predictor.init(theta0, x0),
            work=spent.counts.cost,
        )
        return State(theta0, point, memory, math.nan, 0, *spent.read(), spent.compile_seconds, spent.read())

    def step(self, problem, state, *, tol=None, box=None, max_cost=math.inf, last=False):
        corrects = self.search.corrects and self.gradient.adjoint
        base = Base(meter(problem, self.solver, max_cost, state), state, tol, box, corrects)
        accepted, alpha, result = None, math.nan, None
        try:
            while accepted is None:
                self.gradient.certify(base, self)
                if last:
                    raise Stop(RESULTS.max_steps_reached)
                accepted, alpha = self.descend(base)
        except Stop as stop:
            result = stop.result
            if told(result, RESULTS.accuracy_floor) and base.kept < math.inf:
                # within the tolerance by the model, and rounding hides whatever it does not know of
                result, base.decrease = RESULTS.converged, base.kept
        return base.end(accepted, alpha, result)

    def descend(self, base: Base) -> tuple[tuple[Vector, Point] | None, float]:
        """theta+ with its point, and alpha; or None where z is wanted more accurately first."""
        d, heading, length = base.turn(self.direction, self.search)
        theta, x, reached = base.theta, base.point.lower.x, base.reached
        size = optax.tree.size(theta)
        base.remember(search=self.search.first(base.memory.search, heading, length, base.norm, size))
        base.observe(self.predictor, theta, x)
        point, cost = base.point, 0
        while True:
            alpha, limit = base.memory.search.alpha, self.search.limit(base.memory.search, reached)
            trial = base.propose(self.predictor, x, d, alpha, limit)
            moved = self.search.worthwhile(trial.length, trial.slope)
            if moved:
                verdict, point, cost = self.judge(base, trial)
            else:
                verdict = base.follow(self.search.stuck(base.memory.search))
            match verdict:
                case Verdict.ACCEPT:
                    asked = self.accuracy.accepted(base.memory.asked)
                    base.remember(asked=asked, work=cost, within=base.modelled)
                    return (trial.theta, point), alpha
                case Verdict.SHRINK:
                    if moved and base.judged:
                        base.observe(self.predictor, trial.theta, point.lower.x)
                    asked = self.accuracy.rejected(base.memory.asked)
                    if asked != base.memory.asked:
                        base.remember(asked=asked)
                        return None, math.nan
                case Verdict.TIGHTEN:
                    floor = base.x_floor or (base.eps == 0 and told(point.lower.result, RESULTS.accuracy_floor))
                    base.remember(asked=self.accuracy.harder(base.memory.asked, floor, base.judged))
                    base.forget(self.direction)
                    return None, math.nan
                case Verdict.FLOOR:
                    raise Stop(base.stuck())

    def judge(self, base: Base, trial: Trial) -> tuple[Verdict, Point, int]:
        """The verdict on a trial, its point and what that cost: trial and base solved on until accuracy is not what the
        verdict lacks."""
        q = base.memory.q if base.corrects else None
        wanted, cap = self.accuracy.trial(base.memory.asked), self.search.allowance(base.memory.work)
        eps = self.search.eps(base.memory.search, trial.slope, wanted)
        point, cost = self.solve(base, trial.theta, trial.x, eps, cap, q)
        while True:
            seen = interval(point, eps, wanted)
            base.judged = seen is not None
            judgement = self.search.judge(base.memory.search, base.interval(), seen, trial.slope, trial.length)
            match base.follow(judgement):
                case Verdict.REFINE_BASE:
                    base.solve(judgement.eps, q)
                case Verdict.REFINE_TRIAL:
                    eps = judgement.eps
                    point, more = self.solve(base, trial.theta, point.lower.x, eps, cap - cost, q)
                    cost += more
                case verdict:
                    return verdict, point, cost

    def solve(
        self, base: Base, theta: Vector, x: Vector, eps: float, cap: float, q: Vector | None
    ) -> tuple[Point, int]:
        """A trial's lower level from the guess x, and what that alone cost."""
        begun = base.meter.counts.cost
        point = self.gradient.solve(base, theta, x, eps, cap, q)
        return point, base.meter.counts.cost - begun
