"""Experts on the responses of filters, phi(t) = sqrt(1 + t^2), on one image at a time, as products of matrices.

What is K or s^2 times an image is made for a strip of its rows, or for some of the filters, at a time.
"""

import jax
import jax.numpy as jnp
from jax import lax

WHOLE, STRIP = 2**14, 2**13  # pixels: with 48 filters of 7 x 7 an array of a strip's responses is 1.5 MB of float32
BLOCK = 8  # filters


def margins(size):
    return (size - 1) // 2, size // 2


def padded(image, size, boundary):
    return jnp.pad(image, margins(size), mode="reflect") if boundary == "reflect" else image


def patches(image, size):
    """The patches of one image, or of a strip of it, as columns, (size^2, pixels)."""
    rows, columns = (n - size + 1 for n in image.shape)
    shifted = [image[i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
    return jnp.stack(shifted).reshape(size**2, -1)


def responses(B, X):
    """b_i * x, (K, pixels). The precision forbids GPUs to round float32 to 10 bits."""
    return jnp.matmul(B.reshape(len(B), -1), X, precision="highest")


def strips(f, size, *images):
    """f(strip, ...) of padded images' strips, stacked; one alone is in memory, in derivatives, too."""
    rows, columns = (n - size + 1 for n in images[0].shape)
    height = rows if rows * columns <= WHOLE else max(1, STRIP // columns)
    count, rest = divmod(rows, height)
    if count == 1 and not rest:
        return jax.tree.map(lambda v: v[None], f(*images))
    f = jax.checkpoint(f)
    found = lax.map(
        lambda k: f(*(lax.dynamic_slice_in_dim(v, k * height, height + size - 1) for v in images)), jnp.arange(count)
    )
    if not rest:
        return found
    last = f(*(v[count * height :] for v in images))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), found, last)


def experts(x, B, a, boundary):
    """sum_i a_i sum_p phi(b_i * x) of one image, patches times a matrix: `lax.conv` is many times slower backwards."""
    size = B.shape[1]

    def energy(x):
        t = responses(B, patches(x, size))
        return a @ jnp.sum(jnp.sqrt(1 + t**2), axis=1)

    return jnp.sum(strips(energy, size, padded(x, size, boundary)))


def transposed(d, B, shape, boundary):
    """B_i^T d_i for every i, as (K, pixels of an image of `shape`)."""
    size = B.shape[1]
    grown = [n + (size - 1 if boundary == "reflect" else 0) for n in shape]
    d = d.reshape(len(B), *(n - size + 1 for n in grown))
    Y = jnp.fft.irfft2(jnp.fft.rfft2(B, s=grown) * jnp.fft.rfft2(d, s=grown), s=grown)
    fold = jax.linear_transpose(lambda x: padded(x, size, boundary), jnp.zeros(shape, d.dtype))
    return jax.vmap(lambda y: fold(y)[0])(Y).reshape(len(B), -1)


def logs_constant(theta, a, power):
    """L_J^2 of scale, weights and smoothings at every frequency."""
    scale, logs = int("scale" in theta), ("weights" in theta) + ("smoothings" in theta)
    return scale * (a @ power) ** 2 + logs * (a**2 @ power**2)


def measures(x, q, B, a, w, reach, leaves, boundary):
    """What `bounds` reads off one image: sums over its pixels, max_p |phi''' B_i q|, max_p ||X_p||^2."""
    size, reach = B.shape[1], reach[:, None]

    def of_strip(x, q):
        X, Q = patches(x, size), patches(q, size)
        t, u = responses(B, X), responses(B, Q)
        mean, r = jnp.mean(X, axis=0, keepdims=True), lax.rsqrt(1 + t**2)
        near = jnp.maximum(jnp.abs(t) - reach, 0)  # phi'' = (1 + t^2)^{-3/2} is largest nearest 0,
        worst = jnp.clip(0.5, jnp.abs(t) - reach, jnp.abs(t) + reach)  # |phi'''| = 3 |t| (1 + t^2)^{-5/2} nearest 1/2
        u2, u3 = u * lax.rsqrt(1 + near**2) ** 3, 3 * u * worst * lax.rsqrt(1 + worst**2) ** 5
        sums = {
            "QQ": Q @ Q.T, "ss": (t * r) @ (t * r).T, "tr": jnp.sum((t * r**3) ** 2, axis=1),
            "rX": r**6 @ jnp.sum((X - mean) ** 2, axis=0), "uu": jnp.sum(u**2, axis=1),
            "u2": jnp.sum(u2**2, axis=1), "u3X": u3**2 @ jnp.sum(X**2, axis=0),
        }  # fmt: skip
        return sums, jnp.max(jnp.abs(u3), axis=1), jnp.max(jnp.sum(X**2, axis=0))

    grown = [padded(v, size, boundary) for v in (x, q)]
    sums, u3, X2 = strips(of_strip, size, *grown)
    sums = {name: jnp.sum(v, axis=0) for name, v in sums.items()}
    Y = columns(x, grown[0], B, a, w, leaves, boundary)
    gradient = jax.grad(experts)(x, B, a, boundary) if "scale" in leaves else jnp.zeros_like(x)
    return sums | {"YY": Y @ Y.T, "gg": jnp.sum(gradient**2)}, jnp.max(u3, axis=0), jnp.max(X2)


def blocks(f, pixels, *filters):
    """f(filters, ...), arrays of (K, ...), of some filters at a time where images are large."""
    K = len(filters[0])
    if pixels <= WHOLE or K % BLOCK:
        return f(*filters)
    split = [v.reshape(K // BLOCK, BLOCK, *v.shape[1:]) for v in filters]
    return jax.tree.map(lambda v: v.reshape(K, *v.shape[2:]), lax.map(lambda part: f(*part), split))


def columns(x, grown, B, a, w, leaves, boundary):
    """Columns of J as rows: a_i B_i^T phi', -a_i B_i^T (t phi''), or in direction of the filters' means
    s w_i B_i^T (phi'' mean); a row of zeros where there are none."""
    size = B.shape[1]
    names = ["filters"] if "filters" in leaves else [name for name in ("weights", "smoothings") if name in leaves]
    if not names:
        return jnp.zeros((1, x.size), x.dtype)
    X = patches(grown, size)

    def some(B, a, w):
        t = responses(B, X)
        r = lax.rsqrt(1 + t**2)
        made = {"weights": lambda: a[:, None] * t * r, "smoothings": lambda: a[:, None] * t * r**3}
        made["filters"] = lambda: size * w[:, None] * jnp.mean(X, axis=0, keepdims=True) * r**3
        return [transposed(made[name](), B, x.shape, boundary) for name in names]

    Y = blocks(some, X.shape[1], B, a, w)
    return Y[0] if len(Y) == 1 else jnp.concatenate(Y)
