"""Limited-memory BFGS: the inverse B of a Hessian from its last secant pairs.

    B+ = V^T B V + s s^T / <s, y>,   V = 1 - y s^T / <s, y>,        B_0 = gamma P^{-1}

for pairs s = x+ - x, y = grad+ - grad with <s, y> > 0, and gamma = <s, y> / <y, P^{-1} y> of the last one; P is the
preconditioner, or 1. Nocedal 1980; Nocedal, Wright, Numerical Optimization (2006), algorithm 7.4.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from .problem import Scalar, Vector

Inverse = Callable[[Vector], Vector] | None


class Pairs(eqx.Module):
    """The last pairs: leaves of `s` and `y` have a leading axis of slots, of which `count` % slots is written next.
    `inverse` is 1 / <s, y>, zero in an empty slot."""

    s: Vector
    y: Vector
    inverse: Float[Array, " slots"]
    gamma: Scalar
    count: Int[Array, ""]


def empty(like: Vector, slots: int) -> Pairs:
    """No pairs yet: B = 1."""
    leaf = jax.tree.leaves(like)[0]
    inverse, gamma = jnp.zeros(slots, leaf.dtype), jnp.ones((), leaf.dtype)
    rest = replicate((inverse, gamma, jnp.asarray(0, jnp.int32)), leaf)
    return Pairs(stack(like, slots), stack(like, slots), *rest)


def stack(like: Vector, slots: int) -> Vector:
    """Zeros with a leading axis of slots, laid over devices as `like` is."""

    def zeros(v):
        spread = layout(v)
        device = spread and NamedSharding(spread.mesh, PartitionSpec(None, *spread.spec))
        return jnp.zeros((slots, *v.shape), v.dtype, device=device)

    return jax.tree.map(zeros, like)


def replicate(tree: PyTree, like: Array) -> PyTree:
    """The tree on every device of the mesh that `like` lies on, if it does: so it comes back from a program that reads
    `like`, and one that is given what it gave back is compiled once."""
    spread = layout(like)
    return tree if spread is None else jax.device_put(tree, NamedSharding(spread.mesh, PartitionSpec()))


def layout(v: Array) -> NamedSharding | None:
    """How v is laid over a mesh; None on one device, or under a transformation."""
    traced = isinstance(v, jax.core.Tracer)
    return v.sharding if not traced and isinstance(v.sharding, NamedSharding) else None


def push(pairs: Pairs, s: Vector, y: Vector, precondition: Inverse = None) -> Pairs:
    """With one pair more; unchanged if the pair has no clearly positive curvature, since B would not stay positive."""
    sy = optax.tree.vdot(s, y)
    yPy = optax.tree.vdot(y, y if precondition is None else precondition(y))
    usable = sy > 1e-10 * optax.tree.norm(s) * optax.tree.norm(y)
    at = pairs.count % len(pairs.inverse)

    def write(stack, v):
        return stack.at[at].set(jnp.where(usable, v, stack[at]))

    return Pairs(
        jax.tree.map(write, pairs.s, s),
        jax.tree.map(write, pairs.y, y),
        write(pairs.inverse, 1 / jnp.where(usable, sy, 1)),
        jnp.where(usable, sy / jnp.where(usable, yPy, 1), pairs.gamma),
        pairs.count + usable,
    )


def restrict(pairs: Pairs, free: PyTree[Bool[Array, "..."]]) -> Pairs:
    """The pairs of the entries that are free; one whose curvature there is not positive drops out."""
    s, y = (jax.tree.map(lambda v, free: jnp.where(free[None], v, 0), stack, free) for stack in (pairs.s, pairs.y))

    def dots(a, b):
        products = jax.tree.map(lambda a, b: jnp.sum((a * b).reshape(len(a), -1), axis=1), a, b)
        return sum(jax.tree.leaves(products))

    sy, floor = dots(s, y), 1e-10 * jnp.sqrt(dots(s, s) * dots(y, y))
    usable = (pairs.inverse > 0) & (sy > floor)
    return Pairs(s, y, jnp.where(usable, 1 / jnp.where(usable, sy, 1), 0), pairs.gamma, pairs.count)


def apply(pairs: Pairs, v: Vector, precondition: Inverse = None) -> Vector:
    """B v."""
    slots = len(pairs.inverse)
    used = jnp.minimum(pairs.count, slots)

    def pick(stack, i):
        return jax.tree.map(lambda leaf: leaf[i], stack)

    def newest_first(j, carry):
        v, a = carry
        i = (pairs.count - 1 - j) % slots
        a_i = pairs.inverse[i] * optax.tree.vdot(pick(pairs.s, i), v)
        return optax.tree.add_scale(v, -a_i, pick(pairs.y, i)), a.at[i].set(a_i)

    def oldest_first(j, v):
        i = (pairs.count - used + j) % slots
        b_i = pairs.inverse[i] * optax.tree.vdot(pick(pairs.y, i), v)
        return optax.tree.add_scale(v, a[i] - b_i, pick(pairs.s, i))

    v, a = lax.fori_loop(0, used, newest_first, (v, jnp.zeros_like(pairs.inverse)))
    v = optax.tree.scale(pairs.gamma, v if precondition is None else precondition(v))
    return lax.fori_loop(0, used, oldest_first, v)
