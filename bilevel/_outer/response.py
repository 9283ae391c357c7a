"""The affine best response, fitted to gradients of the lower level at perturbed hyperparameters.

    x(theta + e) ~ x + K e,      K = argmin over K of E_e h(x + K e, theta + e),      e = +-sigma v_1, ..., +-sigma v_r

For orthonormal v_j and K = sum_j u_j v_j^T each column u_j = K v_j is fitted for itself, where its gradient vanishes:

    r_j = [rho(x + sigma u_j, theta + sigma v_j) - rho(x - sigma u_j, theta - sigma v_j)] / (2 sigma)
        = H u_j + J v_j + O(sigma^2),                                         rho = grad_x h

so K tends to -H^{-1} J, the derivative of xhat, on the span of the v_j: all of K where r is the number of
hyperparameters. It takes no second derivative, and x need not be solved exactly, since rho(x) cancels. K has no entry
for directions outside the span, and says that x does not respond to them.

The objective is that of Self-Tuning Networks (arXiv 1903.03088, 2010.13514); antithetic perturbations along a basis
take the place of random ones, so that nothing is drawn.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from .._linalg.vectors import Scalar, Vector
from .._problem import AbstractProblem, lower_gradient
from .predict import AbstractPredictor

FEW = 8  # hyperparameters: all of K is affordable


class LowRank(eqx.Module):
    """K = sum_j u_j v_j^T, and what its fit remembers.

    Leaves of `directions` (v_j, like theta) and of `columns` (u_j, like x) have a leading axis of r; so has `velocity`,
    the columns' momentum, `age` steps old. `L` is the largest curvature seen.
    """

    directions: Vector
    columns: Vector
    velocity: Vector
    age: Int[Array, ""]
    L: Scalar


class FittedResponse(eqx.Module):
    """K of rank r, fitted by `steps` accelerated gradient steps around each base.

    `rank`: r >= 1; with as many as there are hyperparameters, or more, K is full. Left out, K is full for up to 8, and
    of rank 1 for more. `steps`, at least 2: of one fit, which starts from the last one's K, costs 2 r steps, and uses
    the problem's preconditioner. `sigma`: the perturbation's size in theta.

    Raises ValueError for a rank or steps too low, or a sigma that is not positive.
    """

    rank: int | None = eqx.field(static=True, default=None)
    steps: int = eqx.field(static=True, default=4)
    sigma: float = eqx.field(static=True, default=0.1)

    def __check_init__(self):
        if self.rank is not None and not self.rank >= 1:
            raise ValueError(f"rank must be at least 1, not {self.rank!r}: K responds to so many directions of theta")
        if not self.steps >= 2:
            raise ValueError(
                f"steps must be at least 2, not {self.steps!r}: the first may have to measure the curvature"
            )
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise ValueError(
                f"sigma must be positive and finite, not {self.sigma!r}: 0.1 suits hyperparameters that are logarithms"
            )

    def span(self, size: int) -> int:
        """r, for so many hyperparameters."""
        return (size if size <= FEW else 1) if self.rank is None else min(self.rank, size)

    def cost(self, size: int) -> int:
        """What one fit spends, in gradients of the lower level."""
        return 2 * self.span(size) * self.steps

    def init(self, theta: Vector, x: Vector) -> LowRank:
        flat, unravel = ravel_pytree(theta)
        rank = self.span(flat.size)
        basis = jnp.eye(rank, dtype=flat.dtype)
        if rank < flat.size:  # until K is turned, any will do
            basis = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (flat.size, rank), flat.dtype))[0].T
        zeros = jax.tree.map(lambda v: jnp.zeros((rank, *v.shape), v.dtype), x)
        return LowRank(jax.vmap(unravel)(basis), zeros, zeros, jnp.asarray(0, jnp.int32), jnp.zeros((), flat.dtype))

    def fit(self, memory: LowRank, problem: AbstractProblem, theta: Vector, x: Vector) -> LowRank:
        """K after T steps around (theta, x)."""
        V, precondition = memory.directions, problem.preconditioner(x, theta)
        known = precondition is None and problem.constants(theta).L is not None
        L = mean_curvature(problem, theta, V, self.sigma) if known else memory.L

        def step(carry, _):
            U, velocity, age, L, moved, before = carry
            r = residuals(problem, theta, x, V, U, self.sigma)
            d = r if precondition is None else lax.map(precondition, r)
            if not known:  # of P^{-1} H, as seen between the last two r; before there are two, a step short for any L
                change, d_change = (optax.tree.sub(new, old) for new, old in zip((r, d), before, strict=True))
                slope = optax.tree.vdot(moved, change)
                secant = optax.tree.vdot(change, d_change) / jnp.where(slope > 0, slope, jnp.inf)
                L = jnp.maximum(L, secant)
            norm = optax.tree.norm(d)
            short = 1e-3 * jnp.maximum(optax.tree.norm(x), 1) / jnp.where(norm > 0, norm, 1)
            s = jnp.where(L > 0, 1 / jnp.where(L > 0, L, 1), short)
            new, velocity, age = accelerate(U, r, d, velocity, age, s)
            return (new, velocity, age, L, optax.tree.sub(new, U), (r, d)), None

        zeros = optax.tree.zeros_like(memory.columns)
        start = memory.columns, memory.velocity, memory.age, L, zeros, (zeros, zeros)
        (U, velocity, age, L, _, _), _ = lax.scan(step, start, length=self.steps)
        return LowRank(V, U, velocity, age, L)


class Responding(AbstractPredictor):
    """Guesses x + K (trial - theta). Its memory is K, which `BestResponse` fits."""

    response: FittedResponse

    def init(self, theta, x):
        return self.response.init(theta, x)

    def observe(self, memory, theta, x):
        return memory

    def guess(self, memory, theta, x, trial):
        return optax.tree.add(x, respond(memory, optax.tree.sub(trial, theta)))


def respond(response: LowRank, e: Vector) -> Vector:
    """K e, shaped like x."""
    along = jax.vmap(lambda v: optax.tree.vdot(v, e))(response.directions)
    return jax.tree.map(lambda columns: jnp.tensordot(along, columns, axes=1), response.columns)


def pull_back(response: LowRank, g: Vector) -> Vector:
    """K^T g, shaped like theta."""
    along = jax.vmap(lambda u: optax.tree.vdot(u, g))(response.columns)
    return jax.tree.map(lambda directions: jnp.tensordot(along, directions, axes=1), response.directions)


def residuals(
    problem: AbstractProblem, theta: Vector, x: Vector, directions: Vector, columns: Vector, sigma: float
) -> Vector:
    """The r_j, stacked. Counts 2 each."""

    def residual(pair):
        v, u = pair

        def rho(s):
            return lower_gradient(problem, optax.tree.add_scale(x, s, u), optax.tree.add_scale(theta, s, v))

        return optax.tree.scale(1 / (2 * sigma), optax.tree.sub(rho(sigma), rho(-sigma)))

    return lax.map(residual, (directions, columns))


def mean_curvature(problem: AbstractProblem, theta: Vector, directions: Vector, sigma: float) -> Scalar:
    """max_j [L(theta + sigma v_j) + L(theta - sigma v_j)] / 2, a Lipschitz constant of every u_j -> r_j."""

    def mean(v):
        one, other = (problem.constants(optax.tree.add_scale(theta, s, v)).L for s in (sigma, -sigma))
        return jnp.asarray((one + other) / 2, jax.tree.leaves(theta)[0].dtype)

    return jnp.max(lax.map(mean, directions))


def accelerate(
    y: Vector, gradient: Vector, d: Vector, velocity: Vector, age: Int[Array, ""], s: Scalar
) -> tuple[Vector, Vector, Int[Array, ""]]:
    """One accelerated step along d = P^{-1} gradient: (y, velocity, age), the velocity dropped where it climbs.

        w = b_k velocity - s d,   y+ = y - s d + b_{k+1} w,   b_k = k / (k + 3)

    Nesterov 1983; the restart is O'Donoghue's and Candes' (arXiv 1204.3982). It needs no mu.
    """

    def momentum(k):
        return (k / (k + 3)).astype(s.dtype)

    w = jax.tree.map(lambda w, d: momentum(age) * w - s * d, velocity, d)
    climbs = optax.tree.vdot(gradient, w) > 0
    w = jax.tree.map(lambda w, d: jnp.where(climbs, -s * d, w), w, d)
    age = jnp.where(climbs, 1, age + 1).astype(age.dtype)
    y = jax.tree.map(lambda y, d, w: y - s * d + momentum(age) * w, y, d, w)
    return y, w, age


def turn(response: LowRank, direction: Vector) -> LowRank:
    """The response with `direction` as its first v, the oldest v left out, and K restricted to the new span.

    Unchanged where K is full, or the direction is zero.
    """
    flat, unravel = ravel_pytree(direction)
    rows = jax.vmap(lambda v: ravel_pytree(v)[0])(response.directions)
    if len(rows) == flat.size:
        return response
    norm = jnp.linalg.norm(flat)
    new = jnp.concatenate([(flat / jnp.where(norm > 0, norm, 1))[None], rows[:-1]])
    basis, triangle = jnp.linalg.qr(new.T)
    basis = (basis * jnp.where(jnp.diag(triangle) < 0, -1, 1)[None]).T  # v_1 points along the direction
    usable = (norm > 0) & jnp.all(jnp.isfinite(basis))
    basis = jnp.where(usable, basis, rows)
    change = jnp.where(usable, basis @ rows.T, jnp.eye(len(rows), dtype=rows.dtype))

    def restrict(columns: Float[Array, "r ..."]) -> Float[Array, "r ..."]:
        return jnp.tensordot(change, columns, axes=1)

    columns, velocity = (jax.tree.map(restrict, stack) for stack in (response.columns, response.velocity))
    return LowRank(jax.vmap(unravel)(basis), columns, velocity, response.age, response.L)
