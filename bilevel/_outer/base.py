"""theta_k, where a step starts, and what is known of it: all of it gets more accurate as the step's decisions need it.

eps >= ||x - xhat||,    delta >= ||H q - grad_x g||,    omega >= ||z - grad f||,    |value - f| <= error
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from .._certificate.gradient import Hypergradient
from .._certificate.value import Point
from .._linalg.vectors import Vector
from .._results import RESULTS, told
from .direction import AbstractDirection, Heading
from .method import ROUNDED, Info, State
from .moves import observe, propose, query
from .predict import AbstractPredictor
from .programs import Meter, measure
from .reached import Interval, Per, Reached
from .refine import default_tolerance, refine, solved_to
from .search import AbstractSearch, Judgement, Verdict


class Trial(NamedTuple):
    """theta+ and a guess of its x; ||theta+ - theta|| and <z, theta - theta+>."""

    theta: Vector
    x: Vector
    length: float
    slope: float


class Base:
    """theta_k in one step. What cannot be paid for, or comes back broken, raises `Stop`. `corrects`: the value's
    interval is corrected by the adjoint, every time that there is a new one."""

    def __init__(self, meter: Meter, state: State, tol: float | None, box: Any, corrects: bool = False):
        self.meter, self.state, self.box, self.corrects = meter, state, box, corrects
        self.theta, self.point, self.memory = state.theta, state.point, state.memory
        self.tol, self.by_default = (state.tol if tol is None else tol), tol is None
        self.z: Vector = None
        self.gradient: Hypergradient | None = None
        self.norm, self.omega, self.delta, self.certificate = math.nan, math.inf, math.inf, "none"
        self.x_floor = self.q_floor = self.sharpened = self.turned = False
        self.headed: tuple[Vector, Heading, float] | None = None  # d at this z, with what is known of it
        # what the direction's model of f leaves to be had; whether that is within the default tolerance; the least that
        # it promised within it
        self.decrease, self.modelled, self.kept = math.nan, False, math.inf
        self.trust = False  # z is taken at its word, whatever omega is
        self.trial: Point | None = None  # the last
        self.judged = True  # the last trial, on intervals that could be used
        self.known = state.known

    @property
    def eps(self) -> float:
        return float(self.point.lower.error)

    @property
    def at_floor(self) -> bool:
        """Whether neither eps nor delta can get smaller; an error of exactly zero is below every floor."""
        return (self.x_floor or self.eps == 0) and (self.q_floor or self.delta == 0)

    @property
    def reached(self) -> Reached | None:
        """None without a certificate."""
        if self.gradient is None:
            return None
        gradient, lower = self.gradient, self.point.lower
        numbers = gradient.norm, lower.floor, lower.L, lower.mu
        whole, floor, L, mu = map(float, jax.device_get(numbers))
        condition = L / mu if mu > 0 else math.inf
        return Reached(
            self.eps, self.delta, self.norm, whole, self.omega, Per.of(gradient), floor, condition, self.tol
        )  # fmt: skip

    def within(self) -> bool:
        """Whether the gradient is certainly as small as was asked, or exactly zero."""
        return bool(self.norm + self.omega <= self.tol or self.norm + self.omega == 0)

    def solve(self, eps: float, q: Vector | None = None) -> None:
        """x to eps, or to the floor."""
        begun = self.meter.counts.cost
        self.point = solved_to(self.meter, self.theta, self.point, eps, q)
        self.remember(work=self.memory.work + self.meter.counts.cost - begun)
        self.x_floor = self.eps > ROUNDED * eps

    def certify(self, eps: float, delta: float) -> None:
        """x to eps, q to delta, z and omega, as far as that is not done yet."""
        if self.eps > ROUNDED * eps and not self.x_floor:
            self.solve(eps)
            self.gradient = None
        if self.gradient is None or (self.delta > ROUNDED * delta and not self.q_floor):
            self.differentiate(delta)
        if math.isnan(self.tol) and self.omega <= float(self.gradient.norm) / 2:
            self.tol = default_tolerance(float(self.gradient.norm), self.omega, self.box)

    def differentiate(self, delta: float) -> None:
        """z, omega and what they tell."""
        self.point, self.gradient = self.meter.differentiate(
            self.theta, self.point, self.memory.q, delta, self.corrects
        )  # fmt: skip
        self.headed = None
        self.q_floor = told(self.gradient.result, RESULTS.accuracy_floor)
        self.memory = self.memory._replace(q=self.gradient.q)
        self.z = self.gradient.gradient
        self.show(self.gradient)

    def show(self, gradient: Hypergradient) -> None:
        """This certificate is what `Info` will tell."""
        self.omega, self.delta, self.certificate = float(gradient.error), float(gradient.delta), gradient.certificate
        self.norm = self.meter.stationarity(self.theta, gradient, self.box)
        self.known = self.meter.read()

    def estimate(self) -> None:
        """z without omega."""
        self.z, self.trust, self.headed = self.meter.slope(self.theta, self.point), True, None
        self.norm, self.known = float(self.meter.call(measure, self.theta, self.z, self.box)), self.meter.read()
        self.tol = self.memory.asked.tolerance

    def sharpen(self, most: float = math.inf) -> bool:
        """Bounds from H(x) itself, once, if that costs at most `most`."""
        point = None if self.sharpened else self.meter.sharpen(self.theta, self.point, most)
        if point is not None:
            self.point, self.gradient, self.sharpened = point, None, True
        return point is not None

    def remember(self, **changes: Any) -> None:
        """Memory for the next step, if this one accepts a trial."""
        self.memory = self.memory._replace(**changes)

    def turn(self, direction: AbstractDirection, search: AbstractSearch) -> tuple[Vector, Heading, float]:
        """d from z, and in plain numbers what is known of it and ||d||; asked once for each z."""
        if self.headed is not None:
            return self.headed
        omega = np.asarray(0.0 if self.trust else self.omega, self.point.value.dtype)
        memory, d, *told = self.meter.call(
            query, direction, self.memory.direction, self.theta, self.z, omega, self.box
        )  # fmt: skip
        heading, length = jax.tree.map(lambda v: v.item(), jax.device_get(told))
        if not self.turned:
            self.turned = True
            self.remember(search=search.turned(self.memory.search, heading.learnt))
        self.remember(direction=memory)
        self.decrease = heading.left
        self.headed = d, heading, length
        return self.headed

    def forget(self, direction: AbstractDirection) -> None:
        self.headed = None
        self.remember(direction=direction.forget(self.memory.direction, self.theta))

    def observe(self, predictor: AbstractPredictor, theta: Vector, x: Vector) -> None:
        self.remember(guesses=self.meter.call(observe, predictor, self.memory.guesses, theta, x))

    def propose(
        self, predictor: AbstractPredictor, x: Vector, d: Vector, alpha: float, limit: float | None
    ) -> Trial:  # fmt: skip
        """theta+ = P(theta + alpha d), where log(L/mu) is at most `limit`."""
        dtype = self.point.value.dtype
        alpha, limit = np.asarray(alpha, dtype), None if limit is None else np.asarray(limit, dtype)
        trial, x, *lengths = self.meter.call(
            propose, self.meter.problem, predictor, self.memory.guesses, self.theta, x, self.z, d, alpha, limit,
            self.box,
        )  # fmt: skip
        return Trial(trial, x, *map(float, jax.device_get(lengths)))

    def interval(self) -> Interval:
        """What is known of the value, with what rounding allows of x as this step found it."""
        return interval(self.point, math.inf, self.memory.asked)._replace(floor=self.x_floor)

    def follow(self, judgement: Judgement) -> Verdict:
        self.remember(search=judgement.memory)
        return judgement.verdict

    def stuck(self) -> RESULTS:
        """Why there is no step: z is zero, or the step is lost in the rounding of theta, or every trial failed."""
        judged = self.judged or self.x_floor  # at the floor a trial is not solved better than the base
        if self.norm == 0:  # by this accuracy, or by all that there is?
            _, best = refine(self.meter, self.theta, self.point, self.gradient, lambda z: float(z.norm) / 2)
            judged = float(best.norm) < float(best.error)
        return RESULTS.accuracy_floor if judged else RESULTS.no_decrease

    def end(self, accepted: tuple[Vector, Point] | None, alpha: float, result: RESULTS | None) -> tuple[State, Info]:
        """The state to go on from, and what is known of theta_k. Without a trial accepted nothing is remembered."""
        point, meter, theta, memory, steps, known = (
            self.point, self.meter, self.theta, self.state.memory, self.state.steps, self.known
        )  # fmt: skip
        info = Info(
            theta, steps, float(point.value), float(point.value_error), self.norm, self.omega, self.eps, self.delta,
            alpha, *known, self.certificate, result, self.decrease,
        )  # fmt: skip
        if accepted is not None:
            (theta, point), memory, steps, known = accepted, self.memory, steps + 1, meter.read()
        return State(theta, point, memory, self.tol, steps, *meter.read(), meter.compile_seconds, known), info


def interval(point: Point, eps: float, asked: Any) -> Interval | None:
    """The interval of a point that was solved to eps; None if its solve was cut off or broke."""
    lower = point.lower
    numbers = jax.device_get((point.value, point.below, point.value_error, lower.error))
    value, below, error, reached = map(float, numbers)
    low, high, floor = value - below, value + error, told(lower.result, RESULTS.accuracy_floor)
    if not math.isfinite(high - low) or (reached > ROUNDED * eps and not floor):
        return None
    return Interval(low, value, high, error, reached, floor, asked)
