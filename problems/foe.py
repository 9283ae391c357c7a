"""Fields of Experts: denoising of a stack of images with learned filters.

    h(x, theta) = sum over images of 1/2 ||x - y||^2 + 1/2 e^{t_0} sum_i e^{t_i} sum_p sqrt((c_i * x)_p^2 + nu_i^2)
    g(x) = 1/n sum over images of 1/2 ||x - x_clean||^2,        nu_i = e^{s_i}

theta = {"scale": t_0, "weights": t, "smoothings": s, "filters": c}, any of them held fixed instead; c * x is the
correlation of a filter's taps with the image. Section 4.3 of arXiv 2308.10098.
"""

from collections.abc import Mapping

from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from bilevel import solve_lower
from bilevel._lower.descend import LowerSolution

from ._regularisers.experts import Experts
from ._restoration import Restoration
from .filters import dct_filters as dct_filters
from .filters import initial as initial
from .inputs import pairs

Images = Float[Array, "n height width"]
Theta = PyTree[Float[Array, "..."]]


class FieldsOfExperts(Restoration):
    """`FieldsOfExperts(clean, noisy)`; theta a dict: scale (), weights (K,), smoothings (K,), filters (K, s, s).

    - `clean`: (n, height, width), float32 or float64, in [0, 1]; None to denoise only (`upper` then raises).
    - `noisy`: the same shape and dtype, finite, within [-9, 10] (intensities in [0, 1] plus noise).
    - `fixed`: leaves of theta that are held constant, by name; theta has the others.
    - `boundary`: "reflect", the image mirrored by half a filter, as published; "valid", patches inside the image only.

    scale, weights and smoothings are logs; `Experts().start()` makes a theta to learn from, `initial` the published
    one. x has the shape of `noisy`. JAX arrays keep their sharding over the images. Raises TypeError for dtypes and
    ValueError for shapes and values, those of theta where it is first used. All constants are proven: `Experts` has
    them. It is `Restoration(clean, noisy, Experts())`.
    """

    def __init__(
        self,
        clean: ArrayLike | None,
        noisy: ArrayLike,
        *,
        fixed: Mapping[str, ArrayLike] | None = None,
        boundary: str = "reflect",
    ):
        super().__init__(*pairs(clean, noisy), Experts(fixed=fixed, boundary=boundary))

    @property
    def noisy(self) -> Images:
        """The data."""
        return self.data

    @property
    def fixed(self) -> dict[str, Array]:
        """The leaves of theta that are held constant."""
        return self.regulariser.fixed

    @property
    def boundary(self) -> str:
        """ "valid" or "reflect"."""
        return self.regulariser.boundary

    @property
    def shards(self) -> int:
        """How many devices share the images."""
        return self.regulariser.shards

    def denoise(self, theta: Theta, noisy: ArrayLike, eps: float | None = None) -> LowerSolution:
        """Other images (n, height, width), denoised with the same options: `.x`, within `.error` of the minimiser.

        `eps`: the distance asked for; default 1e-3 root mean square, 1e-3 sqrt(noisy.size). Raises as the constructor.
        """
        problem = FieldsOfExperts(None, noisy, fixed=self.fixed, boundary=self.boundary)
        return solve_lower(problem, theta, eps=1e-3 * problem.noisy.size**0.5 if eps is None else eps)
