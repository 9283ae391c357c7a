"""Descend h(., theta) until the error is certified: one loop, one stopping rule, whatever the method.

    eps = (||rho|| + u L ||x||) / mu  >=  ||x - xhat(theta)||,      rho = grad_x h(x, theta)

Stops when eps is at most the eps asked for. Below twice the rounding floor u L ||x|| / mu there is nothing to gain: the
loop stops at the floor and the result says so.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Int

from . import secants
from .bounds import dual_norm, lower_error, rounding, unit_roundoff
from .krylov import lanczos
from .problem import AbstractProblem, Scalar, Vector, hessian_product, lower_gradient
from .results import RESULTS

LANCZOS_STEPS = 20
Count = Int[Array, ""]
Operator = Callable[[Vector], Vector]


class LowerSolution(eqx.Module):
    """`x`, a bound `error` >= ||x - xhat||, the `result`, and what it cost.

    `rho` is grad_x h at x, `residual` its norm, in the metric if there is one; `mu`, `L` are the constants used;
    `floor` is the part of `error` that is rounding; `curvature` what the solver learnt of H, for a next solve nearby;
    `certified` says that mu was declared, not estimated.
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
    certified: bool = eqx.field(static=True)

    def inverse(self, P: Operator | None) -> Operator | None:
        """The best known stand-in for H^{-1}: L-BFGS's from the solve's pairs on top of P^{-1}; or P^{-1}."""
        return P if self.curvature is None else lambda v: secants.apply(self.curvature, v, P)


class LowerLevel(eqx.Module):
    """h(., theta) as the methods see it. `goal` is mu times the eps asked for."""

    problem: AbstractProblem
    theta: Vector
    mu: Scalar
    goal: Scalar
    metric: Vector | None
    terms: Scalar | float
    max_cost: Count
    u: float = eqx.field(static=True)
    L_known: bool = eqx.field(static=True)

    preconditioner: Operator | None

    def gradient(self, x: Vector) -> Vector:
        return lower_gradient(self.problem, x, self.theta)

    def product(self, x: Vector, v: Vector) -> Vector:
        return hessian_product(self.problem, x, self.theta, v)

    def noise(self, it: "Iterate") -> Scalar:
        """The rounding in rho: below this nothing can be told."""
        return rounding(it.L, optax.tree.norm(it.x), self.terms, self.u)

    def stalled(self, it: "Iterate", since_best: Count) -> Bool[Array, ""]:
        # a kink drives the secants, and so L, to infinity: patience has to end all the same
        return since_best > 100 + 20 * jnp.minimum(jnp.sqrt(it.L / self.mu), 5e3)


class Iterate(eqx.Module):
    """x with its gradient rho, and what a method remembers. L is the declared constant, or the largest secant seen.

    `residual` is ||rho||, for the methods; `dual` the same in the problem's metric, for the certificate.
    """

    x: Vector
    rho: Vector
    residual: Scalar
    dual: Scalar
    L: Scalar
    lower_gradients: Count
    hessian_products: Count
    negative_curvature: Bool[Array, ""]
    memory: Any

    @property
    def cost(self) -> Count:
        return self.lower_gradients + self.hessian_products

    def move(
        self,
        level: LowerLevel,
        x: Vector,
        memory: Any,
        products: Count | int = 0,
        negative_curvature: Bool[Array, ""] | bool = False,
    ) -> "Iterate":
        """The iterate at x, its gradient evaluated; `products` and `negative_curvature`: what the step saw of H."""
        rho = level.gradient(x)
        L = self.L
        if not level.L_known:
            dx, drho = optax.tree.norm(optax.tree.sub(x, self.x)), optax.tree.norm(optax.tree.sub(rho, self.rho))
            L = jnp.where((drho > L * dx) & (dx > 0), drho / jnp.where(dx > 0, dx, 1), L)
        norm = optax.tree.norm(rho)
        dual = norm if level.metric is None else dual_norm(rho, level.metric)
        return Iterate(
            x, rho, norm, dual, L, self.lower_gradients + 1, self.hessian_products + products,
            self.negative_curvature | negative_curvature, memory,
        )  # fmt: skip


class AbstractLowerSolver(eqx.Module):
    """A method for the lower level: what it remembers at the start, and one step that evaluates one gradient.

    What a solve learns of H is handed on: H at the next theta, or at the next accuracy, is nearly the same.
    """

    def curvature(self, x: Vector) -> Any:
        """What is known of H before the first solve, `secants.Pairs`; x tells its shapes. Nothing, by default."""
        return None

    @abc.abstractmethod
    def init(self, x: Vector, rho: Vector, curvature: Any) -> Any:
        """The memory at the starting point; `curvature` from an earlier solve, for this theta or another."""

    def learnt(self, memory: Any) -> Any:
        """The `curvature` in a memory."""
        return None

    @abc.abstractmethod
    def step(self, level: LowerLevel, it: Iterate) -> Iterate:
        """The next iterate; spends at most level.max_cost - it.cost."""


def preconditioner(problem: AbstractProblem, x: Vector, theta: Vector) -> Operator | None:
    """v -> P^{-1} v by the problem, or W^{-1} v by its metric; None if it has neither."""
    P, W = problem.preconditioner(x, theta), problem.constants(theta).metric
    return P if P is not None or W is None else lambda v: jax.tree.map(jnp.divide, v, W)


