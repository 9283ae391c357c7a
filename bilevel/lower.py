"""Descend h(., theta) until the error is certified: one loop, one stopping rule, whatever the method.

    eps = (||rho|| + u L ||x||) / mu  >=  ||x - xhat(theta)||,      rho = grad_x h(x, theta)

Stops when eps is at most the eps asked for. Below twice the rounding floor u L ||x|| / mu there is nothing to gain: the
loop stops at the floor and the result says so.

Where mu or L is not declared, the loop runs in rounds: look at the curvature where x is (`undeclared.look`), descend to
what it promises, look again. What is claimed rests on the last look, after which x did not move.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Int

from . import secants
from .bounds import lower_error, rounding, unit_roundoff
from .local_curvature import Local
from .norms import dual_norm, norm
from .problem import AbstractProblem, Scalar, Vector, hessian_product, lower_gradient
from .results import RESULTS
from .undeclared import look, look_cost

ROUNDS = 10  # of looking and descending, where mu or L is not declared
Count = Int[Array, ""]
Operator = Callable[[Vector], Vector]


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
        return P if self.curvature is None else lambda v: secants.apply(self.curvature, v, P)


class LowerLevel(eqx.Module):
    """h(., theta) as the methods see it. `goal` is mu times the eps asked for; `L` sets the rounding; `disproof` is the
    curvature below which h is not what it was said to be: mu where that is declared, else 0."""

    problem: AbstractProblem
    theta: Vector
    mu: Scalar
    goal: Scalar
    L: Scalar
    disproof: Scalar
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
        return rounding(self.L, norm(it.x), self.terms, self.u)

    def stalled(self, it: "Iterate", since_best: Count) -> Bool[Array, ""]:
        patience = 100 + 20 * jnp.minimum(jnp.sqrt(self.L / self.mu), 5e3)
        return since_best.astype(patience.dtype) > patience


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
            dx, drho = norm(optax.tree.sub(x, self.x)), norm(optax.tree.sub(rho, self.rho))
            L = jnp.where((drho > L * dx) & (dx > 0), drho / jnp.where(dx > 0, dx, 1), L)
        residual = norm(rho)
        dual = residual if level.metric is None else dual_norm(rho, level.metric)
        return Iterate(
            x, rho, residual, dual, L, self.lower_gradients + 1, self.hessian_products + products,
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
    """The cost of a solve that takes no step: the gradient at the start, and a look at mu and L where they are not
    declared; x has `size` entries."""
    return 1 + look_cost(problem.constants(theta), size)


def iterate(level: LowerLevel, solver: AbstractLowerSolver, start: Iterate) -> tuple[Iterate, Count]:
    """Steps from `start` until ||rho|| and its rounding are at most `level.goal`, or there is no reason to go on: the
    last iterate, and how many steps ago ||rho|| was smallest."""
    mu, goal = level.mu, level.goal
    reach = norm(start.x) + 2 * start.residual / mu  # >= ||x|| if x comes no farther from xhat than at first

    def unfinished(carry):
        it, _, since_best = carry

        def decide():
            noise = level.noise(it)
            return it.dual > jnp.maximum(goal - noise, noise)

        # ||x|| is a pass over memory: taken only once ||rho|| is near enough to a target for it to decide
        far = it.dual > jnp.maximum(goal, 2 * rounding(level.L, reach, level.terms, level.u))
        above = lax.cond(far, lambda: jnp.asarray(True), decide)
        going = (it.cost < level.max_cost) & jnp.isfinite(it.dual) & ~it.negative_curvature
        return above & going & ~level.stalled(it, since_best) & (mu > 0)

    def step(carry):
        it, best, since_best = carry
        it = solver.step(level, it)
        return it, jnp.minimum(best, it.dual), jnp.where(it.dual < best, 0, since_best + 1)

    it, _, since_best = lax.while_loop(unfinished, step, (start, start.dual, jnp.asarray(0, jnp.int32)))
    return it, since_best


def settle(
    level: LowerLevel, solver: AbstractLowerSolver, start: Iterate, eps: Scalar, seed: Count
) -> tuple[LowerLevel, Iterate, Count]:
    """Rounds of looking at mu and L and descending, until a look leaves nothing to do: the level with what the last
    look saw, the iterate, and how many steps ago ||rho|| was smallest. The last look is where x is."""
    constants = level.problem.constants(level.theta)
    size = optax.tree.size(start.x)
    price = look_cost(constants, size)

    def one(carry):
        _, _, it, since_best, last, rounds, _ = carry
        seen = look(level.problem, level.theta, it.x, it.rho, seed + rounds)
        # a mu for the methods even where h is not convex: it may become so on the way
        usable = jnp.maximum(seen.near, 1e-8 * seen.L)
        told = dataclasses.replace(level, mu=usable, L=seen.L)
        noise = told.noise(it)
        # x may be near enough by its own curvature, and not by that on the way to xhat
        goal = jnp.where(it.dual + noise <= usable * eps, seen.mu, usable) * eps
        it = dataclasses.replace(
            it,
            hessian_products=it.hessian_products + price,
            L=jnp.maximum(seen.largest, usable),
            # a Ritz value is no smaller than the smallest eigenvalue, so it may disprove a declared mu
            negative_curvature=it.negative_curvature | (seen.smallest < 0.999 * level.disproof - 8 * level.u * seen.L),
        )
        # the price of one more look is kept back: x that moves must be looked at again
        budget = jnp.where(last, 0, level.max_cost - price)
        told = dataclasses.replace(told, goal=goal, max_cost=budget.astype(level.max_cost.dtype))
        moved, since = iterate(told, solver, it)
        # down a saddle, out of what is finite: back to where h was seen not to be convex
        lost = (seen.near <= 0) & ~jnp.isfinite(moved.dual) & jnp.isfinite(it.dual)
        stay = dataclasses.replace(
            it,
            lower_gradients=moved.lower_gradients,
            hessian_products=moved.hessian_products,
            negative_curvature=jnp.asarray(True),
        )
        moved = jax.tree.map(lambda stay, moved: jnp.where(lost, stay, moved), stay, moved)
        settled = (moved.lower_gradients == it.lower_gradients) | lost
        since_best = jnp.where(settled, since_best, since)
        # nothing more is to be had by steps: one last look
        last = told.stalled(moved, since) | (rounds >= ROUNDS) | moved.negative_curvature | ~jnp.isfinite(moved.dual)
        return seen.mu, seen.L, moved, since_best, last, rounds + 1, settled

    zero, false = jnp.asarray(0, jnp.int32), jnp.asarray(False)
    carry = (level.mu, level.L, start, zero, false, zero, false)
    mu, L, it, since_best, *_ = lax.while_loop(lambda carry: ~carry[-1], one, carry)
    return dataclasses.replace(level, mu=mu, L=L), it, since_best


def descend(
    problem: AbstractProblem,
    solver: AbstractLowerSolver,
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
