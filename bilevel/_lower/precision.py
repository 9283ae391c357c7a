"""Float32 where rounding does no harm, float64 where a certificate is made: solvers made of other solvers.

    MixedPrecision    x from grad h in float32, down to its floor u32 L ||x|| / mu; then as in float64
    SingleProducts    H d = -rho with H v in float32, rho in float64: iterative refinement, at any accuracy

A step costs what it moves through memory and the width of its arithmetic: in float32 half. The result is that of
`descend` in float64 all the same: no number of float32 enters a certificate, and what goes wrong in float32, an
overflow or a curvature lost, costs and no more. Data in float32 are left to the solver inside.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from .._arguments import part
from .._linalg.rounding import unit_roundoff
from .._linalg.vectors import Vector
from .._problem import hessian_product
from .solver import AbstractLowerSolver, Iterate, LowerLevel, iterate, preconditioner

U32 = unit_roundoff(jnp.float32)


class AbstractAround(AbstractLowerSolver):
    """Around another solver: its memory, and whether float32 is to be tried."""

    solver: eqx.AbstractVar[AbstractLowerSolver]

    def __check_init__(self):
        part("solver", self.solver, AbstractLowerSolver, "NewtonCG()")

    def curvature(self, x):
        return self.solver.curvature(x)

    def learnt(self, memory):
        return self.solver.learnt(memory[0])

    def init(self, x, rho, curvature):
        return self.solver.init(x, rho, curvature), jnp.asarray(True)


class MixedPrecision(AbstractAround):
    """`solver`, whose first step is a whole descent in float32 and one gradient in float64.

    The float32 descent ends where ||rho|| and its rounding there are at most mu eps, so that the gradient in float64
    certifies eps, or near its floor. From there `solver` goes on in float64, with what it remembers.
    """

    solver: AbstractLowerSolver

    def step(self, level, it):
        memory, first = it.memory
        it = dataclasses.replace(it, memory=memory)
        if level.u < U32:
            attempt = first & (it.cost < level.max_cost - 1)  # one gradient is left for float64
            it = lax.cond(attempt, lambda: self._approach(level, it), lambda: self.solver.step(level, it))
        else:
            it = self.solver.step(level, it)
        return dataclasses.replace(it, memory=(it.memory, jnp.asarray(False)))

    def _approach(self, level: LowerLevel, it: Iterate) -> Iterate:
        """Where float32 ends, with the gradient in float64; or `it`, if that is no nearer."""
        start = single(it)
        learnt = single(self.solver.learnt(it.memory))
        start = dataclasses.replace(start, memory=self.solver.init(start.x, start.rho, learnt))
        coarse = single(dataclasses.replace(level, preconditioner=None))
        precondition = preconditioner(coarse.problem, start.x, coarse.theta)
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
        return _better(found, it)[0]


class SingleProducts(AbstractAround):
    """`solver`, one with Hessian products such as `NewtonCG`, with these in float32 and its gradients in float64.

    ||(H32 - H) d|| is about u32 L ||d||, a small part of ||rho|| whatever ||rho|| is: each step gains some digits and
    none is out of reach. A step after which ||rho|| has not fallen is taken back, and the solve goes on in float64.
    """

    solver: AbstractLowerSolver

    def step(self, level, it):
        memory, trusted = it.memory
        it = dataclasses.replace(it, memory=memory)
        if level.u < U32:
            same = {field.name: getattr(level, field.name) for field in dataclasses.fields(level)}
            coarse = _WithSingleProducts(**{**same, "u": U32})
            it, trusted = lax.cond(
                trusted,
                lambda: _better(self.solver.step(coarse, it), it),
                lambda: (self.solver.step(level, it), trusted),
            )
        else:
            it = self.solver.step(level, it)
        return dataclasses.replace(it, memory=(it.memory, trusted))


class _WithSingleProducts(LowerLevel):
    def product(self, x: Vector, v: Vector) -> Vector:
        problem, x, theta, v = single((self.problem, x, self.theta, v))
        return double(hessian_product(problem, x, theta, v))


def _better(new: Iterate, old: Iterate) -> tuple[Iterate, Bool[Array, ""]]:
    """The new iterate, unless its ||rho|| is larger, not finite, or h was found not to be convex; whether it is."""
    better = (new.dual < old.dual) & ~new.negative_curvature
    back = dataclasses.replace(old, lower_gradients=new.lower_gradients, hessian_products=new.hessian_products)
    return lax.cond(better, lambda: new, lambda: back), better


def single(tree: Any) -> Any:
    """With every float64 leaf in float32."""
    return _cast(tree, jnp.float64, jnp.float32)


def double(tree: Any) -> Any:
    """With every float32 leaf in float64."""
    return _cast(tree, jnp.float32, jnp.float64)


def _cast(tree, old, new):
    return jax.tree.map(lambda v: v.astype(new) if eqx.is_array(v) and v.dtype == old else v, tree)
