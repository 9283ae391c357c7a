"""The lower level to a certified error.

    eps = (||rho|| + u L ||x||) / mu  >=  ||x - xhat(theta)||,      rho = grad_x h(x, theta)

Stops when eps is at most the eps asked for. Below twice the rounding floor u L ||x|| / mu there is nothing to gain: the
descent stops at the floor and the result says so. Where mu or L is not declared, it goes in rounds (`settle`). An h
with a kink is left to its problem, which has a solver and a proof of its own.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optax

from .._counts import Count
from .._linalg import lbfgs_pairs
from .._linalg.norms import dual_norm, norm
from .._linalg.rounding import unit_roundoff
from .._linalg.vectors import Scalar, Vector
from .._nonsmooth import AbstractNonsmoothProblem
from .._problem import AbstractProblem, lower_gradient
from .._results import RESULTS
from .local import Local
from .settle import settle
from .solver import AbstractLowerSolver, Iterate, LowerLevel, Operator, iterate, preconditioner
from .undeclared import look_cost


class LowerSolution(eqx.Module):
    """`x`, a bound `error` >= ||x - xhat||, the `result`, and what it cost.

    `rho` is grad_x h at x, `residual` its norm, in the metric if there is one; `mu`, `L` are the constants used;
    `floor` is the part of `error` that is rounding; `curvature` what the solver learnt of H, for a next solve nearby;
    `local` what H(x) tells beyond mu. `certificate`: "proven" where mu and L are declared, "probable" where L is
    Lanczos's upper bound (fails with probability at most 1e-10), "estimated" where mu is an estimate.
    """

    x: Vector
    rho: Vector
    error: Scalar
    residual: Scalar
    result: RESULTS
    mu: Scalar
    L: Scalar
    floor: Scalar
    lower_gradients: Count
    hessian_products: Count
    curvature: Any
    local: Local
    certificate: str = eqx.field(static=True)

    @property
    def certified(self) -> bool:
        return self.certificate != "estimated"

    def inverse(self, P: Operator | None) -> Operator | None:
        """The best known stand-in for H^{-1}: L-BFGS's from the solve's pairs on top of P^{-1}; or P^{-1}."""
        return P if self.curvature is None else lambda v: lbfgs_pairs.apply(self.curvature, v, P)


def overhead(problem: AbstractProblem, theta: Vector, size: int) -> int:
    """The cost of a solve that takes no step: the gradient at the start, and a look at mu and L where they are not
    declared; x has `size` entries."""
    # only what is declared matters; outside a program a loop among the constants would be compiled in every call
    return 1 + look_cost(eqx.filter_eval_shape(problem.constants, theta), size)


def lower_error(residual: Scalar, rounding: Scalar, mu: Scalar) -> Scalar:
    """eps = (||rho|| + rounding) / mu  >=  ||x - xhat||, by mu-strong convexity.

    In a metric, from <rho, x - xhat> >= mu ||x - xhat||_W^2: eps = (||rho||_{W^-1} + rounding) / mu >= ||x - xhat||_W.
    """
    return (residual + rounding) / mu


def descend(
    problem: AbstractProblem,
    solver: AbstractLowerSolver | None,
    theta: Vector,
    x0: Vector,
    eps: Scalar,
    max_cost: Count,
    curvature: Any = None,
    seed: Count | int = 0,
) -> LowerSolution:
    """Minimise h(., theta) from x0 until the certified error is at most eps, or max_cost is spent.

    `curvature`: that of an earlier solution by the same solver; it changes the cost, never the certificate. `seed`: of
    what Lanczos draws. max_cost is at least `overhead(problem, theta, size)`. Traceable; the public face is
    `bilevel.solve_lower`.
    """
    if isinstance(problem, AbstractNonsmoothProblem):
        return by_itself(problem, theta, x0, eps, max_cost, problem.memory(x0) if curvature is None else curvature)
    constants = problem.constants(theta)
    u = unit_roundoff(eps.dtype)
    known = constants.mu is not None and constants.L is not None
    mu, L = (jnp.asarray(1.0 if v is None else v, eps.dtype) for v in (constants.mu, constants.L))
    L = jnp.maximum(L, mu)
    rho = lower_gradient(problem, x0, theta)
    zero, one = jnp.asarray(0, jnp.int32), jnp.asarray(1, jnp.int32)
    level = LowerLevel(
        problem, theta, mu, mu * eps, L, jnp.zeros_like(mu) if constants.mu is None else mu, constants.metric,
        0.0 if constants.rounding is None else constants.rounding, max_cost, u, constants.L is not None,
        preconditioner(problem, x0, theta),
    )  # fmt: skip
    start = Iterate(
        x0, rho, norm(rho), dual_norm(rho, constants.metric), L, one, zero, jnp.asarray(False),
        solver.init(x0, rho, solver.curvature(x0) if curvature is None else curvature),
    )  # fmt: skip
    if known:
        it, since_best = iterate(level, solver, start)
    else:
        level, it, since_best = settle(level, solver, start, eps, jnp.asarray(seed, jnp.int32))

    mu, noise = level.mu, level.noise(it)
    positive = mu > 0
    error = jnp.where(positive, lower_error(it.dual, noise, jnp.where(positive, mu, 1)), jnp.inf)
    certificate = "proven" if known else "probable" if constants.mu is not None else "estimated"
    return LowerSolution(
        it.x, it.rho, error, it.dual, verdict(level, it, since_best, error, eps, constants.mu is not None), mu, level.L,
        noise / jnp.where(positive, mu, 1), it.lower_gradients, it.hessian_products, solver.learnt(it.memory),
        Local.unknown(mu), certificate,
    )  # fmt: skip


def by_itself(
    problem: AbstractNonsmoothProblem, theta: Vector, x0: Vector, eps: Scalar, max_cost: Count, memory: Any
) -> LowerSolution:
    """What the problem's own solver found; there is no gradient of h, and its memory is handed on as `curvature`."""
    found = problem.minimise(theta, x0, memory, eps, max_cost)
    none = jnp.full_like(found.error, jnp.nan)
    return LowerSolution(
        found.x, optax.tree.zeros_like(x0), found.error, none, found.result, none, none, found.floor,
        found.lower_gradients, found.hessian_products, found.memory, Local.unknown(none), found.certificate,
    )  # fmt: skip


def verdict(level: LowerLevel, it: Iterate, since_best: Count, error: Scalar, eps: Scalar, declared: bool) -> RESULTS:
    """Why the descent ended; `declared`: mu is."""
    noise, mu = level.noise(it), level.mu
    met = error <= eps * (1 + 8 * level.u)  # the loop's test and this one round apart
    # where a method may hover
    near_floor = it.dual <= noise * 100 * jnp.sqrt(level.L / jnp.where(mu > 0, mu, level.L))
    at_floor = (mu * eps < 2 * noise) & (it.dual <= noise) | level.stalled(it, since_best) & near_floor
    capped = it.cost >= level.max_cost - look_cost(level.problem.constants(level.theta), optax.tree.size(it.x))
    result = RESULTS.where(capped, RESULTS.max_cost_reached, RESULTS.lower_stalled)
    result = RESULTS.where(at_floor, RESULTS.accuracy_floor, result)
    result = RESULTS.where(met, RESULTS.converged, result)
    bent = RESULTS.not_strongly_convex if declared else RESULTS.not_convex
    result = RESULTS.where(it.negative_curvature | ~(mu > 0), bent, result)
    return RESULTS.where(jnp.isfinite(it.dual), result, RESULTS.non_finite)
