"""Least squares with a penalty on the length of each group's weights, on one fold: a minimiser, and how far from it x
can be.

    P(x) = 1/2 ||c - B x||^2 + rho/2 ||x||^2 + sum_g l_g ||x_g||,       r = c - B x,   k = B^T r - rho x

Screening (Ndiaye, Fercoq, Gramfort, Salmon 2017, arXiv 1611.05780). u = s r with s = min(1, min_g l_g/||k_g||) is dual
feasible, the gap G = (1 - s)^2/2 (||r||^2 + rho ||x||^2) + sum_g (l_g ||x_g|| - s <x_g, k_g>), and

    s ||k_g|| + sqrt(||B_g||_F^2 + rho) sqrt(2 G) < l_g     =>     xhat_g = 0.

Certificate. Let S hold the groups that are left and where x is not zero. On S P is mu-strongly convex, mu =
lambda_min(B_S^T B_S) + rho, and v_S, the shortest subgradient of P there, is zero at xhat:

    ||x - xhat|| <= ||v_S|| / mu,     v_g = l_g x_g/||x_g|| - k_g,  or  (1 - l_g/||k_g||)_+ k_g in size where x_g = 0.

Minimiser. The accelerated proximal gradient method with restarts (Beck, Teboulle 2009; O'Donoghue, Candes 2015, arXiv
1204.3982), and Newton's step on the groups that it leaves, taken where it shortens v.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .l1_fold import PATIENCE, Features, Scalar, Vector, least, width

STEPS = 50  # of the proximal method before one of Newton's

Groups = Float[Array, " groups"]


class Fold(eqx.Module):
    """B and c; `norm` >= ||B||^2; l; the group of each feature, from 0."""

    B: Features
    c: Float[Array, " n"]
    norm: Scalar
    lam: Groups
    rho: Scalar
    groups: Int[Array, " p"]

    def sums(self, v: Vector) -> Groups:
        return jax.ops.segment_sum(v, self.groups, len(self.lam))

    def lengths(self, v: Vector) -> Groups:
        return jnp.sqrt(self.sums(v**2))

    def pull(self, x: Vector) -> Vector:
        """k."""
        return self.B.T @ (self.c - self.B @ x) - self.rho * x

    def shortest(self, x: Vector, k: Vector) -> Vector:
        """v, but for its sign where x is zero."""
        kept = self.lengths(x)[self.groups]
        shrunk = jnp.maximum(1 - self.lam / positive(self.lengths(k)), 0)[self.groups]
        return jnp.where(kept > 0, self.lam[self.groups] * x / positive(kept) - k, shrunk * k)

    def curvature(self, x: Vector, index: Int[Array, " W"], gram: Float[Array, "W W"]) -> Float[Array, "W W"]:
        """Of P on the columns of groups that do not vanish; ones on the diagonal elsewhere."""
        kept = self.lengths(x)
        groups, active = self.groups[index], (kept > 0)[self.groups[index]]
        unit = x[index] / positive(kept)[groups]
        across = (groups[:, None] == groups[None]) * (jnp.eye(len(index), dtype=x.dtype) - unit[:, None] * unit[None])
        lift = 4 * len(index) * float(jnp.finfo(x.dtype).eps) * jnp.trace(gram)
        H = gram + (self.lam / positive(kept))[groups][:, None] * across
        return jnp.where(active[:, None] & active[None], H, 0) + jnp.diag(jnp.where(active, self.rho + lift, 1))


class Iterate(NamedTuple):
    """x, its bound and the part of it that is rounding; gradients that were spent; the least ||v|| so far, and how many
    looks ago that was."""

    x: Vector
    error: Scalar
    floor: Scalar
    cost: Scalar
    best: Scalar
    since: Int[Array, ""]


def positive(v: Array) -> Array:
    return jnp.where(v > 0, v, 1)


def first_cost(n: int, p: int) -> float:
    """Before the first look: nothing."""
    return 0.0


def look_cost(n: int, p: int) -> float:
    """A gradient, a Gram matrix and its eigenvalues, in the multiplications of a gradient."""
    W = width(n, p)
    return 1 + (2 * W**3 + n * W**2) / (2 * n * p)


def dearest(n: int, p: int) -> float:
    """A look, and what is before it: proximal steps, a Cholesky factor, and what becomes of its step."""
    return look_cost(n, p) + STEPS + 2 + width(n, p) ** 3 / (12 * n * p)


def solve(fold: Fold, x0: Vector, eps: Scalar, most: Scalar) -> Iterate:
    """x with an error of at most eps, for at most `most` gradients, at least `look_cost`."""
    n, p = fold.B.shape
    start = look(fold, x0, jnp.zeros_like(fold.rho), jnp.full_like(fold.rho, jnp.inf), jnp.asarray(0))

    def unfinished(it):
        above = (it.error > eps) & (it.error > 2 * it.floor)
        return above & (it.cost + dearest(n, p) <= most) & (it.since < PATIENCE)

    def step(it):
        x = newton(fold, proximal(fold, it.x))
        return look(fold, x, it.cost + dearest(n, p) - look_cost(n, p), it.best, it.since)

    return lax.while_loop(unfinished, step, start)


def look(fold: Fold, x: Vector, cost: Scalar, best: Scalar, since: Int[Array, ""]) -> Iterate:
    """Screening, the certificate, and the columns that matter."""
    B, c, lam, rho, groups = fold.B, fold.c, fold.lam, fold.rho, fold.groups
    u = float(jnp.finfo(x.dtype).eps) / 2
    r = c - B @ x
    k = B.T @ r - rho * x
    norm_x = jnp.linalg.norm(x)
    noise = u * ((fold.norm + rho) * norm_x + jnp.sqrt(fold.norm) * jnp.linalg.norm(c))
    pulls, kept = fold.lengths(k), fold.lengths(x)
    s = jnp.minimum(1, jnp.min(lam / jnp.maximum(pulls, float(jnp.finfo(x.dtype).tiny))))
    gap = (1 - s) ** 2 / 2 * (jnp.sum(r**2) + rho * norm_x**2)
    gap += jnp.sum(jnp.maximum(lam * kept - s * fold.sums(x * k), 0)) + 2 * noise * norm_x
    gap += 8 * u * len(x) ** 0.5 * jnp.sum(lam * kept)
    lengths = jnp.sqrt(fold.sums(jnp.sum(B**2, axis=0)) + rho)
    left = (s * pulls + noise + lengths * jnp.sqrt(2 * gap) >= lam) | (kept > 0)
    score = pulls / positive(lam)
    score = jnp.where(kept > 0, 4.0, 0.0) + jnp.where(left, 2.0, 0.0) + score / (1 + score)
    index = lax.top_k(score[groups], width(*B.shape))[1]
    columns = B[:, index]
    gram = columns.T @ columns
    size = jnp.linalg.norm(jnp.where(left[groups], fold.shortest(x, k), 0))
    mu = least(gram, left[groups][index], jnp.sum(left[groups]), rho)
    known, nothing = mu > 0, ~jnp.any(left)
    floor = jnp.where(known, noise / positive(mu), 0)
    error = jnp.where(known, size / positive(mu) + floor, jnp.inf)
    floor, error = jnp.where(nothing, 0, floor), jnp.where(nothing, 0, error)
    error = jnp.where(jnp.isfinite(size), error, jnp.nan)
    better = size < best / 2
    return Iterate(
        x, error, floor, cost + look_cost(*B.shape), jnp.where(better, size, best), jnp.where(better, 0, since + 1)
    )


def proximal(fold: Fold, x: Vector) -> Vector:
    """`STEPS` of the accelerated method, begun again where its last move goes uphill."""
    step = 1 / (fold.norm + fold.rho)

    def move(_, carry):
        x, y, t = carry
        moved = y + step * fold.pull(y)
        new = moved * jnp.maximum(1 - step * fold.lam / positive(fold.lengths(moved)), 0)[fold.groups]
        uphill = jnp.sum((y - new) * (new - x)) > 0
        t = jnp.where(uphill, 1, t)
        later = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        return new, jnp.where(uphill, new, new + (t - 1) / later * (new - x)), later

    return lax.fori_loop(0, STEPS, move, (x, x, jnp.ones_like(step)))[0]


def newton(fold: Fold, x: Vector) -> Vector:
    """One step among all x whose groups do not vanish, if v is shorter there."""
    k = fold.pull(x)
    v = fold.shortest(x, k)
    active = (fold.lengths(x) > 0)[fold.groups]
    d = adjoint(fold, x, jnp.where(active, v, 0))
    new = x - d
    shorter = jnp.linalg.norm(fold.shortest(new, fold.pull(new))) < jnp.linalg.norm(v)
    return jnp.where(shorter & jnp.all(jnp.isfinite(d)), new, x)


def adjoint(fold: Fold, x: Vector, g: Vector) -> Vector:
    """H_S^{-1} g_S on the groups S where x is not zero; zero elsewhere."""
    active = (fold.lengths(x) > 0)[fold.groups]
    index = lax.top_k(active.astype(x.dtype), width(*fold.B.shape))[1]
    columns = fold.B[:, index]
    factor = jnp.linalg.cholesky(fold.curvature(x, index, columns.T @ columns))
    q = jax.scipy.linalg.cho_solve((factor, True), jnp.where(active[index], g[index], 0))
    return jnp.zeros_like(x).at[index].set(q)
