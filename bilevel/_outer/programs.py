"""The jitted programs of the outer loop, with their cost counted, their time split and the budget kept.

A call that the budget cannot pay for, or that comes back broken, raises `Stop` with the result to report.
"""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._certificate import gradient as gradients
from .._certificate import value
from .._certificate.gradient import Hypergradient
from .._certificate.value import Point
from .._counts import Counts
from .._linalg.norms import norm
from .._linalg.vectors import Vector
from .._nonsmooth import AbstractNonsmoothProblem
from .._problem import AbstractProblem
from .._program import program
from .._results import RESULTS, told
from .overheads import overheads
from .region import stationarity

UNLIMITED = 2**30
BROKEN = RESULTS.non_finite, RESULTS.not_strongly_convex, RESULTS.not_convex, RESULTS.max_cost_reached

evaluate = program(value.evaluate)
enclose = program(value.enclose)
sharpen = program(value.sharpen)
correct = program(value.correct)
differentiate = program(gradients.differentiate)
measure = program(stationarity)


@program
def slope(problem, theta, lower, max_cost):
    """The problem's z, what it cost, and whether it is finite."""
    z, cost = problem.slope(theta, lower.x, lower.curvature, max_cost)
    return z, cost, jnp.isfinite(norm(z))


def read(out: Any) -> Any:
    """What a program returned, its numbers fetched to the host in one read: who asks for one later finds it there."""
    jax.device_get([leaf for leaf in jax.tree.leaves(out) if leaf.ndim == 0])
    return out


class Stop(Exception):
    """The step ends here, for this reason."""

    def __init__(self, result: RESULTS):
        self.result = result


