"""The inexact hypergradient and its certificate, from residuals that were measured, not asked for.

    H q = grad_x g   to   delta = ||H q - grad_x g||,        z = grad_theta g - J^T q
    eta_q = (M_H eps + delta + L_g eps) / mu  >=  ||q - qhat||
    omega = ||J|| eta_q + M_J eps + L_J eps eta_q  >=  ||z - grad f||

Section 3 of arXiv 2308.10098, with actual residuals, and products with q bounded where the problem can.
"""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from . import bounds as inequalities
from .estimates import DIRECTIONS, ball_directions, cross_norm, cross_norm_cost, lipschitz
from .krylov import conjugate_gradients
from .lower import AbstractLowerSolver, LowerSolution, descend, preconditioner
from .problem import (
    AbstractProblem,
    Bounds,
    Scalar,
    Vector,
    cross_transpose_product,
    hessian_product,
)
from .results import RESULTS

Count = Int[Array, ""]


class Point(eqx.Module):
    """A solved lower level and the upper level's interval: g(x) - below <= f(theta) <= g(x) + value_error, with
    below <= value_error (smaller where g is convex)."""

    lower: LowerSolution
    value: Scalar
    value_error: Scalar
    below: Scalar
    norm_g_x: Scalar
    certified: bool = eqx.field(static=True)


class Hypergradient(eqx.Module):
    """z and omega >= ||z - grad f||; the adjoint q and its residual delta; the kind of certificate.

    `per_eps` and `per_delta`: what omega gains with eps and with delta, to first order. `certificate` is "proven",
    "probable" (||J|| by Lanczos: fails with probability at most 1e-10) or "estimated".
    """

    gradient: Vector
    norm: Scalar
    error: Scalar
    q: Vector
    delta: Scalar
    result: RESULTS
    lower_gradients: Count
    hessian_products: Count
    cross_products: Count
    per_eps: Scalar
    per_delta: Scalar
    certificate: str = eqx.field(static=True)


def reads_theta(problem: AbstractProblem, x: Vector, theta: Vector) -> bool:
    """Whether g reads theta at all, from its trace."""
    jaxpr = jax.make_jaxpr(problem.upper)(x, theta).jaxpr
    inputs = set(jaxpr.invars[len(jax.tree.leaves(x)) :])
    return any(v in inputs for eqn in jaxpr.eqns for v in eqn.invars if not hasattr(v, "val"))


def evaluate(
    problem: AbstractProblem,
    solver: AbstractLowerSolver,
    theta: Vector,
    x0: Vector,
    eps: Scalar,
    max_cost: Count,
    curvature: Any = None,
) -> Point:
    """Solve the lower level to eps from x0 and bound |g(x) - f(theta)|. Traceable."""
    constants = problem.constants(theta)
    lower = descend(problem, solver, theta, x0, eps, max_cost, curvature)
    value, g_x = jax.value_and_grad(problem.upper)(lower.x, theta)
    if (L_upper := constants.L_upper) is None:
        directions = ball_directions(lower.x, g_x, lower.x)
        L_upper = lipschitz(lambda x: jax.grad(problem.upper)(x, theta), g_x, lower.x, lower.error, directions)
    norm_g_x = inequalities.dual_norm(g_x, constants.metric)
    size, u = optax.tree.size(lower.x), inequalities.unit_roundoff(value.dtype)
    error = inequalities.value_error(norm_g_x, lower.error, L_upper, value, size, u)
    # a convex g lies above its tangent at x: below g(x) the quadratic term is not needed
    below = inequalities.value_error(norm_g_x, lower.error, 0.0, value, size, u) if constants.convex_upper else error
    return Point(lower, value, error, below, norm_g_x, lower.certified and constants.L_upper is not None)


