"""One outer step of an inexact descent with certificates, on one page.

    certify:   solve the lower level to eps and the adjoint to delta; z, omega. Until z is accurate enough: tighten.
    search:    theta+ = P(theta - alpha z); accept, shrink alpha, or tighten and certify again.
    relax:     on acceptance alpha, eps and delta grow.

Salehi, Mukherjee, Roberts, Ehrhardt, arXiv 2308.10098, algorithms 2 and 3 (MAID). This runs on the host, in Python
floats; the three jitted programs behind `Meter` do the work.
"""

import dataclasses
import math
from typing import NamedTuple

import equinox as eqx
import optax

from .accuracy import Accuracy, Event
from .direction import Box, SteepestDescent
from .hypergradient import Point
from .linesearch import Interval, Search, Verdict
from .meter import Counts, Meter, Stop
from .methods import Method
from .problem import AbstractProblem, Vector
from .results import RESULTS

DEFAULT_TOLERANCE = 1e-3  # of the first ||z|| + omega
ROUNDED = 1 + 1e-6  # eps is rounded to the dtype on its way into a solve


class State(eqx.Module):
    """What the next step needs: theta with its solved lower level `point` and adjoint q, what the rules remember, and
    the meter's readings; those in `known` are from when theta was accepted. `work` is the cost of solving at theta."""

    theta: Vector
    point: Point
    q: Vector
    accuracy: Accuracy
    search: Search
    tol: float
    steps: int
    work: int
    counts: Counts
    seconds: float
    compile_seconds: float
    known: tuple[Counts, float]


class Info(NamedTuple):
    """What a person needs: theta_k, its numbers, and how step k ended. `result` is None while the run goes on.

    `eps`, `delta`: the accuracies reached; `step`: the alpha accepted (nan if none); `counts`, `seconds`: the meter
    when these numbers became known; `certificate`: "proven", "probable", "estimated" or, with no gradient, "none".
    """

    theta: Vector
    steps: int
    value: float
    value_error: float
    gradient_norm: float
    gradient_error: float
    eps: float
    delta: float
    step: float
    counts: Counts
    seconds: float
    certificate: str
    result: RESULTS | None


def init(method: Method, problem: AbstractProblem, theta0: Vector, x0: Vector, max_cost: float = math.inf) -> State:
    """The state before the first step: x0 with its certified error, and the first accuracies."""
    meter = Meter(problem, method.solver, Counts(), 0.0, 0.0, max_cost)
    point = meter.solve(theta0, x0, math.inf)
    accuracy = method.accuracy.init(float(point.lower.error), float(point.norm_g_x), float(point.value))
    return State(
        theta0, point, optax.tree.zeros_like(x0), accuracy, Search(math.nan, math.nan, 0, 0), math.nan, 0,
        meter.counts.cost, meter.counts, meter.seconds, meter.compile_seconds, (meter.counts, meter.seconds),
    )  # fmt: skip


