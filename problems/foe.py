"""Fields of Experts: denoising of a stack of images with learned filters.

    h(x, theta) = sum over images of 1/2 ||x - y||^2 + 1/2 e^{t_0} sum_i e^{t_i} sum_p sqrt((c_i * x)_p^2 + nu_i^2)
    g(x) = 1/n sum over images of 1/2 ||x - x_clean||^2,        nu_i = e^{s_i}

theta = {"scale": t_0, "weights": t_i, "smoothings": s_i, "filters": c_i}, any of them held fixed instead; c * x is the
correlation of a filter's taps with the image. Section 4.3 of arXiv 2308.10098.
"""

from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, Key, PyTree

from bilevel import AbstractProblem, Bounds, Constants, solve_lower
from bilevel.lower import LowerSolution

from .tv import C3, Images, Scalar, checked

Theta = PyTree[Float[Array, "..."]]
SHAPES = {"scale": "()", "weights": "(K,)", "smoothings": "(K,)", "filters": "(K, s, s)"}


class FieldsOfExperts(AbstractProblem):
    """`FieldsOfExperts(clean, noisy)`; theta a dict: scale (), weights (K,), smoothings (K,), filters (K, s, s).

    - `clean`: (n, height, width), float32 or float64, in [0, 1]; None to denoise only (`upper` then raises).
    - `noisy`: the same shape and dtype, finite, within [-9, 10] (intensities in [0, 1] plus noise).
    - `fixed`: the leaves of theta that are held constant, by name; theta has the others. One that maps "filters" to
      `dct_filters(7)`, "smoothings" and "weights" to arrays of 48 leaves a single scale to learn.
    - `boundary`: "valid", patches inside the image only; "reflect", the image mirrored by half a filter, as published.

    scale, weights and smoothings are logs; x has the shape of `noisy`. JAX arrays keep their sharding over the images.
    Raises TypeError for dtypes and ValueError for shapes and values, at construction or where theta is first used.
    """

    clean: Images | None
    noisy: Images
    fixed: dict[str, Array]
    boundary: str = eqx.field(static=True)
    shards: int = eqx.field(static=True)  # images that are worked on at a time: one on every device

    # All checks are here, where JAX never comes when it rebuilds a problem from its leaves.
    def __init__(
        self,
        clean: ArrayLike | None,
        noisy: ArrayLike,
        *,
        fixed: Mapping[str, ArrayLike] | None = None,
        boundary: str = "valid",
    ):
        self.noisy = checked("noisy", noisy, -9, 10)
        self.clean = None if clean is None else checked("clean", clean, 0, 1)
        if self.clean is not None and self.clean.shape != self.noisy.shape:
            raise ValueError(f"clean is {self.clean.shape}, noisy {self.noisy.shape}: pass stacks of the same shape")
        if self.clean is not None and self.clean.dtype != self.noisy.dtype:
            raise TypeError(f"clean is {self.clean.dtype}, noisy {self.noisy.dtype}: pass noisy.astype(clean.dtype)")
        if boundary not in ("valid", "reflect"):
            raise ValueError(f'boundary must be "valid" or "reflect", not {boundary!r}')
        self.fixed = {name: jnp.asarray(leaf, self.noisy.dtype) for name, leaf in dict(fixed or {}).items()}
        for name, leaf in self.fixed.items():
            if not isinstance(leaf, jax.core.Tracer) and not bool(jnp.all(jnp.isfinite(leaf))):
                raise ValueError(f"fixed {name} holds NaN or infinite values")
        self.boundary, self.shards = boundary, 1
        if not isinstance(self.noisy, jax.core.Tracer):
            self.shards = len(self.noisy) // self.noisy.sharding.shard_shape(self.noisy.shape)[0]

    def lower(self, x: Images, theta: Theta) -> Scalar:
        """h(x, theta). Raises ValueError if theta has the wrong leaves or shapes."""
        B, a, _ = self.scaled(theta)
        return jnp.sum((x - self.noisy) ** 2) / 2 + jnp.sum(self.each(lambda x: self.energy(x, B, a), x))

    def upper(self, x: Images, theta: Theta) -> Scalar:
        """g(x). Raises ValueError if there are no clean images."""
        if self.clean is None:
            raise ValueError("the upper level compares with clean images: pass them, FieldsOfExperts(clean, noisy)")
        return jnp.sum((x - self.clean) ** 2) / (2 * len(self.clean))

    def guess(self, theta: Theta) -> Images:
        """The noisy images."""
        return self.noisy

    # With b_i = c_i/nu_i, w_i = 1/2 e^{t_0 + t_i}, a_i = w_i nu_i and phi(t) = sqrt(1 + t^2), the second part of h is
    # S = sum_i a_i sum_p phi((b_i * x)_p), where phi'' <= 1 and |phi'''| <= c3. B_i: x -> b_i * x is a circular
    # convolution on a grid of the image's size, restricted, so by Parseval sum_i v_i ||B_i z||^2 <= peak(v) ||z||^2 with
    #     peak(v) = max over frequencies of sum_i v_i |b_i_hat|^2         for v >= 0.
    # Reflection multiplies that by ||Pad||^2, the largest number of copies of a pixel. The patches of an image are the
    # columns X_p of its patch matrix X (s^2, pixels), B_i x = b_i^T X and ||X||_F <= k ||x||, k = s ||Pad||.
    # Most bounds below are Cauchy's ||sum_i v_i B_i^T d_i||^2 <= peak(v^2) sum_i ||d_i||^2, or its transpose.

    def constants(self, theta: Theta) -> Constants:
        """All proven, with mu = 1, L = 1 + peak(a), L_H = c3 ||Pad|| peak(a ||b||) and, without filters in theta,

            L_J = max over frequencies of sqrt((sum_i a_i |b_i_hat|^2)^2 + 2 sum_i (a_i |b_i_hat|^2)^2),

        its terms those of scale, weights and smoothings if in theta; with filters, L_J is None and left to `bounds`.
        """
        # L_H: |D^3 S[z, z, z]| <= c3 sum_i a_i max|B_i z| ||B_i z||^2, max|B_i z| <= ||b_i|| ||Pad|| ||z||.
        # L_J: the derivative along z of J (u_0, u, v) is sum_i a_i B_i^T (d_i B_i z) with d_i = (u_0 + u_i) phi'' plus
        # v_i times the slope r^3 (2 - 3 r^2), r = 1/phi, of -t phi''(t), so |d_i| <= |u_0| + |u_i| + |v_i|.
        B, a, _ = self.scaled(theta)
        spectrum = self.spectrum(B)
        one = jnp.ones_like(a[0])
        norms = jnp.sqrt(jnp.sum(B**2, axis=(1, 2)))
        return Constants(
            mu=one,
            L=one + jnp.max(a @ spectrum),
            L_upper=one / len(self.noisy),
            L_upper_theta=0 * one,
            L_hessian=C3 * self.copies(B.shape[1]) ** 0.5 * jnp.max((a * norms) @ spectrum),
            L_cross=None if "filters" in theta else self.cross_constant(theta),
            convex_upper=True,
        )

    def cross_constant(self, theta: Theta) -> Scalar:
        """L_J of the leaves other than the filters, see `constants`."""
        B, a, _ = self.scaled(theta)
        spectrum = self.spectrum(B)
        both = ("weights" in theta) + ("smoothings" in theta)
        return jnp.sqrt(jnp.max(("scale" in theta) * (a @ spectrum) ** 2 + both * (a**2 @ spectrum**2)))

    def bounds(self, x: Images, theta: Theta, q: Images, radius: Scalar) -> Bounds:
        """M_H, M_J, L_J, ||J||, valid for every x' (the radius is not needed).

            M_H = c3 min(||Pad|| peak(a ||b||) max_j ||q_j||, max_j peak(a max|B q_j|)),     j over the images.

        M_J, L_J and ||J|| are added in squares over the leaves of theta; the comments derive them leaf by leaf.
        """
        B, a, w = self.scaled(theta)
        spectrum = self.spectrum(B)
        size, k = B.shape[1], B.shape[1] * self.copies(B.shape[1]) ** 0.5

        def peak(v):
            return jnp.max(v @ spectrum)

        def one(x, q):
            X, Q = self.patches(x, size), self.patches(q, size)
            t, u = (B.reshape(len(B), -1) @ patches for patches in (X, Q))
            r2, X2, sigma = 1 / (1 + t**2), jnp.sum(X**2, axis=0), t * lax.rsqrt(1 + t**2)
            gradient = jax.grad(self.energy)(x, B, a)
            return (
                jnp.max(jnp.abs(u), axis=1), jnp.sum(u**2, axis=1), u**2 @ X2, r2**3 @ X2, jnp.sum(t**2 * r2**3, axis=1),
                sigma @ sigma.T, Q @ Q.T, jnp.max(X2), jnp.sum(gradient**2),
            )  # fmt: skip

        every = self.each(one, x, q)
        largest_u, largest_X2 = every[0], jnp.max(every[-2])
        uu, uXu, dXd, dtd, ss, QQ, _, gg = (jnp.sum(v, axis=0) for v in every[1:])
        norms_q = jnp.sqrt(jnp.sum(q**2, axis=(1, 2)))
        known = self.constants(theta)
        J2, M2, L2 = [], [], []
        if "scale" in theta:  # the column is grad S itself
            J2, M2 = [gg], [peak(a) * jnp.sum(a * uu)]
        if "weights" in theta:  # columns a_i B_i^T phi'(t_i)
            J2, M2 = [*J2, peak(a**2 * jnp.diag(ss))], [*M2, peak(a**2 * uu)]
        if "smoothings" in theta:  # columns -a_i B_i^T (t phi'')_i
            J2, M2 = [*J2, peak(a**2 * dtd)], [*M2, peak(a**2 * uu)]
        if "filters" in theta:
            # In direction C: sum_i w_i [C_i^T phi'(t_i) + B_i^T (phi''(t_i) X^T C_i)], whose second part is bounded with
            # ||phi''(t_i) X^T C_i||^2 <= sum_p phi''^2 |X_p|^2 ||C_i||^2, and the first by k ||diag(w) phi'(t)||.
            # Its change with x by z: phi' and X^T C each change by at most ||B_i z|| and k ||C_i|| ||z||, phi'' by
            # c3 |B_i z| where |X_p| is at most P.
            sw = jnp.outer(w, w) * ss
            J2 = [*J2, (k * norm(sw) + jnp.sqrt(peak(w**2 * dXd))) ** 2]
            L2 = [(2 * k * jnp.sqrt(peak(w**2)) + C3 * jnp.sqrt(largest_X2 * peak(w**2 * jnp.max(spectrum, axis=1)))) ** 2]
            M2 = [*M2, (jnp.sqrt(peak(w**2)) * norm(QQ) + k * jnp.sqrt(jnp.sum(w**2 * uu)) + C3 * jnp.sqrt(peak(w**2 * uXu))) ** 2]
        L_J = jnp.sqrt(self.cross_constant(theta) ** 2 + sum(L2))
        return Bounds(
            J=jnp.sqrt(sum(J2)),
            M_H=jnp.minimum(known.L_hessian * jnp.max(norms_q), C3 * jnp.max(largest_u @ (a[:, None] * spectrum))),
            M_J=jnp.minimum(jnp.sqrt(sum(M2)), L_J * jnp.sqrt(jnp.sum(q**2))),
            L_J=L_J,
        )

    def denoise(self, theta: Theta, noisy: ArrayLike, eps: float | None = None) -> LowerSolution:
        """Other images (n, height, width), denoised with the same options: `.x`, within `.error` of the minimiser.

        `eps`: the distance asked for; default 1e-3 root mean square, 1e-3 sqrt(noisy.size). Raises as the constructor.
        """
        problem = FieldsOfExperts(None, noisy, fixed=self.fixed, boundary=self.boundary)
        return solve_lower(problem, theta, eps=1e-3 * problem.noisy.size**0.5 if eps is None else eps)

    def scaled(self, theta: Theta) -> tuple[Float[Array, "K s s"], Float[Array, " K"], Float[Array, " K"]]:
        """b = c/nu, a = w nu and w = 1/2 e^{t_0 + t}. Raises ValueError for wrong leaves and shapes."""
        if not isinstance(theta, dict):
            raise ValueError(f"theta must be a dict with leaves among {', '.join(SHAPES)}, not a {type(theta).__name__}")
        if set(theta) & set(self.fixed) or set(theta) | set(self.fixed) != set(SHAPES):
            raise ValueError(
                f"theta has the leaves {sorted(theta)} and fixed {sorted(self.fixed)}: each of {', '.join(SHAPES)} must be "
                "in one of the two"
            )
        leaves = {**theta, **self.fixed}
        shapes = {name: jnp.shape(leaves[name]) for name in SHAPES}
        K, s = (*shapes["filters"], 0, 0)[:2]
        if shapes != {"scale": (), "weights": (K,), "smoothings": (K,), "filters": (K, s, s)} or not K * s:
            raise ValueError(f"theta and fixed must have the shapes {SHAPES}, K and s at least 1, not {shapes}")
        if max(s, s // 2 + 1) > min(self.noisy.shape[1:]):
            raise ValueError(f"filters of {s} x {s} do not fit into images of {self.noisy.shape[1:]}")
        w, nu = jnp.exp(leaves["scale"] + leaves["weights"]) / 2, jnp.exp(leaves["smoothings"])
        return leaves["filters"] / nu[:, None, None], w * nu, w

    def padded(self, image, size):
        before, after = (size - 1) // 2, size // 2
        return jnp.pad(image, (before, after), mode="reflect") if self.boundary == "reflect" else image

    def patches(self, image, size):
        """The patches of one image, as columns: (size^2, pixels)."""
        image = self.padded(image, size)
        rows, columns = (length - size + 1 for length in image.shape)
        shifted = [image[i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
        return jnp.stack(shifted).reshape(size**2, -1)

    def energy(self, image, B, a):
        t = B.reshape(len(B), -1) @ self.patches(image, B.shape[1])
        return a @ jnp.sum(jnp.sqrt(1 + t**2), axis=1)

    def copies(self, size):
        if self.boundary == "valid":
            return 1
        return int(np.prod([np.bincount(self.padded_np(np.arange(l), size)).max() for l in self.noisy.shape[1:]]))

    def padded_np(self, v, size):
        return np.pad(v, ((size - 1) // 2, size // 2), mode="reflect")

    def spectrum(self, B):
        grown = [l + (B.shape[1] - 1) * (self.boundary == "reflect") for l in self.noisy.shape[1:]]
        return self.copies(B.shape[1]) * (jnp.abs(jnp.fft.rfft2(B, s=grown)) ** 2).reshape(len(B), -1)

    def each(self, f, *stacks):
        n = len(stacks[0])
        if self.shards == 1:
            return lax.map(lambda images: jax.checkpoint(f, prevent_cse=False)(*images), stacks)
        split = [jnp.swapaxes(s.reshape(self.shards, -1, *s.shape[1:]), 0, 1) for s in stacks]
        out = lax.map(lambda images: jax.vmap(jax.checkpoint(f, prevent_cse=False))(*images), split)
        return jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1).reshape(n, *v.shape[2:]), out)


def norm(gram):
    return jnp.sqrt(jnp.linalg.eigvalsh(gram)[-1])


def initial(seed, filters: int = 48, size: int = 7, dtype: DTypeLike = float) -> dict[str, Array]:
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    taps = jax.random.normal(key, (filters, size, size), dtype) / size**0.5
    return {
        "scale": jnp.asarray(-3, dtype),
        "weights": jnp.full(filters, -3, dtype),
        "smoothings": jnp.full(filters, -3.5, dtype),
        "filters": taps - jnp.mean(taps, axis=(1, 2), keepdims=True),
    }


def dct_filters(size: int, dtype: DTypeLike = float) -> Float[Array, "K s s"]:
    k = np.arange(size)
    basis = np.cos(np.pi * np.outer(k, k + 0.5) / size) * np.sqrt(np.where(k, 2, 1) / size)[:, None]
    return jnp.asarray(np.einsum("ai,bj->abij", basis, basis).reshape(-1, size, size)[1:], dtype)