def correct(problem: AbstractProblem, theta: Vector, point: Point, q: Vector) -> Point:
    """The point with the adjoint-corrected interval, intersected with the one it has. Counts one Hessian product.

        |f - (g(x) - <q, rho>)| <= delta eps + (L_g + M_H) eps^2 / 2,    delta = ||H q - grad_x g||    for any q

    From grad_x g = H q - r, ||r|| = delta, and rho = rho(x) - rho(xhat) = H(x)(x - xhat) up to M_H eps^2 / 2 along q.
    For a convex g the lower side needs no L_g. Without declared constants the point comes back as it was.
    """
    x, eps = point.lower.x, point.lower.error
    constants = problem.constants(theta)
    M_H = problem.bounds(x, theta, q, eps).M_H
    if M_H is None or constants.L_upper is None:
        return point
    u = inequalities.unit_roundoff(eps.dtype)
    Hq = hessian_product(problem, x, theta, q)
    g_x = jax.grad(problem.upper)(x, theta)
    norm_q, L = optax.tree.norm(q), point.lower.L
    delta = inequalities.dual_norm(optax.tree.sub(Hq, g_x), constants.metric)
    delta += inequalities.rounding(L, norm_q, optax.tree.norm(g_x), u)
    terms = 0.0 if constants.rounding is None else constants.rounding
    noise = norm_q * inequalities.rounding(L, optax.tree.norm(x), terms, u)
    value = problem.upper(x, theta)
    noise += u * math.sqrt(optax.tree.size(x)) * jnp.abs(value)
    value -= optax.tree.vdot(q, point.lower.rho)
    above = inequalities.corrected_error(delta, eps, M_H + constants.L_upper) + noise
    below = inequalities.corrected_error(delta, eps, M_H) + noise if constants.convex_upper else above
    low = jnp.maximum(point.value - point.below, value - below)
    high = jnp.minimum(point.value + point.value_error, value + above)
    half = jnp.maximum(high - low, 0) / 2 + 4 * u * jnp.abs(value)
    return dataclasses.replace(point, value=(low + high) / 2, value_error=half, below=half)


def correction_cost(problem: AbstractProblem, x: Vector, theta: Vector) -> int:
    """What `correct` costs: a Hessian product, or nothing where it has nothing to offer."""
    M_H = problem.bounds(x, theta, x, jnp.zeros((), jax.tree.leaves(x)[0].dtype)).M_H
    return int(M_H is not None and problem.constants(theta).L_upper is not None)


def certificate_cost(problem: AbstractProblem, x: Vector, theta: Vector) -> int:
    """What `differentiate` costs beside its conjugate gradients: J^T q, and whatever must be estimated."""
    declared = problem.bounds(x, theta, x, jnp.zeros((), jax.tree.leaves(x)[0].dtype))
    cost = 1 + (cross_norm_cost(x, theta) if declared.J is None else 0)
    cost += 1 + DIRECTIONS if declared.M_H is None else 0
    cost += 1 + DIRECTIONS if declared.M_J is None or declared.L_J is None else 0
    return cost


