"""Experts on the responses of filters, phi(t) = sqrt(1 + t^2), on one image at a time, as products of matrices."""

import jax
import jax.numpy as jnp
from jax import lax


def margins(size):
    return (size - 1) // 2, size // 2


def padded(image, size, boundary):
    return jnp.pad(image, margins(size), mode="reflect") if boundary == "reflect" else image


def patches(image, size, boundary):
    """The patches of one image as columns, (size^2, pixels)."""
    image = padded(image, size, boundary)
    rows, columns = (n - size + 1 for n in image.shape)
    shifted = [image[i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
    return jnp.stack(shifted).reshape(size**2, -1)


def responses(B, X):
    """b_i * x, (K, pixels). The precision forbids GPUs to round float32 to 10 bits."""
    return jnp.matmul(B.reshape(len(B), -1), X, precision="highest")


def experts(x, B, a, boundary):
    """sum_i a_i sum_p phi(b_i * x) of one image, patches times a matrix: `lax.conv` is many times slower backwards."""
    t = responses(B, patches(x, B.shape[1], boundary))
    return a @ jnp.sum(jnp.sqrt(1 + t**2), axis=1)


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
    X, Q = patches(x, size, boundary), patches(q, size, boundary)
    t, u = responses(B, X), responses(B, Q)
    mean, r = jnp.mean(X, axis=0, keepdims=True), lax.rsqrt(1 + t**2)
    near = jnp.maximum(jnp.abs(t) - reach, 0)  # phi'' = (1 + t^2)^{-3/2} is largest nearest 0,
    worst = jnp.clip(0.5, jnp.abs(t) - reach, jnp.abs(t) + reach)  # |phi'''| = 3 |t| (1 + t^2)^{-5/2} nearest 1/2
    u2, u3 = u * lax.rsqrt(1 + near**2) ** 3, 3 * u * worst * lax.rsqrt(1 + worst**2) ** 5
    # columns of J: a_i B_i^T phi', -a_i B_i^T (t phi''), or in direction of the filters' means s w_i B_i^T (phi'' mean)
    columns = {"weights": a[:, None] * t * r, "smoothings": a[:, None] * t * r**3}
    if "filters" in leaves:
        columns = {"filters": size * w[:, None] * mean * r**3}
    Y = [transposed(columns[name], B, x.shape, boundary) for name in columns if name in leaves]
    Y = jnp.concatenate([jnp.zeros((1, x.size), x.dtype), *Y])
    gradient = jax.grad(experts)(x, B, a, boundary) if "scale" in leaves else jnp.zeros_like(x)
    sums = {
        "YY": Y @ Y.T, "QQ": Q @ Q.T, "ss": (t * r) @ (t * r).T, "tr": jnp.sum((t * r**3) ** 2, axis=1),
        "rX": r**6 @ jnp.sum((X - mean) ** 2, axis=0), "gg": jnp.sum(gradient**2),
        "uu": jnp.sum(u**2, axis=1), "u2": jnp.sum(u2**2, axis=1), "u3X": u3**2 @ jnp.sum(X**2, axis=0),
    }  # fmt: skip
    return sums, jnp.max(jnp.abs(u3), axis=1), jnp.max(jnp.sum(X**2, axis=0))
