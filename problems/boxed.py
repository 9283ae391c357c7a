"""Any problem with a strongly convex h, its x kept in a box.

    xhat(theta) = argmin over low <= x <= high of h(x, theta),      ||x - xhat||_W <= ||v||_{W^-1} / mu

v is the shortest of all rho + (normals of the box at x), rho = grad_x h: rho itself inside, min(rho, 0) where x is low,
max(rho, 0) where it is high. For that element <v, x - xhat> >= mu ||x - xhat||_W^2, as without a box.

x by accelerated projected gradients, begun again where momentum points uphill (O'Donoghue, Candes, arXiv 1204.3982).
z on the entries F that are free: H_FF q_F = grad_F g, q = 0 elsewhere, z = grad_theta g - J^T q.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from bilevel import AbstractNonsmoothProblem, AbstractProblem, Bounds, Constants, Solved
from bilevel._counts import Count
from bilevel._linalg.cg import cg_iterations
from bilevel._linalg.norms import dual_norm, norm
from bilevel._linalg.rounding import rounding, unit_roundoff
from bilevel._linalg.vectors import Scalar, Vector
from bilevel._nonsmooth import verdict
from bilevel._problem import cross_transpose_product, hessian_product, lower_gradient

EVERY = 10  # steps between two looks at the error
ENOUGH = 1e-6  # of the adjoint's right-hand side
PATIENCE = 100  # looks at which the error has not fallen by a tenth


class Iterate(NamedTuple):
    """x, the point that momentum leads to, and t of it; the error, and the part of it that is rounding; L as it is
    declared or the largest secant; gradients; the least error so far, and how many looks ago that was."""

    x: Vector
    ahead: Vector
    t: Scalar
    error: Scalar
    floor: Scalar
    L: Scalar
    cost: Count
    best: Scalar
    since: Count


class Boxed(AbstractNonsmoothProblem):
    """`Boxed(problem, low, high)`: the problem with low <= x <= high in its lower level, 0 and infinity if left out.

    `problem`: an `AbstractProblem` that declares mu, as `Restoration` and `LinearRegression` do; theta, x and the upper
    level are its own. `low` < `high`: numbers, for every entry of x; one may be infinite. Values are certified, and
    proven where the problem declares L too; gradients are not, so a run ends as settled (`AbstractNonsmoothProblem`).

    Raises TypeError for what is no smooth problem, ValueError for ends that leave nothing between them, and for a mu
    that is not declared.
    """

    problem: AbstractProblem
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, problem: AbstractProblem, low: float = 0.0, high: float = math.inf):
        if not isinstance(problem, AbstractProblem) or isinstance(problem, AbstractNonsmoothProblem):
            raise TypeError(f"problem must be a bilevel.AbstractProblem with a smooth h, not {type(problem).__name__}")
        if not low < high:
            raise ValueError(f"low must be less than high, not {low!r} and {high!r}")
        self.problem, self.low, self.high = problem, float(low), float(high)

    def lower(self, x: Vector, theta: Vector) -> Scalar:
        """h(x, theta), whether x is in the box or not."""
        return self.problem.lower(x, theta)

    def upper(self, x: Vector, theta: Vector) -> Scalar:
        """g(x, theta)."""
        return self.problem.upper(x, theta)

    def guess(self, theta: Vector) -> Vector:
        """The problem's own, moved into the box."""
        return self.project(self.problem.guess(theta))

    def constants(self, theta: Vector) -> Constants:
        """The problem's own."""
        known = self.problem.constants(theta)
        if known.mu is None:
            raise ValueError(f"{type(self.problem).__name__} declares no mu, and without it nothing is known of xhat")
        return known

    def bounds(self, x: Vector, theta: Vector, q: Vector, radius: Scalar) -> Bounds:
        """The problem's own."""
        return self.problem.bounds(x, theta, q, radius)

    def project(self, x: Vector) -> Vector:
        """The nearest point of the box."""
        return jax.tree.map(lambda v: jnp.clip(v, self.low, self.high), x)

    def solve_cost(self, x: Vector) -> int:
        return 1

    def minimise(self, theta, x0, memory, eps, max_cost):
        """See above."""
        known = self.constants(theta).L is not None
        round_cost = (1 if known else 2) * EVERY + 1
        start = self.look(theta, self.begin(theta, self.project(x0), eps))

        def unfinished(it):
            going = (it.error > eps) & (it.error > 2 * it.floor) & (it.since < PATIENCE) & jnp.isfinite(it.error)
            return going & (it.cost + round_cost <= max_cost)

        def step(it):
            return self.look(theta, lax.fori_loop(0, EVERY, lambda _, it: self.descend(theta, it), it))

        it = lax.while_loop(unfinished, step, start)
        capped = it.cost + round_cost > max_cost
        result = verdict(it.error, it.floor, eps, unit_roundoff(eps.dtype), capped)
        certificate = "proven" if known else "estimated"
        return Solved(it.x, it.error, it.floor, None, result, it.cost, jnp.zeros_like(it.cost), certificate)

    def begin(self, theta: Vector, x: Vector, eps: Scalar) -> Iterate:
        known, one, zero = self.constants(theta), jnp.ones_like(eps), jnp.asarray(0, jnp.int32)
        L = jnp.asarray(known.mu if known.L is None else known.L, eps.dtype)
        inf = jnp.full_like(one, jnp.inf)
        return Iterate(x, x, one, inf, 0 * one, L, zero, inf, zero)

    def look(self, theta: Vector, it: Iterate) -> Iterate:
        """The error of x, from its gradient."""
        known, rho = self.constants(theta), lower_gradient(self.problem, it.x, theta)
        v = jax.tree.map(self.shortest, it.x, rho)
        terms = 0.0 if known.rounding is None else known.rounding
        floor = rounding(it.L, norm(it.x), terms, unit_roundoff(it.t.dtype)) / known.mu
        error = dual_norm(v, known.metric) / known.mu + floor
        less = error < 0.9 * it.best
        return it._replace(
            error=error, floor=floor, cost=it.cost + 1, best=jnp.where(less, error, it.best),
            since=jnp.where(less, 0, it.since + 1),
        )  # fmt: skip

    def shortest(self, x: Array, rho: Array) -> Array:
        """v, entry by entry."""
        v = jnp.where(x <= self.low, jnp.minimum(rho, 0), rho)
        return jnp.where(x >= self.high, jnp.maximum(v, 0), v)

    def descend(self, theta: Vector, it: Iterate) -> Iterate:
        """A projected step from where momentum leads."""
        rho, L = lower_gradient(self.problem, it.ahead, theta), it.L
        cost = it.cost + 1
        if self.constants(theta).L is None:  # H stretches its own gradient by so much at least
            curved, size = norm(hessian_product(self.problem, it.ahead, theta, rho)), norm(rho)
            L, cost = jnp.maximum(L, curved / jnp.where(size > 0, size, 1)), cost + 1
        new = self.project(optax.tree.add_scale(it.ahead, -1 / L, rho))
        moved = optax.tree.sub(new, it.x)
        uphill = optax.tree.vdot(optax.tree.sub(it.ahead, new), moved) > 0
        t = jnp.where(uphill, 1, it.t)
        longer = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        ahead = optax.tree.add_scale(new, (t - 1) / longer, moved)
        return it._replace(x=new, ahead=ahead, t=longer, L=L, cost=cost)

    def slope_cost(self, x: Vector) -> int:
        return 3

    def slope(self, theta, x, memory, max_cost):
        g_x, g_theta = jax.grad(self.problem.upper, argnums=(0, 1))(x, theta)
        free = jax.tree.map(lambda v: (v > self.low) & (v < self.high), x)
        b, zero = among(free, g_x), jnp.zeros_like(norm(x))
        goal = ENOUGH * norm(b)
        q, products, *_ = cg_iterations(
            lambda v: among(free, hessian_product(self.problem, x, theta, v)), optax.tree.zeros_like(b), b,
            lambda _: goal, mu=zero, L=zero, u=0.0, max_products=max_cost - 1,
        )  # fmt: skip
        return optax.tree.sub(g_theta, cross_transpose_product(self.problem, x, theta, q)), products + 1


def among(free: PyTree[Bool[Array, "..."]], v: PyTree[Float[Array, "..."]]) -> Vector:
    """v on the free entries, zero elsewhere."""
    return jax.tree.map(lambda free, v: jnp.where(free, v, 0), free, v)