class Meter:
    """Runs the programs for one step, each past a meter: `counts` is their cost by kind, beside it stand `seconds` and
    `compile_seconds`, and what `max_cost` does not pay for is not run. All go on from where `state`, a `method.State`,
    has them, and the solver from the curvature that it last learnt."""

    compilations = 0  # of this process, kept by the listener below

    def __init__(self, problem: AbstractProblem, solver: Any, max_cost: float, state: Any = None):
        self.problem, self.solver, self.max_cost = problem, solver, max_cost
        self.counts, self.compile_seconds, self.curvature, seconds = Counts(), 0.0, None, 0.0
        if state is not None:
            self.counts, seconds, self.compile_seconds = state.counts, state.seconds, state.compile_seconds
            self.curvature = state.point.lower.curvature
        self._start = time.perf_counter() - seconds - self.compile_seconds

    @property
    def seconds(self) -> float:
        """Wall time without compilation."""
        return time.perf_counter() - self._start - self.compile_seconds

    @property
    def seed(self) -> np.ndarray:
        """Of what is drawn next: new at every cost, and the same in a run that is repeated or resumed."""
        return np.asarray(self.counts.cost % UNLIMITED, np.int32)

    def read(self) -> tuple[Counts, float]:
        """What was spent so far: cost by kind, and seconds."""
        return self.counts, self.seconds

    @property
    def left(self) -> float:
        return self.max_cost - self.counts.cost

    def _call(self, function, *args):
        """A call during which XLA compiled counts as compiling until it returns: dispatch is asynchronous, so nearly
        all of it is tracing and compiling."""
        before, start = Meter.compilations, time.perf_counter()
        out = function(*args)
        if Meter.compilations > before:
            self.compile_seconds += time.perf_counter() - start
        return out

    def add(self, done: Any) -> None:
        """Count what a program reports to have spent."""
        fields = [getattr(done, name, 0) for name in Counts._fields]
        self.counts = Counts(*(old + int(new) for old, new in zip(self.counts, jax.device_get(fields), strict=True)))

    def solve(self, theta: Vector, x0: Vector, eps: float, cap: float = math.inf, q: Vector | None = None) -> Point:
        """The lower level to eps, spending at most `cap` and what is left. A result of max_cost_reached means `cap`.

        With q the value's interval is corrected by it.
        """
        known = overheads(self.problem, x0, theta)
        correction = 0 if q is None else known.correction
        if self.left < known.solve + correction:
            raise Stop(RESULTS.max_cost_reached)
        cap = max(cap, known.solve + correction)
        allowed = np.asarray(int(min(cap, self.left, UNLIMITED)) - correction, np.int32)
        eps_ = np.asarray(eps, jax.tree.leaves(x0)[0].dtype)
        learnt = self.curvature
        if learnt is None:
            nonsmooth = isinstance(self.problem, AbstractNonsmoothProblem)
            learnt = self.problem.memory(x0) if nonsmooth else self.solver.curvature(x0)
        point = self._call(evaluate, self.problem, self.solver, theta, x0, eps_, allowed, learnt, self.seed)
        self.curvature = point.lower.curvature
        point = read(self.correct(theta, point, q if correction else None))
        self.add(point.lower)
        if self.left < cap and self.left <= 0 and float(point.lower.error) > eps:
            raise Stop(RESULTS.max_cost_reached)
        return point

    def recall(self, point: Point) -> None:
        """The next solve goes on from this point; where h has a kink there is more to that than x."""
        if isinstance(self.problem, AbstractNonsmoothProblem):
            self.curvature = point.lower.curvature

    def slope(self, theta: Vector, point: Point) -> Vector:
        """z of unknown error, where h has a kink."""
        if self.left < overheads(self.problem, point.lower.x, theta).certificate:
            raise Stop(RESULTS.max_cost_reached)
        allowed = np.asarray(int(min(self.left, UNLIMITED)), np.int32)
        z, products, finite = self._call(slope, self.problem, theta, point.lower, allowed)
        self.counts = self.counts._replace(hessian_products=self.counts.hessian_products + int(products))
        if not bool(finite):
            raise Stop(RESULTS.non_finite)
        return z

    def correct(self, theta: Vector, point: Point, q: Vector | None) -> Point:
        """The point with its interval corrected by q, if there is one; paid for already."""
        if q is None:
            return point
        cost = overheads(self.problem, point.lower.x, theta).correction
        self.counts = self.counts._replace(hessian_products=self.counts.hessian_products + cost)
        return self._call(correct, self.problem, theta, point, q)

    def differentiate(
        self, theta: Vector, point: Point, q: Vector, delta: float, corrects: bool = False
    ) -> tuple[Point, Hypergradient]:
        """As `attempt`; what comes back broken raises `Stop`."""
        point, gradient = self.attempt(theta, point, q, delta, corrects)
        for result in BROKEN:
            if told(gradient.result, result):
                raise Stop(result)
        return point, gradient

    def attempt(
        self, theta: Vector, point: Point, q: Vector, delta: float, corrects: bool = False
    ) -> tuple[Point, Hypergradient]:
        """The hypergradient with the adjoint to delta, and the point: with a larger error where conjugate gradients
        have contradicted an estimate of mu. `corrects`: with its interval corrected by the new q, where the problem
        declares what that takes and it can be paid."""
        known = overheads(self.problem, point.lower.x, theta)
        if self.left < known.certificate + 1:
            raise Stop(RESULTS.max_cost_reached)
        corrects = corrects and 0 < known.correction <= self.left - known.certificate - 1
        allowed = np.asarray(int(min(self.left - corrects * known.correction, UNLIMITED)), np.int32)
        delta = np.asarray(delta, point.lower.error.dtype)
        gradient = self._call(differentiate, self.problem, theta, point.lower, q, delta, allowed, self.seed)
        point, gradient = read((self.correct(theta, point, gradient.q if corrects else None), gradient))
        self.add(gradient)
        lowered = self.corrected_mu(theta, point, gradient)
        if corrects and lowered is not point and known.correction <= self.left:
            lowered = read(self.correct(theta, lowered, gradient.q))
        return lowered, gradient

    def corrected_mu(self, theta: Vector, point: Point, gradient: Hypergradient) -> Point:
        """The point as the mu of a hypergradient has it, where that is smaller."""
        if not float(gradient.mu) < float(point.lower.mu):
            return point
        lower = dataclasses.replace(point.lower, mu=gradient.mu, error=gradient.eps)
        return read(self._call(enclose, self.problem, theta, lower))

    def sharpen(self, theta: Vector, point: Point, most: float = math.inf) -> Point | None:
        """The point with the bounds that its local curvature gives; None if that costs more than `most` or is left."""
        price = overheads(self.problem, point.lower.x, theta).local
        if price is None or sum(price) > min(self.left, most) or not math.isfinite(float(point.lower.error)):
            return None
        hessian, cross = price
        counts = self.counts
        self.counts = counts._replace(
            hessian_products=counts.hessian_products + hessian, cross_products=counts.cross_products + cross
        )
        return read(self._call(sharpen, self.problem, theta, point.lower))

    def stationarity(self, theta: Vector, gradient: Hypergradient, box: Any) -> float:
        """||P(theta - z) - theta||; ||z|| without a box."""
        return float(gradient.norm if box is None else self._call(measure, theta, gradient.gradient, box))

    def call(self, function: Any, *args: Any) -> Any:
        """A jitted program that costs nothing."""
        return self._call(function, *args)


def _listen(event: str, duration: float, **_) -> None:
    Meter.compilations += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_listen)
