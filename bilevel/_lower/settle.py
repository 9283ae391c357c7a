"""Where mu or L is not declared, the descent goes in rounds: look at the curvature where x is (`undeclared.look`),
descend to what it promises, look again. What is claimed rests on the last look, after which x did not move.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax import lax

from .._counts import Count
from .._linalg.vectors import Scalar
from .solver import AbstractLowerSolver, Iterate, LowerLevel, iterate
from .undeclared import look, look_cost

ROUNDS = 10  # of looking and descending


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
