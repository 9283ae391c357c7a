"""L-BFGS, by gradients alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax

from .._linalg import lbfgs_pairs
from .solver import AbstractLowerSolver


class LBFGS(AbstractLowerSolver):
    """x+ = x - t B grad h(x), B from the last secant pairs, t from gradients alone.

    For convex h the slope `phi'(t) = <grad h(x + t d), d>` grows with t, so phi'(t) <= 0.9 |phi'(0)| rules out a
    serious overshoot; otherwise t moves to the secant's root. Values of h are never needed, so it converges to the
    dtype's floor, where a comparison of values would stall at the square root of it. The pairs outlive a solve.

    `pairs`: how many are kept; left out, 30, or as many as stay in cache (2^19 numbers each of s and y), at least 10;
    or 4 where x has more than 2^20 numbers.
    """

    pairs: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.pairs is not None and self.pairs < 1:
            raise ValueError(f"pairs={self.pairs}: keep at least one, or use GradientDescent()")

    def curvature(self, x):
        size = optax.tree.size(x)
        fit = min(30, max(10, 2**19 // size)) if size <= 2**20 else 4
        return lbfgs_pairs.empty(x, fit if self.pairs is None else self.pairs)

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
        new = lbfgs_pairs.push(pairs, s, y, precondition, when=accepted)  # in `accept` it would copy all pairs

        def accept():
            # without any pair B_0 is P^{-1}, or a step that is short enough whatever the scale
            unit = jnp.where((new.count > 0) | (precondition is not None), 1, 1 / it.L)
            d = optax.tree.scale(-unit, lbfgs_pairs.apply(new, it.rho, precondition))
            slope = optax.tree.vdot(it.rho, d)
            downhill = slope < 0
            d = optax.tree.where(downhill, d, optax.tree.scale(-1 / it.L, it.rho))
            return it.x, it.rho, d, jnp.where(downhill, slope, -(it.residual**2) / it.L), jnp.ones_like(t)

        def shorten():
            return base, rho, d, slope, t * jnp.clip(slope / (slope - slope_t), 0.1, 0.5)

        memory = lax.cond(accepted, accept, shorten)
        base, _, d, _, t = memory
        return it.move(level, optax.tree.add_scale(base, t, d), (new, *memory))
