"""z through a best response that is fitted as theta moves, in one run:

    z = grad_theta g + K^T grad_x g at (x, theta),    x+ = x + K (theta+ - theta)
    T steps on x:  min over x of h(x, theta+)         T steps on K:  min over K of E_e h(x + K e, theta+ + e)

Self-Tuning Networks for a problem whose response is affine: arXiv 1903.03088 (STN), and 2010.13514 (Delta-STN), from
which it has that x is fitted to the unperturbed h.

What it lacks: z is not certified. It is off by what x and K lack of the lower level's solution and of its derivative,
and by O(sigma^2); and where K has a lower rank than there are hyperparameters, z misses what f does outside the span of
its directions. Values come with their interval as always. Where ||z|| falls below tol / 2 the hypergradient there is
certified, and only that ends a run as converged.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from .._certificate.value import evaluate
from .._linalg.norms import norm
from .._linalg.vectors import Vector
from .._problem import cross_transpose_product
from .._program import program
from .._results import RESULTS, told
from .base import Base
from .gradient import AbstractGradient
from .overheads import overheads
from .programs import Meter, Stop, measure
from .refine import first_tolerance, refine
from .response import FittedResponse, pull_back, turn


class Tuned(NamedTuple):
    """z at theta; `below`, the ||z|| at which the next certificate is asked for; whether x and K have been fitted."""

    z: Vector
    below: float
    fitted: bool


class BestResponse(AbstractGradient):
    """`response`: how K is fitted. The method's predictor is `Responding(response)`, which remembers K."""

    response: FittedResponse

    def init(self, theta, x):
        return Tuned(optax.tree.zeros_like(theta), math.nan, False)

    def certify(self, base, method):
        if not base.memory.gradient.fitted:
            self.start(base)
        memory, meter = base.memory.gradient, base.meter
        base.z, base.norm = memory.z, float(meter.call(measure, base.theta, memory.z, base.box))
        if math.isnan(base.tol):
            point, gradient = meter.differentiate(base.theta, base.point, base.memory.q, self.first(base))
            base.tol = first_tolerance(meter, base.theta, point, gradient, base.box)
        if base.norm <= (base.tol / 2 if math.isnan(memory.below) else memory.below):
            self.look(base)

    def start(self, base: Base) -> None:
        """x solved until its error is a tenth of what it was, or its value known to a thousandth; then a first K."""
        norm_g_x = float(base.point.norm_g_x)
        eps = max(base.eps / 10, 1e-3 * abs(float(base.point.value)) / norm_g_x if norm_g_x > 0 else 0.0)
        if base.eps > eps:
            base.solve(eps)
        base.point = self.solve(base, base.theta, base.point.lower.x)
        base.known = base.meter.read()

    def first(self, base: Base) -> float:
        """delta of a first certificate."""
        return float(base.point.norm_g_x) / 10

    def look(self, base: Base) -> None:
        """A hypergradient accurate enough to say whether its norm is certainly at most tol; Stop if it is."""
        meter, tol, asked = base.meter, base.tol, base.norm

        def wanted(gradient):
            """omega that tells; as it is where the norm is certainly larger."""
            size = meter.stationarity(base.theta, gradient, base.box)
            surely_not = size - float(gradient.error) > tol
            return math.inf if surely_not else max(tol - size, tol / 10)

        point, gradient = meter.differentiate(base.theta, base.point, base.memory.q, self.first(base))
        base.point, gradient = refine(meter, base.theta, point, gradient, wanted)
        base.show(gradient)
        base.remember(q=gradient.q, gradient=base.memory.gradient._replace(below=asked / 2))
        if base.within():
            raise Stop(RESULTS.converged)

    def solve(self, base, trial, x, eps=0.0, cap=math.inf, q=None):
        """T steps on x and K at the trial point, and its z; or Stop. It asks for no eps."""
        meter, response, size = base.meter, self.response, optax.tree.size(trial)
        turned = int(response.span(size) < size)
        steps = response.steps + overheads(meter.problem, x, trial).solve
        if meter.left < steps + response.cost(size) + turned:
            raise Stop(RESULTS.max_cost_reached)
        point, fitted, z = meter.call(
            fit, response, meter.solver, meter.problem, trial, x, base.memory.guesses, jnp.asarray(steps, jnp.int32),
            meter.curvature,
        )  # fmt: skip
        self.count(meter, point, response.cost(size), turned)
        if not (math.isfinite(float(point.value)) and math.isfinite(float(norm(z)))):
            raise Stop(RESULTS.non_finite)
        base.remember(guesses=fitted, gradient=base.memory.gradient._replace(z=z, fitted=True))
        return point

    def count(self, meter: Meter, point: Any, gradients: int, turned: int) -> None:
        meter.curvature = point.lower.curvature
        meter.add(point.lower)
        counts = meter.counts
        meter.counts = counts._replace(
            lower_gradients=counts.lower_gradients + gradients, cross_products=counts.cross_products + turned
        )
        for broken in (RESULTS.non_finite, RESULTS.not_strongly_convex, RESULTS.not_convex):
            if told(point.lower.result, broken):
                raise Stop(broken)


@program
def fit(how, solver, problem, theta, x, response, allowed, curvature):
    """(the point after T steps on x, K after T steps around it, z)."""
    eps = jnp.zeros((), jax.tree.leaves(x)[0].dtype)
    point = evaluate(problem, solver, theta, x, eps, allowed, curvature)
    x, precondition = point.lower.x, problem.preconditioner(point.lower.x, theta)
    g_x, g_theta = jax.grad(problem.upper, argnums=(0, 1))(x, theta)
    size = optax.tree.size(theta)
    if how.span(size) < size:
        # grad f itself, up to the sign, if P were H: where one step on h would move g with theta (arXiv 1511.06727)
        q = g_x if precondition is None else precondition(g_x)
        response = turn(response, cross_transpose_product(problem, x, theta, q))
    if precondition is None:
        response = eqx.tree_at(lambda r: r.L, response, point.lower.L)
    response = how.fit(response, problem, theta, x)
    return point, response, optax.tree.add(g_theta, pull_back(response, g_x))
