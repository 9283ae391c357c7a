"""The inexact hypergradient and its certificate, from residuals that were measured, not asked for.

    H q = grad_x g   to   delta = ||H q - grad_x g||,        z = grad_theta g - J^T q
    eta_q = (M_H eps + delta + L_g eps) / mu  >=  ||q - qhat||
    omega = ||J|| eta_q + M_J eps + L_J eps eta_q  >=  ||z - grad f||

Section 3 of arXiv 2308.10098, with actual residuals, and products with q bounded where the problem can.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from .._counts import Count
from .._linalg.cg import conjugate_gradients
from .._linalg.norms import metric_norm, norm
from .._linalg.rounding import rounding, unit_roundoff
from .._linalg.vectors import Scalar, Vector
from .._lower.descend import LowerSolution
from .._lower.solver import preconditioner
from .._problem import (
    AbstractProblem,
    Bounds,
    bounds_along,
    cross_transpose_product,
    hessian_product,
    upper_smoothness,
)
from .._results import RESULTS
from . import inequalities
from .dependence import reads
from .estimates import DIRECTIONS, ball_directions, cross_norm, cross_norm_cost, lipschitz

KINDS = ("proven", "probable", "estimated")


def weakest(*kinds: str) -> str:
    """What a certificate is worth that rests on several."""
    return max(kinds, key=KINDS.index)


class Hypergradient(eqx.Module):
    """z and omega >= ||z - grad f||; the adjoint q and its residual delta; the kind of certificate.

    `mu`, `eps`: those of the lower level, or what conjugate gradients have left of them where mu is an estimate.
    omega ~ per_eps eps + per_delta delta + per_eps2 eps^2 + per_both eps delta, but for rounding: a model of
    what it is at smaller eps and delta, by the bounds of this ball (and t of `Local`).
    `certificate` is "proven", "probable" (||J|| or L by Lanczos: fails with probability at most 1e-10) or "estimated".
    """

    gradient: Vector
    norm: Scalar
    error: Scalar
    q: Vector
    delta: Scalar
    mu: Scalar
    eps: Scalar
    result: RESULTS
    hessian_products: Count
    cross_products: Count
    per_eps: Scalar
    per_delta: Scalar
    per_eps2: Scalar
    per_both: Scalar
    certificate: str = eqx.field(static=True)


def gradient_moves(problem: AbstractProblem, x: Vector, theta: Vector) -> bool:
    """Whether grad_theta g moves with x, from its trace: it does not where g(x, theta) = g1(x) + g2(theta)."""
    return any(jax.tree.leaves(reads(lambda x: jax.grad(problem.upper, argnums=1)(x, theta), x)))


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
    x, u = lower.x, unit_roundoff(lower.error.dtype)
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
    noise = rounding(lower.L, norm_q, norm(g_x), u)
    declared = bounds_along(problem, x, theta, q, eps)
    known, L_upper, L_upper_theta, certificate = _complete(problem, constants, declared, x, theta, q, eps, g_x, seed)
    achieved = solution.residual + noise
    beta = inequalities.adjoint_defect(eps, achieved, known.M_H, L_upper)
    amplified, least, slope = _amplification(lower, known, mu, eps)
    omega = inequalities.hypergradient_error(eps, beta, amplified, known.M_J, L_upper_theta)
    cancelled = 0.0 if constants.rounding_cross is None else constants.rounding_cross
    omega += rounding(known.J + cancelled, metric_norm(q, constants.metric), norm(g_theta), u)

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
        hessian_products=solution.products + extra_hessian,
        cross_products=jnp.asarray(overhead - extra_hessian, jnp.int32),
        per_eps=least * (known.M_H + L_upper) + known.M_J + L_upper_theta,
        per_delta=least,
        per_eps2=slope * (known.M_H + L_upper),
        per_both=slope,
        certificate=weakest(certificate, lower.certificate),
    )  # fmt: skip


def _amplification(lower, known, mu, eps):
    """A >= ||H(xhat)^{-1} J(xhat)||, A0 at eps = 0, and a slope: A0 + slope e bounds A at every e <= eps."""

    def both(eps):
        return inequalities.amplification(eps, known.J, known.L_J, mu), lower.local.amplification(eps, known.L_J)

    (one, other), (one_at_0, other_at_0) = both(eps), both(jnp.zeros_like(eps))
    least, own = jnp.minimum(one_at_0, other_at_0), jnp.where(one_at_0 <= other_at_0, one, other)
    rises = (own > least) & jnp.isfinite(own)
    return jnp.minimum(one, other), least, jnp.where(rises, (own - least) / jnp.where(rises, eps, 1), 0)


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
    if (L_upper := upper_smoothness(constants, declared)) is None:
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
