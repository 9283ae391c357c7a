"""The upper level's interval around f(theta), from a solved lower level.

|g(x) - f(theta)|  <=  ||grad_x g(x)|| eps + L_g eps^2 / 2 + rounding
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from .._chunked import Kept
from .._counts import Count
from .._linalg.norms import dual_norm, norm
from .._linalg.rounding import rounding, unit_roundoff
from .._linalg.vectors import Scalar, Vector
from .._lower.descend import LowerSolution, descend
from .._lower.solver import AbstractLowerSolver
from .._problem import AbstractProblem, bounds_along, hessian_product, upper_smoothness
from . import inequalities
from .dependence import reads
from .estimates import ball_directions, lipschitz
from .local_curvature import local_curvature


class Point(eqx.Module):
    """A solved lower level and the upper level's interval: value - below <= f(theta) <= value + value_error, with
    below <= value_error (smaller where g is convex)."""

    lower: LowerSolution
    value: Scalar
    value_error: Scalar
    below: Scalar
    norm_g_x: Scalar
    certificate: str = eqx.field(static=True)

    @property
    def certified(self) -> bool:
        return self.certificate != "estimated"

    @property
    def x(self) -> Any:
        """The lower level's solution; of `Chunked` problems those of the units, None where they are not kept."""
        return self.lower.curvature.x if isinstance(self.lower.curvature, Kept) else self.lower.x


def upper_terms(problem: AbstractProblem, x: Vector, theta: Vector) -> Scalar:
    """2 sum |v dg/dv| over all numbers v that g reads: what it adds up, and may cancel, to first order.

    A rounding of u in every number moves g by u times half of this. Where `upper` has no derivative in the problem's
    own data, only x and theta are counted: such a problem declares `rounding_upper`.
    """
    inputs = (problem, x, theta)
    used = jax.tree.map(
        lambda v, read: read and eqx.is_inexact_array(v), inputs, reads(lambda p, x, t: p.upper(x, t), *inputs)
    )

    def terms(used):
        moving, fixed = eqx.partition(inputs, used)

        def g(moving):
            problem, x, theta = eqx.combine(moving, fixed)
            return problem.upper(x, theta)

        return jax.tree.map(lambda v, slope: jnp.sum(jnp.abs(v * slope)), moving, jax.grad(g)(moving))

    try:
        parts = terms(used)
    except (TypeError, ValueError, NotImplementedError):
        parts = terms((jax.tree.map(lambda _: False, problem), *used[1:]))
    return 2 * sum(jax.tree.leaves(parts), jnp.zeros((), jax.tree.leaves(x)[0].dtype))


def value_rounding(problem: AbstractProblem, x: Vector, theta: Vector, value: Scalar) -> Scalar:
    """The rounding in g(x), by what is declared or measured."""
    declared = problem.constants(theta).rounding_upper
    terms = upper_terms(problem, x, theta) if declared is None else declared
    return inequalities.value_rounding(value, optax.tree.size(x), terms, unit_roundoff(value.dtype))


def evaluate(
    problem: AbstractProblem,
    solver: AbstractLowerSolver | None,
    theta: Vector,
    x0: Vector,
    eps: Scalar,
    max_cost: Count,
    curvature: Any = None,
    seed: Count | int = 0,
) -> Point:
    """Solve the lower level to eps from x0 and bound |g(x) - f(theta)|. Traceable."""
    return enclose(problem, theta, descend(problem, solver, theta, x0, eps, max_cost, curvature, seed))


