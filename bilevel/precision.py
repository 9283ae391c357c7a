"""Float32 while the accuracy asked for allows it, float64 after.

    eps32 = u32 L ||x|| / mu        where float32 cannot tell x from xhat any more; float64 can, some 1e9 times nearer

A step costs what it moves through memory and the width of its arithmetic: in float32 half. So float32 descends, and
float64 measures: no number of float32 enters a certificate.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .bounds import unit_roundoff
from .lower import AbstractLowerSolver, Iterate, LowerLevel, iterate

U32 = unit_roundoff(jnp.float32)


class MixedPrecision(AbstractLowerSolver):
    """`solver` on float64 data, whose first step is a whole descent in float32 and one gradient in float64.

    The float32 descent ends where ||rho|| and its rounding there are at most mu eps, so that the gradient in float64
    certifies eps, or near its floor. From there `solver` goes on in float64, with what it remembers. Whatever went
    wrong in float32, an overflow or a curvature lost, costs and no more: it then starts from where it was. Data in
    float32 are left to `solver`.
    """

    solver: AbstractLowerSolver

    def init(self, x, rho):
        return self.solver.init(x, rho), jnp.asarray(True)

    def step(self, level, it):
        memory, first = it.memory
        it = dataclasses.replace(it, memory=memory)
        if level.u < U32:
            most = level.max_cost - 1  # one gradient is left for float64
            it = lax.cond(
                first & (it.cost < most), lambda: self._approach(level, it), lambda: self.solver.step(level, it)
            )
        else:
            it = self.solver.step(level, it)
        return dataclasses.replace(it, memory=(it.memory, jnp.asarray(False)))

    def _approach(self, level: LowerLevel, it: Iterate) -> Iterate:
        """Where float32 ends, with the gradient in float64; or `it`, if that is no nearer."""
        start = single(it)
        start = dataclasses.replace(start, memory=self.solver.init(start.x, start.rho))
        coarse = single(dataclasses.replace(level, preconditioner=None))
        precondition = coarse.problem.preconditioner(start.x, coarse.theta)
        coarse = dataclasses.replace(
            coarse,
            u=U32,
            max_cost=level.max_cost - 1,
            preconditioner=None if precondition is None else lambda v: single(precondition(v)),
        )
        # nearer to its floor a method may hover
        coarse = dataclasses.replace(coarse, goal=jnp.maximum(coarse.goal, 4 * coarse.noise(start)))
        found, _ = iterate(coarse, self.solver, start)
        found = dataclasses.replace(double(found), negative_curvature=it.negative_curvature)
        if level.L_known:
            found = dataclasses.replace(found, L=it.L)
        found = found.move(level, found.x, found.memory)
        back = dataclasses.replace(it, lower_gradients=found.lower_gradients, hessian_products=found.hessian_products)
        return lax.cond(found.dual < it.dual, lambda: found, lambda: back)


def single(tree: Any) -> Any:
    """With every float64 leaf in float32."""
    return _cast(tree, jnp.float64, jnp.float32)


def double(tree: Any) -> Any:
    """With every float32 leaf in float64."""
    return _cast(tree, jnp.float32, jnp.float64)


def _cast(tree, old, new):
    return jax.tree.map(lambda v: v.astype(new) if eqx.is_array(v) and v.dtype == old else v, tree)
