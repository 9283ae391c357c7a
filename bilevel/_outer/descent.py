"""One outer step of an inexact descent with certificates, on one page.

    certify:   solve the lower level to eps and the adjoint to delta; z, omega. Until z is accurate enough: tighten.
    search:    theta+ = P(theta - alpha z); accept, shrink alpha, or tighten and certify again.
    relax:     on acceptance alpha, eps and delta grow.

Salehi, Mukherjee, Roberts, Ehrhardt, arXiv 2308.10098, algorithms 2 and 3 (MAID). This runs on the host, in Python
floats; the three jitted programs behind `Meter` do the work.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import optax

from .._certificate.value import Point
from .._linalg.vectors import Vector
from .._lower.nesterov import Nesterov
from .._lower.solver import AbstractLowerSolver
from .._program import program
from .._results import RESULTS
from .accuracy import AbstractAccuracy, Accuracy, Event
from .method import ROUNDED, AbstractMethod, Info, State
from .predict import AbstractPredictor, Previous, observe
from .programs import Meter, Stop
from .refine import default_tolerance, first_tolerance, refine
from .search import AbstractLineSearch, Interval, Search, Verdict


class Memory(NamedTuple):
    """The adjoint q, what the rules and the predictor remember, and `work`, the cost of solving at theta."""

    q: Vector
    accuracy: Accuracy
    search: Search
    work: int
    guesses: Any


class Method(AbstractMethod):
    """Descent along -z: who decides the accuracy and the step, who solves the lower level, from whose guess.

    `maid()`, `hoag()` and `fixed_accuracy()` make the usual ones; compose others from parts.
    """

    accuracy: AbstractAccuracy
    linesearch: AbstractLineSearch
    solver: AbstractLowerSolver = Nesterov()
    predictor: AbstractPredictor = Previous()

    def init(self, problem, theta0, x0, max_cost=math.inf):
        meter = Meter(problem, self.solver, max_cost)
        point = meter.solve(theta0, x0, math.inf)
        accuracy = self.accuracy.init(float(point.lower.error), float(point.norm_g_x), float(point.value))
        search, guesses = Search(math.nan, math.nan, 0, 0), self.predictor.init(theta0, x0)
        memory = Memory(optax.tree.zeros_like(x0), accuracy, search, meter.counts.cost, guesses)
        known = (meter.counts, meter.seconds)
        return State(theta0, point, memory, math.nan, 0, meter.counts, meter.seconds, meter.compile_seconds, known)

    def step(self, problem, state, *, tol=None, box=None, max_cost=math.inf, last=False):
        memory = state.memory
        meter = Meter(problem, self.solver, max_cost, state)
        gradient, norm, omega, delta, certificate = None, math.nan, math.inf, math.inf, "none"
        judged, fitted = True, False
        lower_floor = adjoint_floor = sharpened = False
        accepted, taken, result, known = None, math.nan, None, state.known
        try:
            while accepted is None:
                # certify: x to eps, q to delta, then z and omega
                accuracy = memory.accuracy
                if float(state.point.lower.error) > ROUNDED * accuracy.eps and not lower_floor:
                    spent = meter.counts.cost
                    point = meter.solve(state.theta, state.point.lower.x, accuracy.eps)
                    if float(point.lower.error) > ROUNDED * accuracy.eps:
                        if point.lower.result != RESULTS.accuracy_floor:
                            raise Stop(point.lower.result)
                        lower_floor = True
                    state = dataclasses.replace(state, point=point)
                    memory = memory._replace(work=memory.work + meter.counts.cost - spent)
                    gradient = None
                if gradient is None or (delta > accuracy.delta and not adjoint_floor):
                    point, gradient = meter.differentiate(state.theta, state.point, memory.q, accuracy.delta)
                    state = dataclasses.replace(state, point=point)
                    adjoint_floor = bool(gradient.result == RESULTS.accuracy_floor)
                    omega, delta, certificate = float(gradient.error), float(gradient.delta), gradient.certificate
                    norm = meter.stationarity(state.theta, gradient, box)
                    memory = memory._replace(q=gradient.q)
                    known = (meter.counts, meter.seconds)
                if math.isnan(state.tol):
                    whole = float(gradient.norm)
                    if tol is not None:
                        state = dataclasses.replace(state, tol=tol)
                    elif omega <= whole / 2:
                        state = dataclasses.replace(state, tol=default_tolerance(whole, omega, box))
                if norm + omega <= (state.tol if tol is None else tol) or norm + omega == 0:
                    raise Stop(RESULTS.converged)
                if not self.accuracy.certifies(norm, omega):
                    # an error of exactly zero (x = 0, q = 0) is below every floor: nothing is left to ask for either
                    if (lower_floor or float(state.point.lower.error) == 0) and (adjoint_floor or delta == 0):
                        sharper = None if sharpened else meter.sharpen(state.theta, state.point)
                        if sharper is None:
                            raise Stop(RESULTS.accuracy_floor)
                        state, gradient, sharpened = dataclasses.replace(state, point=sharper), None, True
                        continue
                    excess = omega / norm if norm > 0 else math.inf
                    accuracy = self.accuracy.update(accuracy, Event.CERTIFICATE_FAILED, excess)
                    memory = memory._replace(accuracy=accuracy)
                    continue
                if math.isnan(state.tol):
                    first = first_tolerance(meter, state.theta, state.point, gradient, box)
                    state = dataclasses.replace(state, tol=first)
                if math.isnan(memory.search.step):
                    memory = memory._replace(search=self.linesearch.init(norm, optax.tree.size(state.theta)))
                if last:
                    raise Stop(RESULTS.max_steps_reached)

                # search: one trial, judged on intervals
                trial, length = meter.move(state.theta, gradient.gradient, -memory.search.step, box)
                if not length > 0:  # z is zero, or the step is lost in the rounding of theta, or every trial failed
                    if norm == 0:  # by this accuracy, or by all that there is?
                        _, best = refine(meter, state.theta, state.point, gradient, lambda z: float(z.norm) / 2)
                        judged = float(best.norm) < float(best.error)
                    raise Stop(RESULTS.accuracy_floor if judged else RESULTS.no_decrease)
                if not fitted:
                    memory, fitted = memory._replace(guesses=self._fit(meter, state, memory.guesses)), True
                wanted = self.accuracy.trial(accuracy)
                cap = self.linesearch.allowance(memory.work)
                x = meter.call(guess, self.predictor, memory.guesses, state.theta, state.point.lower.x, trial)
                spent = meter.counts.cost
                point = meter.solve(trial, x, wanted.eps, cap)
                base, interval = _interval(state.point, accuracy), _interval(point, wanted)
                judged = interval is not None
                verdict, search = self.linesearch.judge(memory.search, base, interval, length)
                if verdict is Verdict.ACCEPT:
                    accepted, taken, event = (
                        (trial, point, meter.counts.cost - spent),
                        memory.search.step,
                        Event.ACCEPTED,
                    )
                else:
                    event = Event.TIGHTEN if verdict is Verdict.TIGHTEN else Event.REJECTED
                    if judged:
                        guesses = meter.call(observe, self.predictor, memory.guesses, trial, point.lower.x)
                        memory = memory._replace(guesses=guesses)
                memory = memory._replace(search=search, accuracy=self.accuracy.update(accuracy, event))
                if event is Event.TIGHTEN:
                    exact = float(state.point.lower.error) == 0  # then only the trial's accuracy is left to improve
                    if lower_floor or (exact and point.lower.result == RESULTS.accuracy_floor):
                        raise Stop(RESULTS.accuracy_floor)
                    if memory.accuracy == accuracy:
                        raise Stop(RESULTS.no_decrease)
        except Stop as stop:
            result = stop.result

        value, value_error, eps = (
            float(v) for v in (state.point.value, state.point.value_error, state.point.lower.error)
        )
        info = Info(
            state.theta, state.steps, value, value_error, norm, omega, eps, delta, taken, *known, certificate, result
        )  # fmt: skip
        state = dataclasses.replace(
            state, counts=meter.counts, seconds=meter.seconds, compile_seconds=meter.compile_seconds
        )
        if accepted is not None:
            theta, point, work = accepted
            known, memory = (state.counts, state.seconds), memory._replace(work=work)
            state = dataclasses.replace(state, theta=theta, point=point, known=known, steps=state.steps + 1)
        return dataclasses.replace(state, memory=memory), info

    def _fit(self, meter: Meter, state: State, guesses: Any) -> Any:
        """What the predictor remembers, fitted around a new base; or Stop."""
        x, predictor = state.point.lower.x, self.predictor
        if meter.left < predictor.cost:
            raise Stop(RESULTS.max_cost_reached)
        guesses = meter.call(observe, predictor, guesses, state.theta, x)
        if predictor.cost > 0:
            guesses = meter.call(fit, predictor, guesses, meter.problem, state.theta, x)
            gradients = meter.counts.lower_gradients + predictor.cost
            meter.counts = meter.counts._replace(lower_gradients=gradients)
        return guesses


@program
def fit(predictor, memory, problem, theta, x):
    return predictor.fit(memory, problem, theta, x)


@program
def guess(predictor, memory, theta, x, trial):
    return predictor.guess(memory, theta, x, trial)


def _interval(point: Point, accuracy: Accuracy) -> Interval | None:
    """The value interval of a solved point; None if its solve was capped or broke."""
    value, low, high = float(point.value), float(point.value - point.below), float(point.value + point.value_error)
    unusable = not math.isfinite(high - low)
    if unusable or (float(point.lower.error) > ROUNDED * accuracy.eps and point.lower.result != RESULTS.accuracy_floor):
        return None
    return Interval(low, value, high, accuracy)
