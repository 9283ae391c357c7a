"""Total-variation denoising of a stack of images with a learned weight and smoothing.

    h(x, theta) = sum over images of 1/2 ||x - y||^2 + w sum_pixels [sqrt(dx^2 + nu^2) + sqrt(dy^2 + nu^2)]
    g(x) = 1/n sum over images of 1/2 ||x - x_clean||^2,        w = 1/2 e^{theta_0},  nu = e^{theta_1}

D x = (dx, dy): forward differences, zero at the last column and row. Isotropic: sqrt(dx^2 + dy^2 + nu^2) in place of
the sum of two roots. Elastic: 1/2 e^{theta_2} ||x||^2 more. Section 4.2 of arXiv 2308.10098.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bilevel import solve_lower
from bilevel._lower.descend import LowerSolution

from ._regularisers.tv import TV
from ._restoration import Restoration
from .inputs import pairs

Images = Float[Array, "n height width"]
Theta = Float[Array, "..."]


class TotalVariation(Restoration):
    """`TotalVariation(clean, noisy)`; theta = (log weight, log smoothing), with `elastic` also log elastic weight. The
    weight of the differences is w = 1/2 e^{theta_0}, as in the paper.

    - `clean`: (n, height, width), float32 or float64, in [0, 1]; None to denoise only (`upper` then raises).
    - `noisy`: the same shape and dtype, finite, within [-9, 10] (intensities in [0, 1] plus noise).
    - `isotropic`: one root per pixel for both differences. `elastic`: adds 1/2 e^{theta_2} ||x||^2.

    theta is (2,), with `elastic` (3,); x has the shape of `noisy`. JAX arrays keep their sharding: a stack split over
    its first axis stays split. Raises TypeError for dtypes and ValueError for shapes and values. All constants are
    proven: `TV` has them. It is `Restoration(clean, noisy, TV())`, with theta in one array.
    """

    def __init__(self, clean: ArrayLike | None, noisy: ArrayLike, *, isotropic: bool = False, elastic: bool = False):
        super().__init__(*pairs(clean, noisy), TV(isotropic), elastic=elastic)

    @property
    def noisy(self) -> Images:
        """The data."""
        return self.data

    @property
    def isotropic(self) -> bool:
        """Whether both differences of a pixel share a root."""
        return self.regulariser.isotropic

    def named(self, theta: Theta) -> dict[str, Array]:
        """theta's entries by name. Raises ValueError if it has the wrong shape."""
        names = {"weight": "log weight", "smoothing": "log smoothing", "elastic": "log elastic weight"}
        if not self.elastic:
            del names["elastic"]
        if jnp.shape(theta) != (len(names),):
            wanted = ", ".join(names.values())
            raise ValueError(f"theta must have shape ({len(names)},): {wanted}; not {jnp.shape(theta)}")
        return {name: theta[k] for k, name in enumerate(names)}

    def denoise(self, theta: Theta, noisy: ArrayLike, eps: float | None = None) -> LowerSolution:
        """Other images (n, height, width), denoised with the same options: `.x`, within `.error` of the minimiser.

        `eps`: the distance asked for; default 1e-3 root mean square, 1e-3 sqrt(noisy.size). Raises as the constructor.
        """
        problem = TotalVariation(None, noisy, isotropic=self.isotropic, elastic=self.elastic)
        return solve_lower(problem, theta, eps=1e-3 * problem.noisy.size**0.5 if eps is None else eps)
