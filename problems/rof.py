"""One image with exact total variation (Rudin, Osher, Fatemi): its minimiser, and how far from it x can be.

    P(x) = 1/2 ||x - y||^2 + a sum_pixels |Dx|,     D(p) = 1/2 ||y||^2 - 1/2 ||y - D^T p||^2,   |p| <= a at every pixel

|.| is the length of a pixel's two differences, or, anisotropic, the sum of their sizes. With s = y - D^T p, for any x,

    P(x) - D(p) = G = 1/2 ||x - s||^2 + sum_pixels (a |Dx| - <p, Dx>),

a sum of what is not negative: nothing cancels. P and -D are 1-strongly convex in x and in s, and both are least at
xhat, so 1/2 ||x - xhat||^2 + 1/2 ||s - xhat||^2 <= G, and by the parallelogram's law

    || (x + s)/2 - xhat ||^2  <=  G - 1/4 ||x - s||^2.

p by accelerated projected gradients (Beck, Teboulle 2009), begun again where momentum points uphill (O'Donoghue,
Candes, arXiv 1204.3982). x from s: wherever |p| < a the solution is flat, so s is averaged over the regions that such
pixels join. Without that G is of the size of s's error, with it of its square, but for pixels that are nearly flat.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Image = Float[Array, "height width"]
Flow = tuple[Image, Image]
Scalar = Float[Array, ""]
FIRST, GROWTH = 20, 4  # steps before a look: so many at least, and a quarter of those that were made
LOOK = 2  # gradients: what a look costs
ROUNDS = 100  # of labels, after which a region may be in parts: whatever is averaged, the bound holds


class Iterate(NamedTuple):
    """p and where momentum leads it, t of it; x with ||x - xhat||^2 <= gap, `noise` of which is rounding; gradients."""

    p: Flow
    ahead: Flow
    t: Scalar
    x: Image
    gap: Scalar
    noise: Scalar
    cost: Int[Array, ""]


def solve(y: Image, a: Scalar, p: Flow, goal: Scalar, most: Int[Array, ""], isotropic: bool) -> Iterate:
    """x with ||x - xhat||^2 <= goal from a p of any size, for at most `most` gradients, which is at least LOOK."""
    p = project(p, a, isotropic)
    start = Iterate(p, p, jnp.ones_like(a), y, jnp.inf * a, jnp.zeros_like(a), jnp.asarray(0, jnp.int32))

    def ascend(_, carry):
        (px, py), (qx, qy), t = carry
        dx, dy = differences(y - adjoint_differences(qx, qy))
        nx, ny = project((qx + dx / 8, qy + dy / 8), a, isotropic)
        t = jnp.where(jnp.sum((qx - nx) * (nx - px) + (qy - ny) * (ny - py)) > 0, 1, t)
        longer = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        momentum = (t - 1) / longer
        return (nx, ny), (nx + momentum * (nx - px), ny + momentum * (ny - py)), longer

    def steps(it):
        return jnp.maximum(FIRST, it.cost // GROWTH)

    def unfinished(it):
        return (it.gap > goal) & (it.gap > 4 * it.noise) & (it.cost + steps(it) + LOOK <= most)

    def step(it):
        p, ahead, t = lax.fori_loop(0, steps(it), ascend, (it.p, it.ahead, it.t))
        return look(y, a, it._replace(p=p, ahead=ahead, t=t, cost=it.cost + steps(it)), isotropic)

    return lax.while_loop(unfinished, step, look(y, a, start, isotropic))


def look(y: Image, a: Scalar, it: Iterate, isotropic: bool) -> Iterate:
    """The iterate with x and G by its p."""
    px, py = it.p
    s = y - adjoint_differences(px, py)
    x = flattened(s, it.p, a, isotropic)
    dx, dy = differences(x)
    u = float(jnp.finfo(y.dtype).eps) / 2
    if isotropic:
        size = a * jnp.sqrt(dx**2 + dy**2)
        aligned = jnp.maximum(size - px * dx - py * dy, 0)
    else:
        size = a * (jnp.abs(dx) + jnp.abs(dy))
        aligned = jnp.maximum(a * jnp.abs(dx) - px * dx, 0) + jnp.maximum(a * jnp.abs(dy) - py * dy, 0)
    # what |p| <= a and the terms of `aligned` are rounded by, and x itself
    noise = 16 * u * jnp.sum(size) + (4 * u * jnp.linalg.norm(y)) ** 2
    gap = jnp.sum((x - s) ** 2) / 4 + jnp.sum(aligned) + noise
    return it._replace(x=(x + s) / 2, gap=gap, noise=noise, cost=it.cost + LOOK)


def project(p: Flow, a: Scalar, isotropic: bool) -> Flow:
    """The nearest p with |p| <= a."""
    px, py = p
    if not isotropic:
        return jnp.clip(px, -a, a), jnp.clip(py, -a, a)
    scale = a * lax.rsqrt(jnp.maximum(px**2 + py**2, a**2))
    return scale * px, scale * py


def flattened(s: Image, p: Flow, a: Scalar, isotropic: bool) -> Image:
    """s averaged over the regions that are joined where |p| < a, by more than rounding."""
    inside = a * (1 - 1e3 * float(jnp.finfo(s.dtype).eps))
    px, py = p
    flat = (px**2 + py**2 < inside**2,) * 2 if isotropic else (jnp.abs(px) < inside, jnp.abs(py) < inside)
    label = joined(flat[0][:, :-1], flat[1][:-1])
    zeros = jnp.zeros(s.size, s.dtype)
    sums, counts = zeros.at[label].add(s.ravel()), zeros.at[label].add(1)
    return (sums / jnp.maximum(counts, 1))[label].reshape(s.shape)


def joined(right: Bool[Array, "height less"], down: Bool[Array, "short width"]) -> Int[Array, " pixels"]:
    """A label for every pixel, alike where a way leads through joined neighbours."""
    height, width = right.shape[0], down.shape[1]
    size = height * width

    def spread(carry):
        """The least label of a pixel and its neighbours; of all that have its label; and once more by that one's."""
        label, _, rounds = carry
        low = grid = label.reshape(height, width)
        for axis, link in ((1, right), (0, down)):
            near, far = (lax.slice_in_dim(grid, k, grid.shape[axis] - 1 + k, axis=axis) for k in (0, 1))
            for k, other in ((1, near), (0, far)):
                width_of = [(0, 0), (0, 0)]
                width_of[axis] = (k, 1 - k)
                low = jnp.minimum(low, jnp.pad(jnp.where(link, other, size), width_of, constant_values=size))
        low = low.ravel()
        new = jnp.minimum(low, label.at[label].min(low))
        new = new[new]
        return new, jnp.any(new != label), rounds + 1

    start = jnp.arange(size, dtype=jnp.int32), jnp.asarray(True), 0
    return lax.while_loop(lambda carry: carry[1] & (carry[2] < ROUNDS), spread, start)[0]


# As `tv_kernels` has them for stacks; for one image, in cache, these are three times as fast.
def differences(x: Image) -> Flow:
    """D x, zero at the last column of dx and the last row of dy."""
    return jnp.pad(x[:, 1:] - x[:, :-1], ((0, 0), (0, 1))), jnp.pad(x[1:] - x[:-1], ((0, 1), (0, 0)))


def adjoint_differences(px: Image, py: Image) -> Image:
    """D^T p, where the last column of px and the last row of py are zero."""
    return jnp.pad(px[:, :-1], ((0, 0), (1, 0))) - px + jnp.pad(py[:-1], ((1, 0), (0, 0))) - py
