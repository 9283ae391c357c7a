"""Least squares with an L1 penalty, on the rows of one fold: a minimiser, and how far from it x can be.

    P(x) = 1/2 ||c - B x||^2 + rho/2 ||x||^2 + sum_j l_j |x_j|,       r = c - B x,   k = B^T r - rho x

Screening (Ndiaye, Fercoq, Gramfort, Salmon 2017, arXiv 1611.05780). u = s r with s = min(1, min_j l_j/|k_j|) is dual
feasible, the gap G = (1 - s)^2/2 (||r||^2 + rho ||x||^2) + sum_j (l_j |x_j| - s x_j k_j), of which nothing is negative,
and

    s |k_j| + sqrt(||b_j||^2 + rho) sqrt(2 G) < l_j     =>     xhat_j = 0.

Certificate. Let S hold what is left and where x is not zero. On S, where both x and xhat lie, P is mu-strongly convex,
mu = lambda_min(B_S^T B_S) + rho, and v_S, the shortest subgradient of P there, is zero at xhat:

    ||x - xhat|| <= ||v_S|| / mu,     v_j = l_j sign(x_j) - k_j,  or  max(|k_j| - l_j, 0) in size where x_j = 0.

Minimiser. On a working set I, the columns that are left or violate most: Newton's steps for the signs that x has, each
cut where the first of them would change, which is then zero, until one is whole; coordinate descent on B_I^T B_I finds
other signs; and again. Exact once the signs are right (feature-sign search: Lee, Battle, Raina, Ng, NeurIPS 2006).
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Features = Float[Array, "n p"]
Vector = Float[Array, " p"]
Scalar = Float[Array, ""]
MOST = 1024  # columns of a working set
SWEEPS, STEPS = 2, 30  # of coordinate descent between whole Newton steps; of Newton's at one working set
PATIENCE = 10  # working sets without a smaller subgradient


class Fold(eqx.Module):
    """B and c; `norm` >= ||B||^2; B^T B where all columns are one working set, else None."""

    B: Features
    c: Float[Array, " n"]
    norm: Scalar
    lam: Vector
    rho: Scalar
    gram: Float[Array, "p p"] | None

    @classmethod
    def of(cls, B: Features, c: Float[Array, " n"], norm: Scalar, lam: Vector, rho: Scalar) -> "Fold":
        return cls(B, c, norm, lam, rho, B.T @ B if width(*B.shape) == B.shape[1] else None)

    def working(self, score: Vector) -> tuple[Int[Array, " W"], Float[Array, "W W"]]:
        """The columns of the highest scores, and their Gram matrix."""
        if self.gram is not None:
            return jnp.arange(len(score)), self.gram
        index = lax.top_k(score, width(*self.B.shape))[1]
        columns = self.B[:, index]
        return index, columns.T @ columns


class Iterate(NamedTuple):
    """x, its bound and the part of it that is rounding; I with its Gram matrix, B_I^T r and which of it is left; what
    was done, in gradients of the fold; the least ||v|| so far, and how many working sets ago that was."""

    x: Vector
    error: Scalar
    floor: Scalar
    columns: Int[Array, " W"]
    gram: Float[Array, "W W"]
    k: Float[Array, " W"]
    size: Scalar
    cost: Scalar
    best: Scalar
    since: Int[Array, ""]


def width(n: int, p: int) -> int:
    """Of a working set: twice what a solution can have, as far as there are so many."""
    return min(p, 2 * n, MOST)


def look_cost(n: int, p: int) -> float:
    """A gradient, the Gram matrix of the working set and its eigenvalues, in the multiplications of a gradient."""
    W = width(n, p)
    return 1 + (2 * W**3 + (n * W**2 if p > W else 0)) / (2 * n * p)


def first_cost(n: int, p: int) -> float:
    """What comes before all that: the Gram matrix, where it is the same for every working set."""
    return n * p**2 / (2 * n * p) if width(n, p) == p else 0.0


def step_cost(n: int, p: int) -> tuple[float, float]:
    """The sweeps of coordinate descent, and one of Newton's steps, in the same unit."""
    W = width(n, p)
    return SWEEPS * W**2 / (2 * n * p), (W**3 / 6 + 2 * W**2) / (2 * n * p)


