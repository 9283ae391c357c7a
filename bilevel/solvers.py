"""Four methods for the lower level, one step each; `lower.descend` runs them and decides when to stop.

Every step ends with one gradient, at the iterate it returns, so that the certificate is always of what is returned.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax

from . import secants
from .krylov import cg_iterations
from .lower import AbstractLowerSolver


class GradientDescent(AbstractLowerSolver):
    """x+ = x - 2/(L + mu) grad h(x): contracts by (kappa - 1)/(kappa + 1) a step, kappa = L/mu."""

    def init(self, x, rho, curvature):
        return None

    def step(self, level, it):
        return it.move(level, optax.tree.add_scale(it.x, -2 / (it.L + level.mu), it.rho), None)


class Nesterov(AbstractLowerSolver):
    """v+ = x - grad h(x)/L,  x+ = v+ + beta (v+ - v),  beta = (sqrt(kappa) - 1)/(sqrt(kappa) + 1): about sqrt(kappa)
    steps a digit. Nesterov, Lectures on Convex Optimization (2018), scheme 2.2.22. The gradient, and so the
    certificate, is at x.
    """

    def init(self, x, rho, curvature):
        return optax.tree.zeros_like(x)

    def step(self, level, it):
        # kept as u = v+ - v, which is updated in place; v itself would be copied twice a step
        root, s = jnp.sqrt(it.L / level.mu), 1 / it.L
        beta = (root - 1) / (root + 1)
        u = jax.tree.map(lambda u, rho: beta * u - s * rho, it.memory, it.rho)
        x = jax.tree.map(lambda x, rho, u: (x - s * rho) + beta * u, it.x, it.rho, u)
        return it.move(level, x, u)


class LBFGS(AbstractLowerSolver):
    """x+ = x - t B grad h(x), B from the last secant pairs, t from gradients alone.

    For convex h the slope phi'(t) = <grad h(x + t d), d> grows with t, so phi'(t) <= 0.9 |phi'(0)| rules out a serious
    overshoot; otherwise t moves to the secant's root. Values of h are never needed, so it converges to the dtype's
    floor, where a comparison of values would stall at the square root of it. The pairs outlive a solve.

    `pairs`: how many are kept; left out, 30, or as many as stay in cache (2^19 numbers each of s and y), at least 10.
    """

    pairs: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.pairs is not None and self.pairs < 1:
            raise ValueError(f"pairs={self.pairs}: keep at least one, or use GradientDescent()")

    def curvature(self, x):
        fit = min(30, max(10, 2**19 // optax.tree.size(x)))
        return secants.empty(x, fit if self.pairs is None else self.pairs)

    def learnt(self, memory):
        return memory[0]

    def init(self, x, rho, curvature):
        zero = jnp.zeros((), jax.tree.leaves(x)[0].dtype)
        nothing = optax.tree.zeros_like(x)
        return curvature, x, nothing, nothing, zero, zero

    def step(self, level, it):
        pairs, base, rho, d, slope, t = it.memory
        precondition = level.preconditioner
        slope_t = optax.tree.vdot(it.rho, d)
        accepted = slope_t <= -0.9 * slope
        s, y = optax.tree.sub(it.x, base), optax.tree.sub(it.rho, rho)
        new = secants.push(pairs, s, y, precondition, when=accepted)  # in `accept` it would copy all pairs

        def accept():
            # without any pair B_0 is P^{-1}, or a step that is short enough whatever the scale
            unit = jnp.where((new.count > 0) | (precondition is not None), 1, 1 / it.L)
            d = optax.tree.scale(-unit, secants.apply(new, it.rho, precondition))
            slope = optax.tree.vdot(it.rho, d)
            downhill = slope < 0
            d = optax.tree.where(downhill, d, optax.tree.scale(-1 / it.L, it.rho))
            return it.x, it.rho, d, jnp.where(downhill, slope, -(it.residual**2) / it.L), jnp.ones_like(t)

        def shorten():
            return base, rho, d, slope, t * jnp.clip(slope / (slope - slope_t), 0.1, 0.5)

        memory = lax.cond(accepted, accept, shorten)
        base, _, d, _, t = memory
        return it.move(level, optax.tree.add_scale(base, t, d), (new, *memory))


class NewtonCG(AbstractLowerSolver):
    """x+ = x + t d with ||H d + rho|| <= eta ||rho|| by conjugate gradients; t halves until ||rho|| falls.

    <rho, H d> <= -(1 - eta) ||rho||^2 makes d a descent direction of ||rho||, so the halving ends, for any strongly
    convex h. eta = min(1/2, sqrt(||rho|| / ||rho_0||)), never below what reaches the goal (Dembo, Eisenstat, Steihaug
    1982). All of it in the problem's metric, if it declares one: that preconditions the conjugate gradients.
    """

    def init(self, x, rho, curvature):
        zero = jnp.zeros((), jax.tree.leaves(x)[0].dtype)
        return x, optax.tree.zeros_like(x), jnp.full_like(zero, jnp.inf), zero, zero

    def step(self, level, it):
        base, d, previous, t, first = it.memory

        def accept():
            begun = jnp.where(jnp.isinf(previous), it.dual, first)
            eta = jnp.minimum(0.5, jnp.sqrt(it.dual / begun))
            goal = jnp.maximum(eta * it.dual, 0.5 * jnp.minimum(level.goal, it.dual))
            zeros = optax.tree.zeros_like(it.x)
            d, products, bad, _ = cg_iterations(
                lambda v: level.product(it.x, v), zeros, optax.tree.scale(-1, it.rho), lambda q: goal,
                mu=level.disproof, L=it.L, u=level.u, max_products=level.max_cost - it.cost - 1,
                metric=level.metric, precondition=level.preconditioner,
            )  # fmt: skip
            return (it.x, d, it.dual, jnp.ones_like(t), begun), products, bad

        def shorten():
            return (base, d, previous, t / 2, first), jnp.asarray(0, jnp.int32), jnp.asarray(False)

        memory, products, bad = lax.cond(it.dual <= (1 - 1e-4 * t) * previous, accept, shorten)
        base, d, _, t, _ = memory
        return it.move(level, optax.tree.add_scale(base, t, d), memory, products, bad)
