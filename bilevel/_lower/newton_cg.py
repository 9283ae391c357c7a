"""Newton's method, its systems by conjugate gradients."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import lax

from .._linalg.cg import cg_iterations
from .solver import AbstractLowerSolver


class NewtonCG(AbstractLowerSolver):
    """x+ = x + t d with ||H d + rho|| <= eta ||rho|| by conjugate gradients; t halves until ||rho|| falls.

    `<rho, H d> <= -(1 - eta) ||rho||^2` makes d a descent direction of ||rho||, so the halving ends, for any strongly
    convex h. eta = min(1/2, sqrt(||rho|| / ||rho_0||)), never below what reaches the goal (Dembo, Eisenstat, Steihaug
    1982). All of it in the problem's metric, if it declares one: that preconditions the conjugate gradients.
    """

    def init(self, x, rho, curvature):
        zero = jnp.zeros((), jax.tree.leaves(x)[0].dtype)
        return x, optax.tree.zeros_like(x), jnp.full_like(zero, jnp.inf), zero, zero

    def step(self, level, it):
        base, d, previous, t, first = it.memory
        falls = it.dual <= (1 - 1e-4 * t) * previous
        # under vmap both branches run: where nothing is accepted, at e^800 perhaps, no products are wasted on it
        most = jnp.where(falls, level.max_cost - it.cost - 1, 0)

        def accept():
            begun = jnp.where(jnp.isinf(previous), it.dual, first)
            eta = jnp.minimum(0.5, jnp.sqrt(it.dual / begun))
            goal = jnp.maximum(eta * it.dual, 0.5 * jnp.minimum(level.goal, it.dual))
            zeros = optax.tree.zeros_like(it.x)
            d, products, bad, _ = cg_iterations(
                lambda v: level.product(it.x, v), zeros, optax.tree.scale(-1, it.rho), lambda q: goal,
                mu=level.disproof, L=it.L, u=level.u, max_products=most,
                metric=level.metric, precondition=level.preconditioner,
            )  # fmt: skip
            return (it.x, d, it.dual, jnp.ones_like(t), begun), products, bad

        def shorten():
            return (base, d, previous, t / 2, first), jnp.asarray(0, jnp.int32), jnp.asarray(False)

        memory, products, bad = lax.cond(falls, accept, shorten)
        base, d, _, t, _ = memory
        new = it.move(level, optax.tree.add_scale(base, t, d), memory, products, bad)
        # e^s may overflow at the end of a full step: nothing of that point is kept, and the next step is shorter
        lost = ~jnp.isfinite(new.dual) & jnp.isfinite(it.dual) & (t > 1e-9)
        kept = {name: getattr(it, name) for name in ("x", "rho", "residual", "dual", "L")}
        return jax.tree.map(partial(jnp.where, lost), dataclasses.replace(new, **kept), new)
