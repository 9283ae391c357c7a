"""Krylov methods on pytrees: conjugate gradients that report what they saw, and Lanczos for extreme eigenvalues."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from .bounds import dual_norm, rounding

Scalar = Float[Array, ""]
Vector = PyTree[Float[Array, "..."]]
MAX_ROUNDS = 5


class LinearSolution(eqx.Module):
    """`residual` is ||H q - b|| recomputed from q, not the recursion's; `products` counts every H v."""

    q: Vector
    residual: Scalar
    products: Int[Array, ""]
    negative_curvature: Bool[Array, ""]


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
) -> tuple[Vector, Int[Array, ""], Bool[Array, ""]]:
    """Conjugate gradients for H q = b from q with r = b - H q, until the recursive ||r|| <= target(q).

    With a metric W this is the method for W^{-1/2} H W^{-1/2}, that is, preconditioned by W, and ||r|| means
    ||r||_{W^-1}, which the recursion has anyway.

    Returns q, the products spent, and whether a direction p with p^T H p < mu ||p||_W^2 (beyond rounding) was met: it
    disproves the declared mu and stops the iteration before the step along it.
    """

    def dual(r):
        if precondition is not None:
            s = precondition(r)
            return s, optax.tree.vdot(r, s)
        s = r if metric is None else jax.tree.map(jnp.divide, r, metric)
        return s, optax.tree.vdot(r, s)

    def unfinished(carry):
        q, r, _, rr, products, bad = carry
        norm = jnp.sqrt(rr) if precondition is None else dual_norm(r, metric)
        # <r, P^{-1} r> <= 0: the preconditioner has lost its definiteness to rounding, and no step would be downhill
        return (norm > target(q)) & (products < max_products) & ~bad & (rr > 0)

    def step(carry):
        q, r, p, rr, products, _ = carry
        Hp = product(p)
        pp, pHp = optax.tree.norm(p, squared=True), optax.tree.vdot(p, Hp)
        pWp = pp if metric is None else optax.tree.vdot(p, jax.tree.map(jnp.multiply, p, metric))
        bad = ~(pHp > 0.999 * mu * pWp - 8 * u * L * pp) | ~(pHp > 0)
        alpha = jnp.where(bad, 0, rr / jnp.where(bad, 1, pHp))
        q, r = optax.tree.add_scale(q, alpha, p), optax.tree.add_scale(r, -alpha, Hp)
        s, rr_new = dual(r)
        p = optax.tree.add_scale(s, rr_new / rr, p)
        return q, r, p, rr_new, products + 1, bad

    s, rr = dual(r)
    start = (q, r, s, rr, jnp.asarray(0, jnp.int32), jnp.asarray(False))
    q, _, _, _, products, bad = lax.while_loop(unfinished, step, start)
    return q, products, bad


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

    norm_b = optax.tree.norm(b)

    def target(q):
        floor = rounding(L, optax.tree.norm(q), norm_b, u)
        return jnp.maximum(delta - floor, floor)

    def unfinished(carry):
        return ~carry[-1]

    def restart(carry):
        q, previous, products, rounds, bad, _ = carry
        r = optax.tree.sub(b, product(q))
        residual, products = dual_norm(r, metric), products + 1
        # CG's slack: its recursion stops a hair below the target, the true residual may sit a hair above
        met = residual <= target(q) * (1 + 1e-6)
        done = met | bad | (products >= max_products) | ~(residual <= previous / 2) | (rounds >= MAX_ROUNDS)
        left = jnp.where(done, 0, max_products - 1 - products)
        q, spent, now_bad = cg_iterations(
            product, q, r, target, mu=mu, L=L, u=u, max_products=left, metric=metric, precondition=precondition
        )
        return q, residual, products + spent, rounds + 1, bad | now_bad, done

    zero, false = jnp.asarray(0, jnp.int32), jnp.asarray(False)
    start = (q0, jnp.full_like(delta, jnp.inf), zero, zero, false, false)
    q, residual, products, _, bad, _ = lax.while_loop(unfinished, restart, start)
    return LinearSolution(q, residual, products, bad)


def lanczos(product: Callable[[Vector], Vector], like: Vector, steps: int) -> tuple[Scalar, Scalar, int]:
    """(smallest, largest) Ritz value of a symmetric operator after min(steps, size) steps, and the products it took.

    Fully reorthogonalised; the start is Gaussian by a fixed key, so that runs repeat bit for bit.
    Ritz values lie inside the spectrum: the largest is a *lower* bound of lambda_max.
    """
    flat, unravel = ravel_pytree(like)
    n = flat.size
    k = min(steps, n)
    start = jax.random.normal(jax.random.key(0), (n,), flat.dtype)
    tiny = jnp.finfo(flat.dtype).tiny

    def step(j, carry):
        basis, diagonal, offdiagonal = carry
        v = basis[j]
        w = ravel_pytree(product(unravel(v)))[0]
        diagonal = diagonal.at[j].set(v @ w)
        for _ in range(2):  # twice is enough
            w = w - basis.T @ (basis @ w)
        beta = jnp.linalg.norm(w)
        # an invariant subspace ends the process: beta is rounding noise, and what it would couple to is not the matrix
        alive = beta > 16 * jnp.finfo(flat.dtype).eps * jnp.max(jnp.abs(diagonal))
        basis = basis.at[j + 1].set(jnp.where(alive, w / jnp.maximum(beta, tiny), 0))
        return basis, diagonal, offdiagonal.at[j].set(jnp.where(alive, beta, 0))

    basis = jnp.zeros((k + 1, n), flat.dtype).at[0].set(start / jnp.linalg.norm(start))
    _, diagonal, off = lax.fori_loop(0, k, step, (basis, jnp.zeros(k, flat.dtype), jnp.zeros(k, flat.dtype)))
    T = jnp.diag(diagonal) + jnp.diag(off[:-1], 1) + jnp.diag(off[:-1], -1)
    # where the process ended early the rest of T is zero: repeat its first entry there so that min and max ignore it
    ended = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), off[:-1] == 0])) > 0
    ritz = jnp.linalg.eigvalsh(T + jnp.diag(jnp.where(ended, diagonal[0], 0)))
    return ritz[0], ritz[-1], k
