"""The hypergradient from gradients alone: the lower level solved twice, with and without a little of the upper level.

    x(t) = argmin over x of  h + t g,        z(t) = grad_theta g(x(t)) + (grad_theta h(x(t)) - grad_theta h(xhat)) / t

z(t) is the gradient of (min (h + t g) - min h)/t and tends to grad f. With tau = |t| and X >= ||x(t) - xhat|| / tau,

    ||z(t) - grad f||  <=  tau/2 (L_J X^2 + A (L_H X^2 + 2 L_g X)) + L_gtheta tau X,       A >= ||H(xhat)^{-1} J(xhat)||

Proof. d = x(t) - xhat; grad_x h(x(t)) = -t g_x(x(t)), so mu ||d|| <= tau ||g_x(x(t))|| =: tau mu X. Expand both
gradients along d from xhat: H d = -t g_x(xhat) + e with ||e|| <= tau L_g ||d|| + L_H ||d||^2/2, and
grad_theta h(x(t)) - grad_theta h(xhat) = J^T d + e' with ||e'|| <= L_J ||d||^2/2; and -J^T H^{-1} g_x is grad f's.

From x_t, x_0 within eps_t, eps_0 of these, ||J|| (eps_t + eps_0)/tau and L_gtheta eps_t are added, and rounding over
tau: so the least that can be had is about 2 sqrt(C ||J|| eps). (z(t) + z(-t))/2 is off by O(t^2), and within the mean
of both bounds. Penalty methods of bilevel optimisation: Kwon et al., arXiv 2301.10945; Chen et al., arXiv 2309.01753.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp

from .._linalg.norms import dual_norm, metric_norm, norm
from .._linalg.rounding import unit_roundoff
from .._linalg.vectors import Scalar, Vector
from .._lower.descend import LowerSolution
from .._problem import AbstractProblem, Constants
from . import inequalities
from .estimates import cross_norm, cross_norm_cost
from .gradient import gradient_moves

NEEDED = ("mu", "L", "L_upper", "L_hessian", "L_cross")


class Penalised(AbstractProblem):
    """The lower level h + t g. It is convex for a t > 0 where g is, else as long as |t| L_g < mu."""

    problem: AbstractProblem
    t: Scalar

    def lower(self, x, theta):
        return self.problem.lower(x, theta) + self.t * self.problem.upper(x, theta)

    def upper(self, x, theta):
        return self.problem.upper(x, theta)

    def preconditioner(self, x, theta):
        return self.problem.preconditioner(x, theta)

    def constants(self, theta):
        known, tau = self.problem.constants(theta), jnp.abs(self.t)
        lost = jnp.where((self.t > 0) & known.convex_upper, 0, tau * known.L_upper)
        return Constants(
            mu=known.mu - lost, L=known.L + tau * known.L_upper, rounding=known.rounding, metric=known.metric
        )  # fmt: skip


class Difference(eqx.Module):
    """z(t), its error in parts, bias tau + amplified (eps_t + eps_0)/tau + noise/tau, and (x(s) - xhat)/tau for each
    side s."""

    z: Vector
    norm: Scalar
    bias: Scalar
    amplified: Scalar
    noise: Scalar
    velocities: tuple[Vector, ...]
    certain: bool = eqx.field(static=True)
    products: int = eqx.field(static=True)  # with J, for the bound; none where the problem bounds ||J||


def undeclared(problem: AbstractProblem, x: Vector, theta: Vector) -> list[str]:
    """What the bound needs and the problem does not say."""
    known = eqx.filter_eval_shape(problem.constants, theta)
    lacking = [name for name in NEEDED if getattr(known, name) is None]
    moving = known.L_upper_theta is None and gradient_moves(problem, x, theta)
    return [*lacking, "L_upper_theta"] if moving else lacking


def room(problem: AbstractProblem, theta: Vector) -> Scalar:
    """mu/L_g: h - tau g is convex for a smaller tau."""
    known = problem.constants(theta)
    return known.mu / known.L_upper


def difference(
    problem: AbstractProblem, theta: Vector, base: LowerSolution, moved: tuple[LowerSolution, ...], t: Scalar
) -> Difference:
    """From the lower level's solution and those of `Penalised(problem, t)` and perhaps `Penalised(problem, -t)`: the
    mean of their z, with the mean of the bounds. Traceable."""
    sides = [_one(problem, theta, base, one, sign * t) for one, sign in zip(moved, (1, -1), strict=False)]
    whole = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *sides)
    velocities = tuple(jax.tree.map(lambda a, b: (a - b) / t, one.x, base.x) for one in moved)
    return dataclasses.replace(whole, norm=norm(whole.z), velocities=velocities)


def _one(problem, theta, base, moved, t):
    known, tau, u = problem.constants(theta), jnp.abs(t), unit_roundoff(base.error.dtype)
    x0, xt = base.x, moved.x
    g_x, g_theta = jax.grad(problem.upper, argnums=(0, 1))(xt, theta)
    slopes = [jax.grad(problem.lower, argnums=1)(x, theta) for x in (xt, x0)]
    z = jax.tree.map(lambda g, a, b: g + (a - b) / t, g_theta, *slopes)

    X = (dual_norm(g_x, known.metric) + known.L_upper * moved.error) / base.mu
    J, certain, products = problem.bounds(x0, theta, x0, base.error).J, True, 0
    if J is None:
        J, certain = cross_norm(problem, x0, theta)
        products = cross_norm_cost(x0, theta)
    L_theta = 0.0 if known.L_upper_theta is None else known.L_upper_theta
    amplified = inequalities.amplification(base.error, J, known.L_cross, base.mu)
    bias = (known.L_cross * X**2 + amplified * (known.L_hessian * X**2 + 2 * known.L_upper * X)) / 2 + L_theta * X
    J_sup = J + known.L_cross * (base.error + moved.error + tau * X)
    cancelled = 0.0 if known.rounding_cross is None else known.rounding_cross
    sizes = metric_norm(x0, known.metric) + metric_norm(xt, known.metric)
    noise = u * (2 * norm(slopes[0]) + 2 * norm(slopes[1]) + tau * norm(g_theta) + (J_sup + cancelled) * sizes)
    return Difference(z, norm(z), bias, J_sup + tau * L_theta, noise, (), certain, products)
