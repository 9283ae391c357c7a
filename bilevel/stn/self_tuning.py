"""Self-tuning: descend the upper level through a best response that is fitted as theta moves, in one run.

    theta+ = P(theta - optimiser(z)),    z = grad_theta g + K^T grad_x g at (x, theta),    x+ = x + K (theta+ - theta)
    T steps on x:  min over x of h(x, theta+)         T steps on K:  min over K of E_e h(x + K e, theta+ + e)

Self-Tuning Networks for a problem whose response is affine: arXiv 1903.03088 (STN), and 2010.13514 (Delta-STN), from
which it has that x is fitted to the unperturbed h.

What it lacks: z is not certified. It is off by what x and K lack of the lower level's solution and of its derivative,
and by O(sigma^2); no step is tested for decrease, so the optimiser's learning rate has to suit the problem; and where K
has a lower rank than there are hyperparameters, z misses what f does outside the span of its directions. Values come
with their interval as always.
"""

import dataclasses
import hashlib
import math
import re
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from .._certificate.gradient import Hypergradient
from .._certificate.value import Point, evaluate
from .._inputs import positive
from .._linalg.norms import norm
from .._linalg.vectors import Vector
from .._lower.nesterov import Nesterov
from .._lower.solver import AbstractLowerSolver
from .._outer.method import ROUNDED, AbstractMethod, Info, State
from .._outer.programs import Meter, Stop, measure, overheads
from .._outer.refine import first_tolerance, refine
from .._problem import cross_transpose_product
from .._program import program
from .._results import RESULTS
from .response import FittedResponse, Response, pull_back, respond, turn

FEW = 8  # hyperparameters: all of K is affordable


class Memory(NamedTuple):
    """K; the optimiser's state; z at theta; the adjoint q of the last certificate; `below`, the ||z|| at which the next
    one is asked for; whether x and K have been fitted at all."""

    response: Response
    optimiser: Any
    z: Vector
    q: Vector
    below: float
    fitted: bool


