"""The inexact hypergradient and its certificate, from residuals that were measured, not asked for.

    H q = grad_x g   to   delta = ||H q - grad_x g||,        z = grad_theta g - J^T q
    eta_q = (M_H eps + delta + L_g eps) / mu  >=  ||q - qhat||
    omega = ||J|| eta_q + M_J eps + L_J eps eta_q  >=  ||z - grad f||

Section 3 of arXiv 2308.10098, with actual residuals, and products with q bounded where the problem can.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from . import bounds as inequalities
from .dependence import reads
from .estimates import DIRECTIONS, ball_directions, cross_norm, cross_norm_cost, lipschitz
from .krylov import conjugate_gradients
from .local_curvature import local_curvature
from .lower import AbstractLowerSolver, LowerSolution, descend, preconditioner
from .norms import dual_norm, metric_norm, norm
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
KINDS = ("proven", "probable", "estimated")


def weakest(*kinds: str) -> str:
    """What a certificate is worth that rests on several."""
    return max(kinds, key=KINDS.index)


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


class Hypergradient(eqx.Module):
    """z and omega >= ||z - grad f||; the adjoint q and its residual delta; the kind of certificate.

    `mu`, `eps`: those of the lower level, or what conjugate gradients have left of them where mu is an estimate.
    `per_eps` and `per_delta`: what omega gains with eps and with delta, to first order. `certificate` is "proven",
    "probable" (||J|| or L by Lanczos: fails with probability at most 1e-10) or "estimated".
    """

    gradient: Vector
    norm: Scalar
    error: Scalar
    q: Vector
    delta: Scalar
    mu: Scalar
    eps: Scalar
    result: RESULTS
    lower_gradients: Count
    hessian_products: Count
    cross_products: Count
    per_eps: Scalar
    per_delta: Scalar
    certificate: str = eqx.field(static=True)


def gradient_moves(problem: AbstractProblem, x: Vector, theta: Vector) -> bool:
    """Whether grad_theta g moves with x, from its trace: it does not where g(x, theta) = g1(x) + g2(theta)."""
    return any(jax.tree.leaves(reads(lambda x: jax.grad(problem.upper, argnums=1)(x, theta), x)))


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
    return inequalities.value_rounding(value, optax.tree.size(x), terms, inequalities.unit_roundoff(value.dtype))


def evaluate(
    problem: AbstractProblem,
    solver: AbstractLowerSolver,
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
    if (L_upper := constants.L_upper) is None:
        directions = ball_directions(lower.x, g_x, lower.x)
        radius = jnp.where(jnp.isfinite(lower.error), lower.error, 0)
        L_upper = lipschitz(lambda x: jax.grad(problem.upper)(x, theta), g_x, lower.x, radius, directions)
    norm_g_x = dual_norm(g_x, constants.metric)
    rounding = value_rounding(problem, lower.x, theta, value)
    error = inequalities.value_error(norm_g_x, lower.error, L_upper, rounding)
    # a convex g lies above its tangent at x: below g(x) the quadratic term is not needed
    below = inequalities.value_error(norm_g_x, lower.error, 0.0, rounding) if constants.convex_upper else error
    certificate = "estimated" if constants.L_upper is None else lower.certificate
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
    M_H = problem.bounds(x, theta, q, eps).M_H
    if M_H is None or constants.L_upper is None:
        return point
    u = inequalities.unit_roundoff(eps.dtype)
    Hq = hessian_product(problem, x, theta, q)
    g_x = jax.grad(problem.upper)(x, theta)
    norm_q, L = norm(q), point.lower.L
    delta = dual_norm(optax.tree.sub(Hq, g_x), constants.metric)
    delta += inequalities.rounding(L, norm_q, norm(g_x), u)
    terms = 0.0 if constants.rounding is None else constants.rounding
    noise = norm_q * inequalities.rounding(L, norm(x), terms, u)
    value = problem.upper(x, theta)
    noise += value_rounding(problem, x, theta, value)
    products = jax.tree.map(lambda q, rho: jnp.abs(q * rho), q, point.lower.rho)
    noise += 2 * u * optax.tree.sum(products)
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
    problem: AbstractProblem,
    theta: Vector,
    lower: LowerSolution,
    q0: Vector,
    delta: Scalar,
    max_cost: Count,
    seed: Count | int = 0,
) -> Hypergradient:
    """Solve the adjoint system to delta from q0, form z, bound its error. max_cost > `certificate_cost`. Traceable."""
    x, u = lower.x, inequalities.unit_roundoff(lower.error.dtype)
    constants = problem.constants(theta)
    g_x, g_theta = jax.grad(problem.upper, argnums=(0, 1))(x, theta)
    overhead = certificate_cost(problem, x, theta)
    solution = conjugate_gradients(
        lambda v: hessian_product(problem, x, theta, v),
        g_x, q0, delta=delta, mu=jnp.zeros_like(lower.mu) if constants.mu is None else lower.mu, L=lower.L, u=u,
        max_products=max_cost - overhead, metric=constants.metric,
        precondition=lower.inverse(preconditioner(problem, x, theta)),
    )  # fmt: skip
    q = solution.q
    z = optax.tree.sub(g_theta, cross_transpose_product(problem, x, theta, q))

    mu, eps = lower.mu, lower.error
    if constants.mu is None:  # an estimate that conjugate gradients contradict
        mu = jnp.minimum(mu, jnp.maximum(solution.least, 0) / 2)
        eps = jnp.where(mu < lower.mu, jnp.where(mu > 0, eps * lower.mu / jnp.where(mu > 0, mu, 1), jnp.inf), eps)
    norm_q = norm(q)
    noise = inequalities.rounding(lower.L, norm_q, norm(g_x), u)
    declared = problem.bounds(x, theta, q, eps)
    known, L_upper, L_upper_theta, certificate = _complete(problem, constants, declared, x, theta, q, eps, g_x, seed)
    achieved = solution.residual + noise
    beta = inequalities.adjoint_defect(eps, achieved, known.M_H, L_upper)
    amplified = jnp.minimum(
        inequalities.amplification(eps, known.J, known.L_J, mu), lower.local.amplification(eps, known.L_J)
    )
    omega = inequalities.hypergradient_error(eps, beta, amplified, known.M_J, L_upper_theta)
    cancelled = 0.0 if constants.rounding_cross is None else constants.rounding_cross
    omega += inequalities.rounding(known.J + cancelled, metric_norm(q, constants.metric), norm(g_theta), u)

    result = RESULTS.where(achieved <= delta * (1 + 1e-6), RESULTS.converged, RESULTS.accuracy_floor)
    capped = (achieved > delta) & (solution.products >= max_cost - overhead)
    result = RESULTS.where(capped, RESULTS.max_cost_reached, result)
    bent = RESULTS.not_convex if constants.mu is None else RESULTS.not_strongly_convex
    result = RESULTS.where(solution.negative_curvature, bent, result)
    size = norm(z)
    finite = jnp.isfinite(size) & jnp.isfinite(solution.residual) & ~jnp.isnan(omega)
    result = RESULTS.where(finite, result, RESULTS.non_finite)
    extra_hessian = 1 + DIRECTIONS if declared.M_H is None else 0
    return Hypergradient(
        z, size, omega, q, achieved, mu, eps, result,
        lower_gradients=jnp.asarray(0, jnp.int32),
        hessian_products=solution.products + extra_hessian,
        cross_products=jnp.asarray(overhead - extra_hessian, jnp.int32),
        per_eps=amplified * (known.M_H + L_upper) + known.M_J + L_upper_theta,
        per_delta=amplified,
        certificate=weakest(certificate, lower.certificate),
    )  # fmt: skip


def _complete(problem, constants, declared, x, theta, q, eps, g_x, seed):
    """The bounds with every `None` estimated, L_upper, L_upper_theta, and what the certificate is worth."""
    kind = "proven"
    radius = jnp.where(jnp.isfinite(eps), eps, 0)
    directions = ball_directions(x, g_x, q)
    J, M_H, M_J, L_J = declared.J, declared.M_H, declared.M_J, declared.L_J
    if J is None:
        J, certain = cross_norm(problem, x, theta, seed)
        kind = "proven" if certain else "probable"
    if M_H is None:
        kind = "estimated"

        def product(x):
            return hessian_product(problem, x, theta, q)

        M_H = lipschitz(product, product(x), x, radius, directions)
    if M_J is None or L_J is None:
        kind = "estimated"
        norm_q = norm(q)
        # along q, which M_J is about; where q = 0 along anything else, for L_J is not zero then
        along_q = jax.tree.map(lambda q: q / jnp.where(norm_q > 0, norm_q, 1), q)
        unit = optax.tree.where(norm_q > 0, along_q, directions[-1])

        def transpose_product(x):
            return cross_transpose_product(problem, x, theta, unit)

        quotient = lipschitz(transpose_product, transpose_product(x), x, radius, directions)
        M_J = quotient * norm_q if M_J is None else M_J
        L_J = quotient if L_J is None else L_J
    if (L_upper := constants.L_upper) is None:
        kind = "estimated"
        L_upper = lipschitz(lambda x: jax.grad(problem.upper)(x, theta), g_x, x, radius, directions)
    if (L_upper_theta := constants.L_upper_theta) is None:
        L_upper_theta = 0.0
        if gradient_moves(problem, x, theta):
            kind = "estimated"

            def g_theta(x):
                return jax.grad(problem.upper, argnums=1)(x, theta)

            L_upper_theta = lipschitz(g_theta, g_theta(x), x, radius, directions)
    return Bounds(J, M_H, M_J, L_J), L_upper, L_upper_theta, kind