def overhead(problem: AbstractProblem, theta: Vector, size: int) -> int:
    """The cost of a solve before its first step: the gradient at the start, and estimates of mu and L; x has `size`
    entries."""
    constants = problem.constants(theta)
    return 1 + (min(LANCZOS_STEPS, size) if constants.mu is None else 0 if constants.L is not None else 1)


def iterate(level: LowerLevel, solver: AbstractLowerSolver, start: Iterate) -> tuple[Iterate, Count]:
    """Steps from `start` until ||rho|| and its rounding are at most `level.goal`, or there is no reason to go on: the
    last iterate, and how many steps ago ||rho|| was smallest."""
    mu, goal = level.mu, level.goal
    reach = optax.tree.norm(start.x) + 2 * start.residual / mu  # >= ||x|| if x comes no farther from xhat than at first

    def unfinished(carry):
        it, _, since_best = carry

        def decide():
            noise = level.noise(it)
            return it.dual > jnp.maximum(goal - noise, noise)

        # ||x|| is a pass over memory: taken only once ||rho|| is near enough to a target for it to decide
        far = it.dual > jnp.maximum(goal, 2 * rounding(it.L, reach, level.terms, level.u))
        above = lax.cond(far, lambda: jnp.asarray(True), decide)
        going = (it.cost < level.max_cost) & jnp.isfinite(it.dual) & ~it.negative_curvature
        return above & going & ~level.stalled(it, since_best) & (mu > 0)

    def step(carry):
        it, best, since_best = carry
        it = solver.step(level, it)
        return it, jnp.minimum(best, it.dual), jnp.where(it.dual < best, 0, since_best + 1)

    it, _, since_best = lax.while_loop(unfinished, step, (start, start.dual, jnp.asarray(0, jnp.int32)))
    return it, since_best


def descend(
    problem: AbstractProblem,
    solver: AbstractLowerSolver,
    theta: Vector,
    x0: Vector,
    eps: Scalar,
    max_cost: Count,
    curvature: Any = None,
) -> LowerSolution:
    """Minimise h(., theta) from x0 until the certified error is at most eps, or max_cost is spent.

    `curvature`: that of an earlier solution by the same solver; it changes the cost, never the certificate.
    max_cost is at least `overhead(problem, theta, size)`. Traceable; `bilevel.solve_lower` is the public face.
    """
    constants = problem.constants(theta)
    dtype = eps.dtype
    u = unit_roundoff(dtype)
    rho = lower_gradient(problem, x0, theta)
    residual = optax.tree.norm(rho)
    products = 0
    if constants.mu is None:
        smallest, largest, products = lanczos(
            lambda v: hessian_product(problem, x0, theta, v), x0, LANCZOS_STEPS
        )  # half the smallest Ritz value: they approach lambda_min from above
        mu, L = smallest / 2, largest
    elif constants.L is None:
        products = 1
        Hrho = hessian_product(problem, x0, theta, rho)
        mu, L = constants.mu, optax.tree.norm(Hrho) / jnp.where(residual > 0, residual, 1)
    if constants.mu is not None:
        mu = jnp.asarray(constants.mu, dtype)
    L = jnp.maximum(jnp.asarray(L if constants.L is None else constants.L, dtype), mu)

    level = LowerLevel(
        problem, theta, mu, mu * eps, constants.metric,
        0.0 if constants.rounding is None else constants.rounding, max_cost, u, constants.L is not None,
        preconditioner(problem, x0, theta),
    )  # fmt: skip
    start = Iterate(
        x0,
        rho,
        residual,
        dual_norm(rho, constants.metric),
        L,
        jnp.asarray(1, jnp.int32),
        jnp.asarray(products, jnp.int32),
        jnp.asarray(False),
        solver.init(x0, rho, solver.curvature(x0) if curvature is None else curvature),
    )

    it, since_best = iterate(level, solver, start)

    noise = level.noise(it)
    error = jnp.where(mu > 0, lower_error(it.dual, noise, mu), jnp.inf)
    met = error <= eps * (1 + 8 * u)  # the loop's test and this one round apart
    result = RESULTS.where(met, RESULTS.converged, RESULTS.max_cost_reached)
    stuck = ~met & level.stalled(it, since_best)
    result = RESULTS.where(stuck, RESULTS.lower_stalled, result)
    near_floor = it.dual <= noise * 100 * jnp.sqrt(it.L / mu)  # where a method may hover
    at_floor = ~met & ((mu * eps < 2 * noise) & (it.dual <= noise) | stuck & near_floor)
    result = RESULTS.where(at_floor, RESULTS.accuracy_floor, result)
    result = RESULTS.where(it.negative_curvature, RESULTS.not_strongly_convex, result)
    result = RESULTS.where(jnp.isfinite(it.dual), result, RESULTS.non_finite)
    result = RESULTS.where(mu > 0, result, RESULTS.not_strongly_convex)
    return LowerSolution(
        it.x,
        it.rho,
        error,
        it.dual,
        result,
        mu,
        it.L,
        noise / mu,
        it.lower_gradients,
        it.hessian_products,
        solver.learnt(it.memory),
        constants.mu is not None,
    )