class SelfTuning(AbstractMethod):
    """See the equations above; `self_tuning()` makes it."""

    optimiser: Any = eqx.field(static=True)
    rank: int | None = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    sigma: float = eqx.field(static=True)
    solver: AbstractLowerSolver

    def __repr__(self):
        # a checkpoint is told from another method's by this: an optimiser's functions do not show its constants
        zero = jnp.zeros(())
        try:
            steps = str(jax.make_jaxpr(self.optimiser.update)(zero, self.optimiser.init(zero), zero))
        except (TypeError, ValueError):  # one for theta's own structure
            steps = str(self.optimiser)
        mark = hashlib.sha256(re.sub("0x[0-9a-f]+", "", steps).encode()).hexdigest()[:8]
        return f"SelfTuning({mark}, rank={self.rank}, steps={self.steps}, sigma={self.sigma}, solver={self.solver})"

    def response(self, theta: Vector) -> FittedResponse:
        """How K is fitted. With the direction that `fit` chooses, a rank above one sees hardly more of grad f."""
        size = optax.tree.size(theta)
        rank = (size if size <= FEW else 1) if self.rank is None else min(self.rank, size)
        return FittedResponse(rank, self.steps, self.sigma)

    def init(self, problem, theta0, x0, max_cost=math.inf):
        meter = Meter(problem, self.solver, max_cost)
        point = meter.solve(theta0, x0, math.inf)
        zeros = optax.tree.zeros_like(theta0)
        response, optimiser = self.response(theta0).init(theta0, x0), self.optimiser.init(theta0)
        memory = Memory(response, optimiser, zeros, optax.tree.zeros_like(x0), math.nan, False)
        known = (meter.counts, meter.seconds)
        return State(theta0, point, memory, math.nan, 0, meter.counts, meter.seconds, meter.compile_seconds, known)

    def step(self, problem, state, *, tol=None, box=None, max_cost=math.inf, last=False):
        meter = Meter(problem, self.solver, max_cost, state)
        norm, omega, delta, certificate = math.nan, math.inf, math.inf, "none"
        length, accepted, result, known = math.nan, None, None, state.known
        try:
            if not state.memory.fitted:
                state = self._start(meter, state)
                known = (meter.counts, meter.seconds)
            memory = state.memory
            norm = self._norm(meter, state.theta, memory.z, box)
            if math.isnan(state.tol):
                first = self._tolerance(meter, state, box) if tol is None else tol
                state = dataclasses.replace(state, tol=first)
            tol = state.tol if tol is None else tol
            if norm <= (tol / 2 if math.isnan(memory.below) else memory.below):
                state, gradient, met = self._certify(meter, state, tol, box)
                norm = meter.stationarity(state.theta, gradient, box)
                omega, delta, certificate = float(gradient.error), float(gradient.delta), gradient.certificate
                known = (meter.counts, meter.seconds)
                if met:
                    raise Stop(RESULTS.converged)
            if last:
                raise Stop(RESULTS.max_steps_reached)
            move = meter.call(descend, self, problem, state.theta, state.point.lower.x, state.memory, box)
            theta, x, optimiser, length = *move[:3], float(move[3])
            accepted = theta, *self._fit(meter, theta, x, state.memory._replace(optimiser=optimiser))
        except Stop as stop:
            result = stop.result

        point = state.point
        alpha = length / norm if accepted is not None and norm > 0 else math.nan
        info = Info(
            state.theta, state.steps, float(point.value), float(point.value_error), norm, omega,
            float(point.lower.error), delta, alpha, *known, certificate, result,
        )  # fmt: skip
        state = dataclasses.replace(
            state, counts=meter.counts, seconds=meter.seconds, compile_seconds=meter.compile_seconds
        )
        if accepted is not None:
            theta, point, memory = accepted
            known = (state.counts, state.seconds)
            state = dataclasses.replace(
                state, theta=theta, point=point, memory=memory, known=known, steps=state.steps + 1
            )
        return state, info

    def _start(self, meter: Meter, state: State) -> State:
        """x solved until its error is a tenth of what it was, or its value known to a thousandth; then a first K."""
        point = state.point
        error, norm_g_x = float(point.lower.error), float(point.norm_g_x)
        eps = max(error / 10, 1e-3 * abs(float(point.value)) / norm_g_x if norm_g_x > 0 else 0.0)
        if error > eps:
            point = meter.solve(state.theta, point.lower.x, eps)
            if float(point.lower.error) > ROUNDED * eps and point.lower.result != RESULTS.accuracy_floor:
                raise Stop(point.lower.result)
        point, memory = self._fit(meter, state.theta, point.lower.x, state.memory)
        return dataclasses.replace(state, point=point, memory=memory._replace(fitted=True))

    def _fit(self, meter: Meter, theta: Vector, x: Vector, memory: Memory) -> tuple[Point, Memory]:
        """T steps on x and K at theta, or Stop."""
        response = self.response(theta)
        turned = int(response.rank < optax.tree.size(theta))
        steps = self.steps + overheads(meter.problem, x, theta).solve
        if meter.left < steps + response.cost + turned:
            raise Stop(RESULTS.max_cost_reached)
        allowed = jnp.asarray(steps, jnp.int32)
        point, fitted, z = meter.call(fit, self, meter.problem, theta, x, memory.response, allowed, meter.curvature)
        meter.curvature = point.lower.curvature
        meter.add(point.lower)
        counts = meter.counts
        meter.counts = counts._replace(
            lower_gradients=counts.lower_gradients + response.cost, cross_products=counts.cross_products + turned
        )
        for broken in (RESULTS.non_finite, RESULTS.not_strongly_convex, RESULTS.not_convex):
            if point.lower.result == broken:
                raise Stop(broken)
        if not (math.isfinite(float(point.value)) and math.isfinite(float(norm(z)))):
            raise Stop(RESULTS.non_finite)
        return point, memory._replace(response=fitted, z=z)

    def _norm(self, meter: Meter, theta: Vector, z: Vector, box: Any) -> float:
        """||P(theta - z) - theta||."""
        return float(meter.call(measure, theta, z, box))

    def _tolerance(self, meter: Meter, state: State, box: Any) -> float:
        """The default tolerance, from a hypergradient at theta0 that is certified for it."""
        delta = float(state.point.norm_g_x) / 10
        point, gradient = meter.differentiate(state.theta, state.point, state.memory.q, delta)
        return first_tolerance(meter, state.theta, point, gradient, box)

    def _certify(self, meter: Meter, state: State, tol: float, box: Any) -> tuple[State, Hypergradient, bool]:
        """A hypergradient accurate enough to say whether its norm is certainly at most tol; and the answer."""
        theta, memory = state.theta, state.memory
        asked = self._norm(meter, theta, memory.z, box)

        def wanted(gradient):
            """omega that tells; as it is where the norm is certainly larger."""
            size = meter.stationarity(theta, gradient, box)
            surely_not = size - float(gradient.error) > tol
            return math.inf if surely_not else max(tol - size, tol / 10)

        point, gradient = meter.differentiate(theta, state.point, memory.q, float(state.point.norm_g_x) / 10)
        point, gradient = refine(meter, theta, point, gradient, wanted)
        met = meter.stationarity(theta, gradient, box) + float(gradient.error) <= tol
        memory = memory._replace(q=gradient.q, below=asked / 2)
        return dataclasses.replace(state, point=point, memory=memory), gradient, met