def enclose(problem: AbstractProblem, theta: Vector, lower: LowerSolution) -> Point:
    """The upper level's interval from a solved lower level. Costs nothing of the lower level."""
    constants = problem.constants(theta)
    value, g_x = jax.value_and_grad(problem.upper)(lower.x, theta)
    declared = upper_smoothness(constants, bounds_along(problem, lower.x, theta, lower.x, lower.error))
    if (L_upper := declared) is None:
        directions = ball_directions(lower.x, g_x, lower.x)
        radius = jnp.where(jnp.isfinite(lower.error), lower.error, 0)
        L_upper = lipschitz(lambda x: jax.grad(problem.upper)(x, theta), g_x, lower.x, radius, directions)
    norm_g_x = dual_norm(g_x, constants.metric)
    noise = value_rounding(problem, lower.x, theta, value)
    error = inequalities.value_error(norm_g_x, lower.error, L_upper, noise)
    # a convex g lies above its tangent at x: below g(x) the quadratic term is not needed
    below = inequalities.value_error(norm_g_x, lower.error, 0.0, noise) if constants.convex_upper else error
    certificate = "estimated" if declared is None else lower.certificate
    return Point(lower, value, error, below, norm_g_x, certificate)


def sharpen(problem: AbstractProblem, theta: Vector, lower: LowerSolution) -> Point:
    """The point with the bounds that H(x), formed whole, gives. Costs `local_cost`; for x that is `affordable`."""
    noise = lower.floor * lower.mu
    error, local = local_curvature(problem, theta, lower.x, lower.rho, lower.error, lower.mu, noise)
    return enclose(problem, theta, dataclasses.replace(lower, error=error, local=local))


def correct(problem: AbstractProblem, theta: Vector, point: Point, q: Vector) -> Point:
    """The point with the adjoint-corrected interval, intersected with the one it has. Counts one Hessian product.

        |f - (g(x) - <q, rho>)| <= delta eps + (L_g + M_H) eps^2 / 2,    delta = ||H q - grad_x g||    for any q

    From grad_x g = H q - r, ||r|| = delta, and rho = rho(x) - rho(xhat) = H(x)(x - xhat) up to M_H eps^2 / 2 along q.
    For a convex g the lower side needs no L_g. Without declared constants the point comes back as it was.
    """
    x, eps = point.lower.x, point.lower.error
    constants = problem.constants(theta)
    bounds = bounds_along(problem, x, theta, q, eps)
    M_H, L_upper = bounds.M_H, upper_smoothness(constants, bounds)
    if M_H is None or L_upper is None:
        return point
    u = unit_roundoff(eps.dtype)
    Hq = hessian_product(problem, x, theta, q)
    g_x = jax.grad(problem.upper)(x, theta)
    norm_q, L = norm(q), point.lower.L
    delta = dual_norm(optax.tree.sub(Hq, g_x), constants.metric)
    delta += rounding(L, norm_q, norm(g_x), u)
    terms = 0.0 if constants.rounding is None else constants.rounding
    noise = norm_q * rounding(L, norm(x), terms, u)
    value = problem.upper(x, theta)
    noise += value_rounding(problem, x, theta, value)
    products = jax.tree.map(lambda q, rho: jnp.abs(q * rho), q, point.lower.rho)
    noise += 2 * u * optax.tree.sum(products)
    value -= optax.tree.vdot(q, point.lower.rho)
    above = inequalities.corrected_error(delta, eps, M_H + L_upper) + noise
    below = inequalities.corrected_error(delta, eps, M_H) + noise if constants.convex_upper else above
    low = jnp.maximum(point.value - point.below, value - below)
    high = jnp.minimum(point.value + point.value_error, value + above)
    half = jnp.maximum(high - low, 0) / 2 + 4 * u * jnp.abs(value)
    return dataclasses.replace(point, value=(low + high) / 2, value_error=half, below=half)


def correction_cost(problem: AbstractProblem, x: Vector, theta: Vector) -> int:
    """What `correct` costs: a Hessian product, or nothing where it has nothing to offer."""
    bounds = problem.bounds(x, theta, x, jnp.zeros((), jax.tree.leaves(x)[0].dtype))
    return int(bounds.M_H is not None and upper_smoothness(problem.constants(theta), bounds) is not None)
