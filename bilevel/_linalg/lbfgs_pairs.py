"""Limited-memory BFGS: the inverse B of a Hessian from its last secant pairs.

    B+ = V^T B V + s s^T / <s, y>,   V = 1 - y s^T / <s, y>,        B_0 = gamma P^{-1}

for pairs s = x+ - x, y = grad+ - grad with <s, y> > 0, and gamma = <s, y> / <y, P^{-1} y> of the last one; P is the
preconditioner, or 1. With the pairs as columns of S and Y, oldest first, R the upper triangle of S^T Y and D its
diagonal, B v is two passes over each of them, and no loop:

    R a = S^T v,    r = B_0 (v - Y a),    R^T c = D a - Y^T r,    B v = r + S c

Nocedal 1980; Byrd, Nocedal, Schnabel 1994. The two triangular systems are the two loops of the usual recursion.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float, Int, PyTree

from .norms import norm
from .sharding import replicate, zeros
from .vectors import Scalar, Vector

HIGHEST = jax.lax.Precision.HIGHEST
Inverse = Callable[[Vector], Vector] | None
Mask = PyTree[Bool[Array, "..."]] | None


class CurvaturePairs(eqx.Module):
    """The last pairs: leaves of `s` and `y` have a leading axis of slots, of which `count` % slots is written next.
    `products[i, j]` is <s_i, y_j> where pair i is no newer than j, and zero in an empty slot; where i is newer it is
    left over from an older pair, and never read."""

    s: Vector
    y: Vector
    products: Float[Array, "slots slots"]
    gamma: Scalar
    count: Int[Array, ""]


def empty(like: Vector, slots: int) -> CurvaturePairs:
    """No pairs yet: B = 1."""
    leaf = jax.tree.leaves(like)[0]
    rest = np.zeros((slots, slots), leaf.dtype), np.ones((), leaf.dtype), np.zeros((), np.int32)
    rest = replicate(jax.device_put(rest), like)
    return CurvaturePairs(zeros(like, slots), zeros(like, slots), *rest)


def push(
    pairs: CurvaturePairs, s: Vector, y: Vector, precondition: Inverse = None, when: Bool[Array, ""] | bool = True
) -> CurvaturePairs:
    """With one pair more. Unchanged if `when` is false, or if the pair has no clearly positive curvature or is not
    finite, since B would not stay positive."""
    sy = optax.tree.vdot(s, y)
    yPy = optax.tree.vdot(y, y if precondition is None else precondition(y))
    usable = when & (sy > 1e-10 * norm(s) * norm(y))
    at = pairs.count % len(pairs.products)

    column = dots(pairs.s, y).at[at].set(sy)
    # This test makes the write below depend on the read above: otherwise XLA copies all of the stack first. So would a
    # `cond` around the whole push.
    usable &= jnp.all(jnp.isfinite(column))

    def write(stack, v):
        return stack.at[at].set(jnp.where(usable, v, stack[at]))

    column = jnp.where(usable, column, pairs.products[:, at])
    return CurvaturePairs(
        jax.tree.map(write, pairs.s, s),
        jax.tree.map(write, pairs.y, y),
        pairs.products.at[:, at].set(column),
        jnp.where(usable, sy / jnp.where(usable, yPy, 1), pairs.gamma),
        pairs.count + usable.astype(pairs.count.dtype),
    )


def restrict(pairs: CurvaturePairs, free: Mask) -> CurvaturePairs:
    """The products of the entries that are free, for `apply` with the same `free`; a pair whose curvature there is not
    positive drops out. The pairs themselves stay: a copy of them would be most of what a step holds."""

    def row(pair):
        s, y = (mask(v, free) for v in pair)
        return dots(pairs.y, s), norm(s), norm(y)

    products, s_norms, y_norms = jax.lax.map(row, (pairs.s, pairs.y))
    usable = (jnp.diagonal(pairs.products) > 0) & (jnp.diagonal(products) > 1e-10 * s_norms * y_norms)
    products = jnp.where(usable[:, None] & usable[None], products, 0)
    return dataclasses.replace(pairs, products=products)


def apply(pairs: CurvaturePairs, v: Vector, precondition: Inverse = None, free: Mask = None) -> Vector:
    """B v. With `free`, and pairs that were restricted to it, the B of the entries that are free, for a v that is zero
    in all others."""

    def oldest_first(v):
        return jnp.roll(v, -pairs.count, axis=tuple(range(v.ndim)))

    def by_slot(v):
        return jnp.roll(v, pairs.count)

    products = oldest_first(pairs.products)
    D = jnp.diagonal(products)
    used = D > 0  # a slot without a pair: a = c = 0
    R = jnp.triu(products) + jnp.diag(jnp.where(used, 0, 1).astype(D.dtype))

    a = solve_triangular(R, jnp.where(used, oldest_first(dots(pairs.s, v)), 0))
    r = optax.tree.sub(v, mask(combine(pairs.y, by_slot(a)), free))
    r = optax.tree.scale(pairs.gamma, r if precondition is None else precondition(r))
    c = solve_triangular(R, jnp.where(used, D * a - oldest_first(dots(pairs.y, r)), 0), trans=1)
    return optax.tree.add(r, mask(combine(pairs.s, by_slot(c)), free))


def mask(v: Vector, free: Mask) -> Vector:
    """v, and zero where it is not free."""
    return v if free is None else jax.tree.map(lambda v, free: jnp.where(free, v, 0), v, free)


# Both without a reshape, which would gather what is sharded, and in full precision, which accelerators would otherwise
# not give float32.


def dots(stack: Vector, v: Vector) -> Float[Array, " slots"]:
    """<stack_i, v> of each slot."""
    products = jax.tree.map(lambda stack, v: jnp.tensordot(stack, v, v.ndim, precision=HIGHEST), stack, v)
    return sum(jax.tree.leaves(products))


def combine(stack: Vector, weights: Float[Array, " slots"]) -> Vector:
    """sum_i weights_i stack_i."""
    return jax.tree.map(
        lambda stack: jnp.tensordot(weights.astype(stack.dtype), stack, 1, precision=HIGHEST), stack
    )  # fmt: skip
