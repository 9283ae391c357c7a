"""Methods for the lower level that `bench_lower` measures beside the package's own.

Each is a whole `bilevel` solver, certificate included: one step, ending with the gradient at the iterate it returns.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

from bilevel._linalg.cg import cg_iterations
from bilevel._lower.solver import AbstractLowerSolver, Iterate, LowerLevel
from bilevel.problems._regularisers.tv_kernels import adjoint_differences, differences


def reduced(level: LowerLevel, it: Iterate, product: Any) -> tuple[Any, Array]:
    """d with ||A d + rho|| <= ||rho|| / 10, but no less than reaches the goal; A given by its product."""
    goal = jnp.maximum(0.1 * it.dual, 0.5 * jnp.minimum(level.goal, it.dual))
    d, products, *_ = cg_iterations(
        product, optax.tree.zeros_like(it.x), optax.tree.scale(-1, it.rho), lambda _: goal,
        mu=level.mu, L=it.L, u=level.u, max_products=level.max_cost - it.cost - 1,
        metric=level.metric, precondition=level.preconditioner,
    )  # fmt: skip
    return d, products


class NonlinearCG(AbstractLowerSolver):
    """d+ = -P rho + beta d,  beta = max(0, <rho, P (rho - rho-)> / <rho-, P rho->) (Polak, Ribiere 1969).

    The first length is Newton's along d, one Hessian product; then the secant's root until |slope| is a third.
    """

    def init(self, x, rho, curvature):
        zero = jnp.zeros_like(optax.tree.norm(x))
        return x, rho, optax.tree.zeros_like(x), zero, zero

    def step(self, level, it):
        base, rho, d, slope, t = it.memory
        slope_t = optax.tree.vdot(it.rho, d)

        def P(v):
            return v if level.preconditioner is None else level.preconditioner(v)

        def accept():
            change = optax.tree.vdot(it.rho, P(optax.tree.sub(it.rho, rho)))
            beta = jnp.maximum(0, change / optax.tree.vdot(rho, P(rho)))
            new = optax.tree.add_scale(optax.tree.scale(-1, P(it.rho)), beta, d)
            new = optax.tree.where(optax.tree.vdot(it.rho, new) < 0, new, optax.tree.scale(-1, P(it.rho)))
            down = optax.tree.vdot(it.rho, new)
            return it.x, it.rho, new, down, -down / optax.tree.vdot(new, level.product(it.x, new))

        def move():
            return base, rho, d, slope, t * jnp.clip(slope / (slope - slope_t), 0.2, 5)

        affordable = it.cost + 1 < level.max_cost
        accepted = (jnp.abs(slope_t) <= jnp.abs(slope) / 3) & affordable
        memory = lax.cond(accepted, accept, move)
        x = optax.tree.add_scale(memory[0], memory[4], memory[2])
        return it.move(level, x, memory, products=accepted.astype(jnp.int32))


def by_conjugate_gradients(level: LowerLevel, it: Iterate, shift: Array) -> tuple[Any, Array]:
    """(H + shift)^{-1} rho as `reduced` has it."""
    return reduced(level, it, lambda v: optax.tree.add_scale(level.product(it.x, v), shift, v))


def by_blocks(level: LowerLevel, it: Iterate, shift: Array) -> tuple[Array, Array]:
    """(B + shift)^{-1} rho by a factorisation for each class of softmax regression, B >= H without what couples them:

    B_c = 1/n sum_i p_ic a_i a_i^T + diag(e^theta_c), as diag(p) - p p^T <= diag(p). Counted: a product a feature."""
    A, penalty = level.problem.train.A, jnp.broadcast_to(jnp.exp(level.theta), it.x.shape)
    p = jax.nn.softmax(A @ it.x, axis=1)

    def solve(p, penalty, rho):
        B = (p[:, None] * A).T @ A / len(A) + jnp.diag(penalty + shift)
        return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(B), rho)

    d = jax.vmap(solve, 1, 1)(p, penalty, -it.rho)
    return d, jnp.asarray(A.shape[1], jnp.int32)


class RegularisedNewton(AbstractLowerSolver):
    """x+ = x - (H + ||rho|| / gamma)^{-1} rho; gamma doubles if <rho+, x - x+> >= ||rho+||^2 gamma / (4 ||rho||), else
    it falls to a quarter and the step is done again: gradient regularisation with a parameter-free search for the
    smoothness of the gradient (Doikov, Mishchenko, Nesterov, arXiv 2208.05888; Semenov, Jaggi, Doikov, 2506.13710).
    With `by_blocks`, the second's method with an approximate Hessian."""

    solve: Callable[[LowerLevel, Iterate, Array], tuple[Any, Array]] = eqx.field(
        static=True, default=by_conjugate_gradients
    )

    def init(self, x, rho, curvature):
        one = jnp.ones_like(optax.tree.norm(rho))
        return x, rho, optax.tree.norm(rho), one, one, jnp.asarray(True)

    def step(self, level, it):
        base, rho, norm, dual, gamma, first = it.memory
        gain = optax.tree.vdot(it.rho, optax.tree.sub(base, it.x))
        good = first | (gain >= it.residual**2 * gamma / (4 * norm))
        gamma = jnp.where(first, gamma, jnp.where(good, 2 * gamma, gamma / 4))
        base, rho = optax.tree.where(good, (it.x, it.rho), (base, rho))
        norm, dual = jnp.where(good, it.residual, norm), jnp.where(good, it.dual, dual)
        here = eqx.tree_at(lambda i: (i.x, i.rho, i.dual), it, (base, rho, dual))
        d, products = self.solve(level, here, norm / gamma)
        return it.move(level, optax.tree.add(base, d), (base, rho, norm, dual, gamma, jnp.asarray(False)), products)


