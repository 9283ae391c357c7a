"""Conjugate gradients that report what they saw."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Int

from .norms import dual_norm, norm
from .rounding import rounding
from .vectors import Scalar, Vector

MAX_ROUNDS = 5


class LinearSolution(eqx.Module):
    """`residual` is ||H q - b|| recomputed from q, not the recursion's; `products` counts every H v; `least` is the
    smallest curvature <p, H p> / ||p||_W^2 met, infinite if none was."""

    q: Vector
    residual: Scalar
    products: Int[Array, ""]
    negative_curvature: Bool[Array, ""]
    least: Scalar


def cg_iterations(
    product: Callable[[Vector], Vector],
    q: Vector,
    r: Vector,
    target: Callable[[Vector], Scalar],
    *,
    mu: Scalar,
    L: Scalar,
    u: float,
    max_products: Int[Array, ""],
    metric: Vector | None = None,
    precondition: Callable[[Vector], Vector] | None = None,
) -> tuple[Vector, Int[Array, ""], Bool[Array, ""], Scalar]:
    """Conjugate gradients for H q = b from q with r = b - H q, until the recursive ||r|| <= target(q).

    With a metric W this is the method for W^{-1/2} H W^{-1/2}, that is, preconditioned by W, and ||r|| means
    ||r||_{W^-1}, which the recursion has anyway.

    Returns q, the products spent, whether a direction p with p^T H p < mu ||p||_W^2 (beyond rounding) was met, which
    disproves the declared mu and stops the iteration before the step along it, and the least p^T H p / ||p||_W^2.
    """

    def dual(r):
        if precondition is not None:
            s = precondition(r)
            return s, optax.tree.vdot(r, s)
        s = r if metric is None else jax.tree.map(jnp.divide, r, metric)
        return s, optax.tree.vdot(r, s)

    def unfinished(carry):
        q, r, _, rr, products, bad, _ = carry
        size = jnp.sqrt(rr) if precondition is None else dual_norm(r, metric)
        # <r, P^{-1} r> <= 0: the preconditioner has lost its definiteness to rounding, and no step would be downhill
        return (size > target(q)) & (products < max_products) & ~bad & (rr > 0)

    def step(carry):
        q, r, p, rr, products, _, least = carry
        Hp = product(p)
        pp, pHp = optax.tree.norm(p, squared=True), optax.tree.vdot(p, Hp)
        pWp = pp if metric is None else optax.tree.vdot(p, jax.tree.map(jnp.multiply, p, metric))
        bent = ~(pHp > 0.999 * mu * pWp - 8 * u * L * pp) | ~(pHp > 0)
        # where even rounding is less than what underflows, no product tells of H: it ends there, and nothing is blamed;
        # L = 0 is an L that is not known, and then p alone tells: a flat direction has <p, H p> = 0 at any size
        blind = ~(
            u * jnp.maximum(jnp.where(L > 0, L, 1) * pp, jnp.abs(pHp))
            > optax.tree.size(p) * float(jnp.finfo(pp.dtype).tiny)
        )
        bad = bent & ~blind
        least = jnp.minimum(least, jnp.where(pWp > 0, pHp / jnp.where(pWp > 0, pWp, 1), jnp.inf))
        alpha = jnp.where(bent, 0, rr / jnp.where(bent, 1, pHp))
        q, r = optax.tree.add_scale(q, alpha, p), optax.tree.add_scale(r, -alpha, Hp)
        s, rr_new = dual(r)
        p = optax.tree.add_scale(s, rr_new / rr, p)
        return q, r, p, jnp.where(bent, 0, rr_new), products + 1, bad, least

    s, rr = dual(r)
    start = (q, r, s, rr, jnp.asarray(0, jnp.int32), jnp.asarray(False), jnp.full_like(rr, jnp.inf))
    q, _, _, _, products, bad, least = lax.while_loop(unfinished, step, start)
    return q, products, bad, least


def conjugate_gradients(
    product: Callable[[Vector], Vector],
    b: Vector,
    q0: Vector,
    *,
    delta: Scalar,
    mu: Scalar,
    L: Scalar,
    u: float,
    max_products: Int[Array, ""],
    metric: Vector | None = None,
    precondition: Callable[[Vector], Vector] | None = None,
) -> LinearSolution:
    """Solve H q = b until ||H q - b|| + u (L ||q|| + ||b||) <= delta, from q0, for symmetric H >= mu.

    With a metric W the residual is measured in the norm of W^-1.

    The recursive residual of CG drifts from the true one, so convergence is only believed of a residual computed
    afresh; if that one disagrees the iteration restarts from it, until restarting gains nothing (the dtype's floor).
    A direction p with p^T H p < mu ||p||^2 beyond rounding disproves the declared mu and stops the iteration.
    """

    norm_b = norm(b)

    def target(q):
        floor = rounding(L, norm(q), norm_b, u)
        return jnp.maximum(delta - floor, floor)

    def unfinished(carry):
        return ~carry[-1]

    def restart(carry):
        q, previous, products, rounds, bad, least, _ = carry
        r = optax.tree.sub(b, product(q))
        residual, products = dual_norm(r, metric), products + 1
        # CG's slack: its recursion stops a hair below the target, the true residual may sit a hair above
        met = residual <= target(q) * (1 + 1e-6)
        done = met | bad | (products >= max_products) | ~(residual <= previous / 2) | (rounds >= MAX_ROUNDS)
        left = jnp.where(done, 0, max_products - 1 - products)
        q, spent, now_bad, now_least = cg_iterations(
            product, q, r, target, mu=mu, L=L, u=u, max_products=left, metric=metric, precondition=precondition
        )
        return q, residual, products + spent, rounds + 1, bad | now_bad, jnp.minimum(least, now_least), done

    zero, false, inf = jnp.asarray(0, jnp.int32), jnp.asarray(False), jnp.full_like(delta, jnp.inf)
    start = (q0, inf, zero, zero, false, inf, false)
    q, residual, products, _, bad, least, _ = lax.while_loop(unfinished, restart, start)
    return LinearSolution(q, residual, products, bad, least)
