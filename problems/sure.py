"""Denoising learnt without clean images, by Stein's unbiased risk estimate.

    g(x1, x2) = 1/n sum over images of 1/2 ||x1 - y||^2 + sigma^2 <b, x2 - x1>/s - 1/2 sigma^2 N

x1 and x2 denoise y and y + s b, for a fixed b of random signs. Where y = clean + sigma times normal noise,
<b, x2 - x1>/s estimates the trace of dxhat/dy without bias as s goes to 0, and g's mean is that of
1/n sum of 1/2 ||x1 - clean||^2, the upper level with clean images: Stein 1981; Ramani, Blu, Unser 2008. N is the number
of pixels of an image.
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bilevel import Constants

from ._regularisers.base import AbstractRegulariser
from ._restoration import Restoration
from .inputs import floats

Images = Float[Array, "..."]
Scalar = Float[Array, ""]


class Sure(Restoration):
    """`Sure(noisy, sigma, regulariser)`; theta is the regulariser's dict; `elastic` and `floor` as in `Restoration`.

    - `noisy`: (n, height, width) or (n, height, width, channels), float32 or float64, finite: clean images, unknown,
      plus independent normal noise of standard deviation `sigma` > 0.
    - `seed`: of the signs b, which stay the same for the whole run.
    - `step`: s > 0; by default sigma / 10.

    x is (2 n, ...): `denoised(x)` is its first half. Certificates are for g as it stands, with these b and s: the risk
    itself differs by the luck of both. A value's error is divided by s, so a small one asks for accurate solves.
    Raises TypeError for dtypes and ValueError for shapes and values, lists of images among them.
    """

    sigma: float = eqx.field(static=True)
    step: float = eqx.field(static=True)
    signs: Images

    def __init__(
        self,
        noisy: ArrayLike | list,
        sigma: float,
        regulariser: AbstractRegulariser,
        *,
        seed: int = 0,
        step: float | None = None,
        elastic: bool = False,
        floor: float | None = None,
    ):
        if isinstance(noisy, list):
            raise ValueError("Sure takes one stack (n, height, width), not a list: make one problem of each size")
        step = sigma / 10 if step is None else step
        for name, number in {"sigma": sigma, "step": step}.items():
            if not (np.isfinite(number) and number > 0):
                raise ValueError(f"{name} must be positive and finite, not {number!r}")
        noisy = floats("noisy", noisy)
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], noisy.shape)
        self.sigma, self.step, self.signs = float(sigma), float(step), jnp.asarray(signs, noisy.dtype)
        both = jnp.concatenate([noisy, noisy + self.step * self.signs])
        super().__init__(None, both, regulariser, elastic=elastic, floor=floor)

    def upper(self, x: Images, theta: dict[str, Array]) -> Scalar:
        """g(x)."""
        (x1, x2), (y, _) = self._halves(x), self._halves(self.data)
        misfit = jnp.sum((x1 - y) ** 2) / 2
        trace = jnp.vdot(self.signs, x2 - x1) / self.step
        return (misfit + self.sigma**2 * (trace - y.size / 2)) / len(y)

    def constants(self, theta: dict[str, Array]) -> Constants:
        """Those of `Restoration`; g is quadratic in x1 with L_upper = 1/n, and linear in x2."""
        known = super().constants(theta)
        return dataclasses.replace(known, L_upper=2 * known.L_upper)

    def denoised(self, x: Images) -> Images:
        """The noisy images, denoised: (n, ...)."""
        return self._halves(x)[0]

    @staticmethod
    def _halves(both: Images) -> tuple[Images, Images]:
        return tuple(jnp.split(both, 2))