def step(
    method: Method,
    problem: AbstractProblem,
    state: State,
    *,
    tol: float | None = None,
    box: Box = None,
    max_cost: float = math.inf,
    last: bool = False,
) -> tuple[State, Info]:
    """One outer step from theta_k. theta changes if and only if a trial was accepted; else `info.result` says why not.

    `last`: certify theta_k and stop there.
    """
    meter = Meter(problem, method.solver, state.counts, state.seconds, state.compile_seconds, max_cost)
    gradient, norm, omega, delta, certificate = None, math.nan, math.inf, math.inf, "none"
    judged = True
    lower_floor = adjoint_floor = False
    accepted, taken, result, known = None, math.nan, None, state.known
    try:
        while accepted is None:
            # certify: x to eps, q to delta, then z and omega
            accuracy = state.accuracy
            if float(state.point.lower.error) > ROUNDED * accuracy.eps and not lower_floor:
                spent = meter.counts.cost
                point = meter.solve(state.theta, state.point.lower.x, accuracy.eps)
                if float(point.lower.error) > ROUNDED * accuracy.eps:
                    if point.lower.result != RESULTS.accuracy_floor:
                        raise Stop(point.lower.result)
                    lower_floor = True
                state = dataclasses.replace(state, point=point, work=state.work + meter.counts.cost - spent)
                gradient = None
            if gradient is None or (delta > accuracy.delta and not adjoint_floor):
                gradient = meter.differentiate(state.theta, state.point.lower, state.q, accuracy.delta)
                adjoint_floor = bool(gradient.result == RESULTS.accuracy_floor)
                omega, delta, certificate = float(gradient.error), float(gradient.delta), gradient.certificate
                norm = float(gradient.norm)
                if box is not None:
                    _, norm = meter.move(SteepestDescent(), state.theta, gradient.gradient, 1.0, box)
                state = dataclasses.replace(state, q=gradient.q)
                known = (meter.counts, meter.seconds)
            if norm + omega <= (state.tol if tol is None else tol) or norm + omega == 0:
                raise Stop(RESULTS.converged)
            if not method.accuracy.certifies(norm, omega):
                # an error of exactly zero (x = 0, q = 0) is below every floor: nothing is left to ask for either
                if (lower_floor or float(state.point.lower.error) == 0) and (adjoint_floor or delta == 0):
                    raise Stop(RESULTS.accuracy_floor)
                excess = omega / norm if norm > 0 else math.inf
                accuracy = method.accuracy.update(accuracy, Event.CERTIFICATE_FAILED, excess)
                state = dataclasses.replace(state, accuracy=accuracy)
                continue
            if math.isnan(state.tol):
                first = DEFAULT_TOLERANCE * (norm + omega) if tol is None else tol
                search = method.linesearch.init(norm, optax.tree.size(state.theta))
                state = dataclasses.replace(state, tol=first, search=search)
            if last:
                raise Stop(RESULTS.max_steps_reached)

            # search: one trial, judged on intervals
            trial, length = meter.move(method.direction, state.theta, gradient.gradient, state.search.step, box)
            if not length > 0:  # z is zero, or the step is lost in the rounding of theta, or every trial failed
                raise Stop(RESULTS.accuracy_floor if norm > 0 and judged else RESULTS.no_decrease)
            wanted = method.accuracy.trial(accuracy)
            cap = method.linesearch.allowance(state.work)
            spent = meter.counts.cost
            point = meter.solve(trial, state.point.lower.x, wanted.eps, cap)
            base, interval = _interval(state.point, accuracy), _interval(point, wanted)
            judged = interval is not None
            verdict, search = method.linesearch.judge(state.search, base, interval, length)
            if verdict is Verdict.ACCEPT:
                accepted, taken, event = (trial, point, meter.counts.cost - spent), state.search.step, Event.ACCEPTED
            else:
                event = Event.TIGHTEN if verdict is Verdict.TIGHTEN else Event.REJECTED
            state = dataclasses.replace(state, search=search, accuracy=method.accuracy.update(accuracy, event))
            if event is Event.TIGHTEN:
                exact = float(state.point.lower.error) == 0  # then only the trial's accuracy is left to improve
                if lower_floor or (exact and point.lower.result == RESULTS.accuracy_floor):
                    raise Stop(RESULTS.accuracy_floor)
                if state.accuracy == accuracy:
                    raise Stop(RESULTS.no_decrease)
    except Stop as stop:
        result = stop.result

    value, value_error, eps = (float(v) for v in (state.point.value, state.point.value_error, state.point.lower.error))
    info = Info(
        state.theta, state.steps, value, value_error, norm, omega, eps, delta, taken, *known, certificate, result
    )  # fmt: skip
    state = dataclasses.replace(
        state, counts=meter.counts, seconds=meter.seconds, compile_seconds=meter.compile_seconds
    )
    if accepted is not None:
        theta, point, work = accepted
        known = (state.counts, state.seconds)
        state = dataclasses.replace(state, theta=theta, point=point, work=work, known=known, steps=state.steps + 1)
    return state, info


def _interval(point: Point, accuracy: Accuracy) -> Interval | None:
    """The value interval of a solved point; None if its solve was capped or broke."""
    value, low, high = float(point.value), float(point.value - point.below), float(point.value + point.value_error)
    unusable = not math.isfinite(high - low)
    if unusable or (float(point.lower.error) > ROUNDED * accuracy.eps and point.lower.result != RESULTS.accuracy_floor):
        return None
    return Interval(low, value, high, accuracy)
