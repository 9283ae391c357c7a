"""Descend h(., theta) until ||rho|| is small enough: one loop, one stopping rule, whatever the solver.

A solver is what it remembers and one step, which ends with one gradient, at the iterate it returns, so that the
certificate is always of what is returned. One file has one solver.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool

from .._counts import Count
from .._linalg.norms import dual_norm, norm
from .._linalg.rounding import rounding
from .._linalg.vectors import Scalar, Vector
from .._problem import AbstractProblem, hessian_product, lower_gradient

Operator = Callable[[Vector], Vector]


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
        """What is known of H before the first solve, such as `lbfgs_pairs.CurvaturePairs`; x tells its shapes. By
        default nothing."""
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