class HalfQuadratic(AbstractLowerSolver):
    """x+ = x - S^{-1} rho,  S = 1 + e + w D^T diag(psi'(Dx) / Dx) D: the quadratic above h that touches it at x
    is minimised, lagged diffusivity (Vogel, Oman 1996; Geman, Reynolds 1992). Anisotropic total variation alone."""

    def init(self, x, rho, curvature):
        return None

    def step(self, level, it):
        w, nu, e = parameters(level)
        weights = [lax.rsqrt(d**2 + nu**2) for d in differences(it.x)]
        d, products = reduced(level, it, lambda v: diffusion(v, weights, w, e))
        return it.move(level, optax.tree.add(it.x, d), None, products)


class PrimalDual(AbstractLowerSolver):
    """Newton's method for  rho(x, p) = 0, p phi(Dx) = Dx, phi(t) = sqrt(t^2 + nu^2):  S with (1 - p Dx / phi) / phi.

    p is kept in [-1, 1] (Chan, Golub, Mulet 1999). Anisotropic total variation alone.
    """

    def init(self, x, rho, curvature):
        return tuple(jnp.zeros_like(d) for d in differences(x))

    def step(self, level, it):
        w, nu, e = parameters(level)
        ts, dual = differences(it.x), it.memory
        inverse = [lax.rsqrt(t**2 + nu**2) for t in ts]
        weights = [(1 - p * t * r) * r for p, t, r in zip(dual, ts, inverse, strict=True)]
        d, products = reduced(level, it, lambda v: diffusion(v, weights, w, e))
        steps = [a * dt + t * r - p for a, dt, t, r, p in zip(weights, differences(d), ts, inverse, dual, strict=True)]
        dual = tuple(jnp.clip(p + step, -1, 1) for p, step in zip(dual, steps, strict=True))
        return it.move(level, optax.tree.add(it.x, d), dual, products)


def parameters(level: LowerLevel) -> tuple[Array, Array, Array]:
    if level.problem.isotropic:
        raise ValueError("written for anisotropic total variation: its two differences do not share a root")
    named, e, _ = level.problem.parts(level.theta)
    return jnp.exp(named["weight"]) / 2, jnp.exp(named["smoothing"]), e


def diffusion(v, weights, w, e):
    return (1 + e) * v + w * adjoint_differences(*(a * d for a, d in zip(weights, differences(v), strict=True)))