def self_tuning(
    optimiser: Any = optax.adam(0.1),
    *,
    rank: int | None = None,
    steps: int = 4,
    sigma: float = 0.1,
    solver: AbstractLowerSolver = Nesterov(),
) -> SelfTuning:
    """Self-tuning with an affine best response; see `bilevel.stn.self_tuning` for its equations and what they lack.

    - `optimiser`: of theta, an optax gradient transformation. - `steps`: T. - `solver`: of x.
    - `rank`: of K, at least 1. Left out, K is full for up to 8 hyperparameters, and of rank 1 for more.
    - `sigma`: the size of the perturbations of theta.

    An outer step costs about (2 rank + 1) T. Where ||z|| falls below tol / 2, the hypergradient there is certified, and
    only that ends a run as converged; else `gradient_error` is infinite. `tol` left out is a thousandth of a norm at
    theta0 that is certified once for it.

    Raises ValueError for a rank below 1, steps below 2, a sigma that is not positive; TypeError for no optimiser.
    """
    if not isinstance(optimiser, optax.GradientTransformation):
        raise TypeError(f"optimiser must be an optax optimiser such as optax.adam(0.1), not {optimiser!r}")
    positive(sigma=sigma)
    FittedResponse(1 if rank is None else rank, steps, sigma)  # says what is wrong
    return SelfTuning(optimiser, rank, steps, sigma, solver)


@program
def descend(method, problem, theta, x, memory, box):
    """(theta+, x+, the optimiser's state, ||theta+ - theta||)."""
    updates, optimiser = method.optimiser.update(memory.z, memory.optimiser, theta)
    new = optax.apply_updates(theta, updates)
    if box is not None:
        new = jax.tree.map(jnp.clip, new, *box)
    change = optax.tree.sub(new, theta)
    return new, optax.tree.add(x, respond(memory.response, change)), optimiser, norm(change)


@program
def fit(method, problem, theta, x, response, allowed, curvature):
    """(the point after T steps on x, K after T steps around it, z)."""
    eps = jnp.zeros((), jax.tree.leaves(x)[0].dtype)
    point = evaluate(problem, method.solver, theta, x, eps, allowed, curvature)
    x, how, precondition = point.lower.x, method.response(theta), problem.preconditioner(point.lower.x, theta)
    g_x, g_theta = jax.grad(problem.upper, argnums=(0, 1))(x, theta)
    if how.rank < optax.tree.size(theta):
        # grad f itself, up to the sign, if P were H: where one step on h would move g with theta (arXiv 1511.06727)
        q = g_x if precondition is None else precondition(g_x)
        response = turn(response, cross_transpose_product(problem, x, theta, q))
    if precondition is None:
        response = eqx.tree_at(lambda r: r.L, response, point.lower.L)
    response = how.fit(response, problem, theta, x)
    return point, response, optax.tree.add(g_theta, pull_back(response, g_x))
