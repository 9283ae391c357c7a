"""Fields of Experts: the responses of learned filters, each under a smoothed root.

    R(x, theta) = 1/2 e^{t_0} sum_i e^{t_i} sum_p sqrt((c_i * x)_p^2 + nu_i^2),        nu_i = e^{s_i}

theta = {"scale": t_0, "weights": t, "smoothings": s, "filters": c}, any of them held fixed instead; c * x is the
correlation of a filter's taps with the image. Section 4.3 of arXiv 2308.10098.
"""

import math
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from bilevel import Bounds, Constants
from bilevel._leaves import finite

from ..filters import Filters, dct_products
from ..inputs import dense
from .by_image import ImageByImage, grey
from .patches import blocks, experts, logs_constant, margins, measures
from .tv import C3, TV

SHAPES = {"scale": "()", "weights": "(K,)", "smoothings": "(K,)", "filters": "(K, s, s)"}


class Experts(ImageByImage):
    """`Experts()`; theta a dict: scale (), weights (K,), smoothings (K,), filters (K, s, s).

    - `fixed`: leaves of theta that are held constant, by name; theta has the others.
    - `boundary`: "reflect", the image mirrored by half a filter, as published; "valid", patches inside the image only,
      which regularises its border less.

    scale, weights and smoothings are logs. The channels of a colour image are treated as grey images that share theta.
    `start` makes a theta to learn from.
    `shards`, on how many devices the images lie, is for `Restoration` to say.
    Raises TypeError for dtypes and ValueError for values; those of theta where it is first used.
    """

    fixed: Mapping[str, ArrayLike] | None = eqx.field(default=None, converter=lambda fixed: _numbers(fixed or {}))
    boundary: str = eqx.field(default="reflect", static=True)

    def __check_init__(self):
        if self.boundary not in ("valid", "reflect"):
            raise ValueError(f'boundary must be "valid" or "reflect", not {self.boundary!r}')

    def start(self, variation: Mapping[str, ArrayLike] | None = None, size: int = 7, dtype: DTypeLike = float):
        """A theta that is total variation, but for the image's border: learning starts where that has ended.

        - `variation`: a theta of `TV()`, learnt on the same images; by default the one that `TV` starts from.
        - `size`: s, at least 3. s^2 - 1 filters s x s: two differences of neighbours, with the weight and smoothing of
          `variation`, and DCT filters, of a weight of e^-9 of theirs. Raises ValueError for a smaller one.

        What is `fixed` is left out.
        """
        if size < 3:
            raise ValueError(f"size must be at least 3, not {size}: there is to be room for differences and others")
        variation, at = variation or TV().start(), (size - 1) // 2
        filters, weights = np.array(dct_products(size)), np.full(size**2 - 1, -9.0)
        filters[:2], weights[:2] = 0, 0
        for k, (i, j) in enumerate(((0, 1), (1, 0))):
            filters[k, at, at], filters[k, at + i, at + j] = -1, 1
        leaves = {"scale": variation["weight"], "weights": weights, "filters": filters}
        leaves["smoothings"] = np.full(size**2 - 1, variation["smoothing"])
        return {name: jnp.asarray(leaf, dtype) for name, leaf in leaves.items() if name not in self.fixed}

    def value(self, x, theta):
        B, a, _ = self.scaled(theta)
        # Derivatives compute the responses, K times an image, again: cheaper than to store them for all images.
        energy = jax.checkpoint(lambda x: experts(x, B, a, self.boundary), prevent_cse=False)
        return jnp.sum(self.each(energy, grey(x)))

    # With b_i = c_i/nu_i, w_i = 1/2 e^{t_0 + t_i}, a_i = w_i nu_i and phi(t) = sqrt(1 + t^2), the regulariser is
    # S = sum_i a_i sum_p phi(t_ip), t_i = B_i x = b_i * x; phi'' <= 1, |phi'''| <= c3. On a grid of the image's size
    # B_i is a circular convolution, restricted: by Parseval sum_i v_i ||B_i z||^2 <= peak(v) ||z||^2 for v >= 0, and so
    # ||sum_i v_i B_i^T d_i||^2 <= peak(v^2) sum_i ||d_i||^2, where
    #     peak(v) = max over frequencies of sum_i v_i |b_i_hat|^2,
    # times ||Pad||^2 for reflection, the largest number of copies of a pixel. The columns X_p of X (s^2, pixels) are
    # the patches of x: B_i x = b_i^T X, and ||X||_F <= k ||x|| with k = s ||Pad||.

    def constants(self, theta, shape, reach):
        """All proven: mu = 0, L = peak(a), L_H = c3 ||Pad|| peak(a ||b||), and without filters

            L_J = max over frequencies of sqrt((sum_i a_i |b_i_hat|^2)^2 + 2 sum_i (a_i |b_i_hat|^2)^2),

        its three terms those of scale, weights, smoothings, if in theta. With filters L_J is local, see `bounds`.
        """
        # L_H: |D^3 S[z, z, z]| <= c3 sum_i a_i max|B_i z| ||B_i z||^2; a symmetric form has its norm on the diagonal.
        # L_J: the derivative along z of J (u_0, u, v) is sum_i a_i B_i^T (d_i B_i z), d_i = (u_0 + u_i) phi'' + v_i e,
        # e the slope of -t phi''. With r = 1/phi: phi'' = r^3, e = r^3 (2 - 3 r^2), |d_i| <= |u_0| + |u_i| + |v_i|.
        # rounding_cross: filters of zero mean cancel twice, in t_i = B_i x and in B_i^T d; ||B_i|| <= k ||b_i||,
        # |phi'| <= min(1, |t|) and phi'' <= 1.
        B, a, w = self.scaled(theta)
        power, copies = self.spectrum(B, shape)
        k, length = B.shape[1] * copies**0.5, jnp.linalg.norm(B, axis=(1, 2))
        t = k * length * reach
        slope = jnp.minimum(t, (copies * math.prod(shape)) ** 0.5) + t
        terms, logs = a * k * length * slope, ("weights" in theta) + ("smoothings" in theta)
        cancelled = int("scale" in theta) * jnp.sum(terms) ** 2 + logs * jnp.sum(terms**2)
        cancelled += int("filters" in theta) * jnp.sum((w * k * (slope + 2 * t)) ** 2)
        return Constants(
            rounding_cross=jnp.sqrt(cancelled),
            mu=jnp.zeros_like(a[0]),
            L=jnp.max(a @ power),
            L_hessian=C3 * copies**0.5 * jnp.max((a * jnp.linalg.norm(B, axis=(1, 2))) @ power),
            L_cross=None if "filters" in theta else jnp.sqrt(jnp.max(logs_constant(theta, a, power))),
        )

    def bounds(self, x, theta, q, radius):
        """On the ball M_H = max over images of peak(a max_p |phi'''(t) B q|), phi''' the largest within t's reach.

        ||J||, M_J and L_J: leaf by leaf, added in squares. Costs as much as a few products J^T q.
        """
        # d phi', d phi'' and d(X^T C) along z are at most |B z|, |phi''' B z| and k ||C|| ||z||. Without filters the
        # columns of weights and smoothings are in Y; their J is exact. With filters,
        #     J C = sum_i w_i [C_i^T phi'(t_i) + B_i^T (phi''(t_i) X^T C_i)],
        # whose first part is at most k ||diag(w) phi'||. In the second split C_i into its mean, whose columns are in Y,
        # and the rest, orthogonal to it, which sees X less the means of its patches, and bound that by peak.
        # (J^T q)_i = w_i [Q phi'(t_i) + X (phi''(t_i) B_i q)], Q the patches of q: the three terms of M change phi', X
        # and phi'' in turn, those of L_J the same without q, where |X_p| is at most its largest.
        B, a, w = self.scaled(theta)
        x, q = grey(x), grey(q)
        power, copies = self.spectrum(B, x.shape)
        k = B.shape[1] * copies**0.5
        reach = radius * copies**0.5 * jnp.linalg.norm(B, axis=(1, 2))  # |B_i z| <= ||b_i|| ||Pad|| ||z||
        sums, u3, X2 = self.each(lambda x, q: measures(x, q, B, a, w, reach, tuple(theta), self.boundary), x, q)
        s = {name: jnp.sum(v, axis=0) for name, v in sums.items()}

        def peak(v):
            return jnp.max(v @ power)

        def top(gram):
            return jnp.maximum(jnp.linalg.eigvalsh(gram)[-1], 0)

        J2, M2, L2 = top(s["YY"]), 0 * radius, jnp.max(logs_constant(theta, a, power))
        if "filters" in theta:
            J2 = (k * jnp.sqrt(top(jnp.outer(w, w) * s["ss"])) + jnp.sqrt(J2 + peak(w**2 * s["rX"]))) ** 2
            J2 += peak(a**2 * jnp.diag(s["ss"])) if "weights" in theta else 0
            J2 += peak(a**2 * s["tr"]) if "smoothings" in theta else 0
            N = jnp.sqrt(peak(w**2))
            M2 = (N * jnp.sqrt(top(s["QQ"])) + k * jnp.sqrt(w**2 @ s["u2"]) + jnp.sqrt(peak(w**2 * s["u3X"]))) ** 2
            L2 += (2 * k * N + C3 * jnp.sqrt(jnp.max(X2) * peak(w**2 * jnp.max(power, axis=1)))) ** 2
        if "scale" in theta:  # M: sum_i a_i |<phi'' B_i q, B_i z>|
            J2, M2 = J2 + s["gg"], M2 + peak(a) * (a @ s["u2"])
        if "weights" in theta:
            M2 += peak(a**2 * s["u2"])
        if "smoothings" in theta:  # |e| <= min(1, 2 phi'')
            M2 += peak(a**2 * jnp.minimum(s["uu"], 4 * s["u2"]))
        M_H = jnp.max(u3 @ (a[:, None] * power))
        return Bounds(J=jnp.sqrt(J2), M_H=M_H, M_J=jnp.sqrt(M2), L_J=jnp.sqrt(L2))

    def check(self, theta, shape):
        if sorted([*theta, *self.fixed]) != sorted(SHAPES):
            fixed = f" but for the fixed {list(self.fixed)}"
            raise ValueError(f"theta must be a dict of {list(SHAPES)}{fixed}; not {list(theta)}")
        leaves = {**theta, **self.fixed}
        shapes = {name: jnp.shape(leaves[name]) for name in SHAPES}
        K, s = (*shapes["filters"], 0, 0)[:2]
        if shapes != {"scale": (), "weights": (K,), "smoothings": (K,), "filters": (K, s, s)} or K * s == 0:
            raise ValueError(f"theta and fixed must have the shapes {SHAPES}, K and s at least 1; not {shapes}")
        if s > min(shape[1:3]):
            raise ValueError(f"filters of {s} x {s} do not fit into images of {shape[1:3]}")

    def scaled(self, theta) -> tuple[Filters, Float[Array, " K"], Float[Array, " K"]]:
        """b, a and w."""
        leaves = {**theta, **self.fixed}
        w, nu = jnp.exp(leaves["scale"] + leaves["weights"]) / 2, jnp.exp(leaves["smoothings"])
        return leaves["filters"] / nu[:, None, None], w * nu, w

    def spectrum(self, B: Filters, shape: tuple[int, ...]) -> tuple[Float[Array, "K frequencies"], float]:
        """||Pad||^2 |b_hat|^2 on the grid of the padded image, and ||Pad||^2."""
        pixels = [np.arange(n) for n in shape[1:3]]
        if self.boundary == "reflect":
            pixels = [np.pad(p, margins(B.shape[1]), mode="reflect") for p in pixels]
        copies = float(np.prod([np.max(np.bincount(p)) for p in pixels]))
        grid = [len(p) for p in pixels]

        def power(B):
            return copies * (jnp.abs(jnp.fft.rfft2(B, s=grid)) ** 2).reshape(len(B), -1)

        return blocks(power, math.prod(grid), B), copies


def _numbers(fixed):
    """The fixed leaves as arrays of floats. Raises TypeError for dtypes, ValueError for values that are not finite."""
    arrays = {}
    for name, leaf in fixed.items():
        leaf = dense(f"the fixed {name}", leaf)
        if leaf.dtype.kind not in "fiuV":  # V: bfloat16
            raise TypeError(f"the fixed {name} are {leaf.dtype}: pass real numbers")
        leaf = arrays[name] = jnp.asarray(leaf, leaf.dtype if leaf.dtype == np.float32 else float)
        if not isinstance(leaf, jax.core.Tracer) and not finite(leaf):
            raise ValueError(f"the fixed {name} hold NaN or infinite values: replace them")
    return arrays