def dearest(n: int, p: int) -> float:
    """What is between one look and the next, at most."""
    return look_cost(n, p) + STEPS * sum(step_cost(n, p))


def solve(fold: Fold, x0: Vector, eps: Scalar, most: Scalar) -> Iterate:
    """x with an error of at most eps, for at most `most` gradients, at least `first_cost` and `look_cost`."""
    n, p = fold.B.shape
    lengths = jnp.sqrt(jnp.sum(fold.B**2, axis=0) + fold.rho)
    spent, worst = jnp.full_like(fold.rho, first_cost(n, p)), jnp.full_like(fold.rho, jnp.inf)
    start = look(fold, lengths, x0, spent, worst, jnp.asarray(0))

    def unfinished(it):
        above = (it.error > eps) & (it.error > 2 * it.floor)
        return above & (it.cost + dearest(n, p) <= most) & (it.since < PATIENCE)

    def step(it):
        x, spent = descend(fold, it)
        return look(fold, lengths, x, it.cost + spent, it.best, it.since)

    return lax.while_loop(unfinished, step, start)


def look(fold: Fold, lengths: Vector, x: Vector, cost: Scalar, best: Scalar, since: Int[Array, ""]) -> Iterate:
    """Screening, the certificate, and the next working set."""
    B, c, lam, rho = fold.B, fold.c, fold.lam, fold.rho
    u, tiny = float(jnp.finfo(x.dtype).eps) / 2, float(jnp.finfo(x.dtype).tiny)
    r = c - B @ x
    k = B.T @ r - rho * x
    # a model of what the products above may lose, as everywhere in the package
    norm_x = jnp.linalg.norm(x)
    noise = u * ((fold.norm + rho) * norm_x + jnp.sqrt(fold.norm) * jnp.linalg.norm(c))
    v = jnp.where(x != 0, jnp.abs(lam * jnp.sign(x) - k), jnp.maximum(jnp.abs(k) - lam, 0))
    s = jnp.minimum(1, jnp.min(lam / jnp.maximum(jnp.abs(k), tiny)))
    gap = (1 - s) ** 2 / 2 * (jnp.sum(r**2) + rho * norm_x**2)
    gap += (
        jnp.sum(jnp.maximum(lam * jnp.abs(x) - s * x * k, 0)) + 2 * noise * norm_x + 8 * u * jnp.sum(lam * jnp.abs(x))
    )
    left = (s * jnp.abs(k) + noise + lengths * jnp.sqrt(2 * gap) >= lam) | (x != 0)
    score = jnp.abs(k) / jnp.maximum(lam, tiny)
    score = jnp.where(x != 0, 4.0, 0.0) + jnp.where(left, 2.0, 0.0) + score / (1 + score)
    index, gram = fold.working(score)
    inside = left[index]
    size = jnp.linalg.norm(jnp.where(left, v, 0))
    mu = least(gram, inside, jnp.sum(left), rho)
    known = mu > 0
    floor = jnp.where(known, noise / jnp.where(known, mu, 1), 0)
    error = jnp.where(known, size / jnp.where(known, mu, 1) + floor, jnp.inf)
    nothing = ~jnp.any(left)
    floor, error = jnp.where(nothing, 0, floor), jnp.where(nothing, 0, error)
    error = jnp.where(jnp.isfinite(size), error, jnp.nan)
    better = size < best / 2
    return Iterate(
        x, error, floor, index, gram, k[index], size, cost + look_cost(*B.shape), jnp.where(better, size, best),
        jnp.where(better, 0, since + 1),
    )  # fmt: skip


