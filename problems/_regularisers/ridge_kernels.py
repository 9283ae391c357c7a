"""The responses of filters and of their mirror images, a strip of rows at a time, by a quarter of the multiplications.

A filter that is unchanged where it is turned by half is the sum of a part p that is even in rows and columns and of a
part m that is odd in both; its mirror image is p - m. Their responses are the sum and the difference of those of p and
m, and p meets an image only in the sums of pixels at (+-d1, +-d2), m in the differences: 12 x 16 and 12 x 9 products
with a patch of 7 x 7 for 24 responses, not 24 x 49. A filter that changes its sign where it is turned: the same, p odd
in rows alone, m in columns alone.
"""

import jax
import jax.numpy as jnp
from jax import lax

STRIP = 2**12  # pixels: what is computed of them, some hundred numbers a pixel, stays in the cache


def energy(image, parts):
    """R of one image."""
    height, width = image.shape
    margin = parts.taps.shape[1] // 2
    image = jnp.pad(image, margin, mode="symmetric")
    rows = max(1, STRIP // width)

    # Derivatives compute the responses, 4m times an image, again: cheaper than to store them.
    of_strip = jax.checkpoint(lambda strip: potentials(responses(strip, parts.taps), parts), prevent_cse=False)

    def of(start, rows):
        return of_strip(lax.dynamic_slice_in_dim(image, start, rows + 2 * margin))

    count, rest = divmod(height, rows)
    total = jnp.sum(lax.map(lambda k: of(k * rows, rows), jnp.arange(count))) if count > 1 else 0.0
    total += of(0, rows) if count == 1 else 0.0
    return total + (of(count * rows, rest) if rest else 0.0)


def potentials(t, parts):
    """sum a psi(t, nu) - b psi(t, nu')."""
    t2 = t**2
    value = parts.a @ jnp.sum(jnp.sqrt(t2 + parts.nu[None, :, None] ** 2), axis=(0, 2))
    if parts.b is None:
        return value
    return value - parts.b @ jnp.sum(jnp.sqrt(t2 + parts.wide[None, :, None] ** 2), axis=(0, 2))


def responses(image, taps):
    """c_i * x and those of the mirror images, (2, K, pixels), of an image with margins of half a filter."""
    m, margin = len(taps) // 2, taps.shape[1] // 2
    sums, differences = folded(image, margin, 0)
    both = [folded(v, margin, 2) for v in (sums, differences)]  # by rows, then by columns
    P, M = (taps + taps[:, :, ::-1]) / 2, (taps - taps[:, :, ::-1]) / 2
    here, right = slice(margin, None), slice(margin + 1, None)

    def product(taps, X):
        taps, X = taps.reshape(m, -1), X.reshape(taps.shape[1] * taps.shape[2], -1)
        return jnp.matmul(taps, X, precision="highest")  # the precision forbids GPUs to round float32 to 10 bits

    p = product(P[:m, here, here], both[0][0]), product(P[m:, right, here], both[1][0])
    m_ = product(M[:m, right, right], both[1][1]), product(M[m:, here, right], both[0][1])
    p, m_ = jnp.concatenate(p), jnp.concatenate(m_)
    return jnp.stack([p + m_, p - m_])


def folded(v, margin, axis):
    """x(. + d) + x(. - d) for d = 0 (x itself) ... margin and x(. + d) - x(. - d) for d = 1 ... margin, along an axis
    that has margins; d comes first or, behind one that is there, second."""
    n = v.shape[axis] - 2 * margin

    def moved(d):
        return lax.slice_in_dim(v, margin + d, margin + d + n, axis=axis)

    steps = range(1, margin + 1)
    sums = jnp.stack([moved(0), *(moved(d) + moved(-d) for d in steps)], axis=min(axis, 1))
    return sums, jnp.stack([moved(d) - moved(-d) for d in steps], axis=min(axis, 1))