def differentiate(
    problem: AbstractProblem, theta: Vector, lower: LowerSolution, q0: Vector, delta: Scalar, max_cost: Count
) -> Hypergradient:
    """Solve the adjoint system to delta from q0, form z, bound its error. max_cost > `certificate_cost`. Traceable."""
    x, eps = lower.x, lower.error
    u = inequalities.unit_roundoff(eps.dtype)
    constants = problem.constants(theta)
    g_x, g_theta = jax.grad(problem.upper, argnums=(0, 1))(x, theta)
    overhead = certificate_cost(problem, x, theta)
    solution = conjugate_gradients(
        lambda v: hessian_product(problem, x, theta, v),
        g_x, q0, delta=delta, mu=lower.mu, L=lower.L, u=u, max_products=max_cost - overhead,
        metric=constants.metric, precondition=lower.inverse(preconditioner(problem, x, theta)),
    )  # fmt: skip
    q = solution.q
    z = optax.tree.sub(g_theta, cross_transpose_product(problem, x, theta, q))

    norm_q = optax.tree.norm(q)
    noise = inequalities.rounding(lower.L, norm_q, optax.tree.norm(g_x), u)
    declared = problem.bounds(x, theta, q, eps)
    known, L_upper, L_upper_theta, certificate = _complete(problem, constants, declared, x, theta, q, eps, g_x)
    if not lower.certified:
        certificate = "estimated"
    achieved = solution.residual + noise
    eta_q = inequalities.adjoint_error(eps, achieved, lower.mu, known.M_H, L_upper)
    omega = inequalities.hypergradient_error(eps, eta_q, known.J, known.M_J, known.L_J, L_upper_theta)
    omega += inequalities.rounding(known.J, norm_q, optax.tree.norm(g_theta), u)

    result = RESULTS.where(achieved <= delta * (1 + 1e-6), RESULTS.converged, RESULTS.accuracy_floor)
    capped = (achieved > delta) & (solution.products >= max_cost - overhead)
    result = RESULTS.where(capped, RESULTS.max_cost_reached, result)
    result = RESULTS.where(solution.negative_curvature, RESULTS.not_strongly_convex, result)
    norm = optax.tree.norm(z)
    result = RESULTS.where(jnp.isfinite(norm) & jnp.isfinite(solution.residual), result, RESULTS.non_finite)
    extra_hessian = 1 + DIRECTIONS if declared.M_H is None else 0
    return Hypergradient(
        z, norm, omega, q, achieved, result,
        lower_gradients=jnp.asarray(0, jnp.int32),
        hessian_products=solution.products + extra_hessian,
        cross_products=jnp.asarray(overhead - extra_hessian, jnp.int32),
        per_eps=known.J * (known.M_H + L_upper) / lower.mu + known.M_J + L_upper_theta,
        per_delta=known.J / lower.mu,
        certificate=certificate,
    )  # fmt: skip


def _complete(problem, constants, declared, x, theta, q, eps, g_x):
    """The bounds with every `None` estimated, L_upper, L_upper_theta, and what the certificate is worth."""
    estimated = False
    certain = True
    directions = ball_directions(x, g_x, q)
    J, M_H, M_J, L_J = declared.J, declared.M_H, declared.M_J, declared.L_J
    if J is None:
        J, certain = cross_norm(problem, x, theta)
    if M_H is None:
        estimated = True

        def product(x):
            return hessian_product(problem, x, theta, q)

        M_H = lipschitz(product, product(x), x, eps, directions)
    if M_J is None or L_J is None:
        estimated = True
        norm_q = optax.tree.norm(q)
        # along q, which M_J is about; where q = 0 along anything else, for L_J is not zero then
        along_q = optax.tree.scale(1 / jnp.where(norm_q > 0, norm_q, 1), q)
        unit = optax.tree.where(norm_q > 0, along_q, directions[-1])

        def transpose_product(x):
            return cross_transpose_product(problem, x, theta, unit)

        quotient = lipschitz(transpose_product, transpose_product(x), x, eps, directions)
        M_J = quotient * norm_q if M_J is None else M_J
        L_J = quotient if L_J is None else L_J
    if (L_upper := constants.L_upper) is None:
        estimated = True
        L_upper = lipschitz(lambda x: jax.grad(problem.upper)(x, theta), g_x, x, eps, directions)
    if (L_upper_theta := constants.L_upper_theta) is None:
        L_upper_theta = 0.0
        if reads_theta(problem, x, theta):
            estimated = True

            def g_theta(x):
                return jax.grad(problem.upper, argnums=1)(x, theta)

            L_upper_theta = lipschitz(g_theta, g_theta(x), x, eps, directions)
    certificate = "estimated" if estimated else "proven" if certain else "probable"
    return Bounds(J, M_H, M_J, L_J), L_upper, L_upper_theta, certificate