def least(gram: Float[Array, "W W"], inside: Bool[Array, " W"], count: Int[Array, ""], rho: Scalar) -> Scalar:
    """At least lambda_min(B_S^T B_S) + rho, moved down by its rounding; only rho where S is larger than I."""
    W, top = len(gram), jnp.trace(gram)

    def lowest():
        masked = jnp.where(inside[:, None] & inside[None], gram, 0) + jnp.diag(jnp.where(inside, 0, top))
        return jnp.linalg.eigvalsh(masked)[0] - 4 * W * float(jnp.finfo(gram.dtype).eps) * top

    return rho + jnp.maximum(lax.cond(count <= W, lowest, lambda: jnp.zeros_like(rho)), 0)


def descend(fold: Fold, it: Iterate) -> tuple[Vector, Scalar]:
    """x moved on the working set alone, and what it took."""
    G, lam, rho, start = it.gram, fold.lam[it.columns], fold.rho, it.x[it.columns]
    b = it.k + rho * start + G @ start
    scale = jnp.diagonal(G) + rho
    goal = jnp.maximum(1e-4 * it.size, 4 * float(jnp.finfo(G.dtype).eps) * jnp.linalg.norm(b))
    sweeping, stepping = step_cost(*fold.B.shape)

    def residual(x):
        k = b - G @ x - rho * x
        return jnp.linalg.norm(jnp.where(x != 0, lam * jnp.sign(x) - k, jnp.maximum(jnp.abs(k) - lam, 0)))

    def coordinate(j, carry):
        x, Gx = carry
        t = b[j] - Gx[j] + G[j, j] * x[j]
        new = jnp.sign(t) * jnp.maximum(jnp.abs(t) - lam[j], 0) / jnp.where(scale[j] > 0, scale[j], 1)
        return x.at[j].set(new), Gx + (new - x[j]) * G[j]

    def step(carry):
        x, whole, steps, spent, _ = carry
        count = jnp.where(whole, SWEEPS * len(G), 0)
        x, _ = lax.fori_loop(0, count, lambda j, c: coordinate(j % len(G), c), (x, G @ x))
        spent += jnp.where(whole, sweeping, 0) + stepping
        x, whole = newton(G, b, lam, rho, x)
        return x, whole, steps + 1, spent, residual(x)

    first = start, jnp.asarray(True), jnp.asarray(0), jnp.zeros_like(rho), jnp.full_like(rho, jnp.inf)
    x, _, _, spent, _ = lax.while_loop(lambda carry: (carry[4] > goal) & (carry[2] < STEPS), step, first)
    return it.x.at[it.columns].set(x), spent


def newton(G: Float[Array, "W W"], b: Float[Array, " W"], lam: Float[Array, " W"], rho: Scalar, x: Float[Array, " W"]):
    """Towards the minimiser among all x of these signs, as far as they stay; and whether they all did."""
    active = x != 0
    d = inverse(G, rho, active)(jnp.where(active, b - G @ x - rho * x - lam * jnp.sign(x), 0))
    hits = jnp.where(active & (x * d < 0), -x / jnp.where(d != 0, d, 1), jnp.inf)
    t = jnp.minimum(1, jnp.min(hits))
    return jnp.where(hits <= t, 0, x + t * d), t == 1


def adjoint(fold: Fold, x: Vector, g: Vector) -> Vector:
    """(B_S^T B_S + rho)^{-1} g_S on the support S of x; zero elsewhere."""
    index, gram = fold.working(jnp.abs(x))
    active = x[index] != 0
    q = inverse(gram, fold.rho, active)(jnp.where(active, g[index], 0))
    return jnp.zeros_like(x).at[index].set(q)


def inverse(G: Float[Array, "W W"], rho: Scalar, active: Bool[Array, " W"]):
    """v -> (G + rho)^{-1} v on the active rows and columns; lifted where rounding would make it singular."""
    lift = 4 * len(G) * float(jnp.finfo(G.dtype).eps) * jnp.trace(G)
    masked = jnp.where(active[:, None] & active[None], G, 0) + jnp.diag(jnp.where(active, rho + lift, 1))
    factor = jnp.linalg.cholesky(masked)
    return lambda v: jax.scipy.linalg.cho_solve((factor, True), v)
