"""Deblurring: a convolution was measured.

    (A x)_p = sum_s k_s x_{p - s},    s = 0 at the kernel's middle entry

beyond the border x goes on periodically, or mirrored with the last pixel repeated (SciPy's "wrap" and "reflect").
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..inputs import floats
from .base import AbstractOperator


class Blur(AbstractOperator):
    """`Blur(kernel)`: convolution with a kernel, by fast Fourier transforms.

    - `kernel`: (height, width), not larger than the images, real and finite.
    - `boundary`: "periodic" or "reflect".

    Eigenvalues of A^T A: |k_hat|^2 on the grid of the image where periodic. Reflected, with a kernel that is its own
    mirror image in both axes, |k_hat|^2 at half that spacing; of other kernels 0 and ||A||_1 ||A||_inf are bounds.
    Raises ValueError for shapes and values, TypeError for dtypes.
    """

    kernel: Float[Array, "height width"]
    boundary: str = eqx.field(static=True)
    even: bool = eqx.field(static=True)

    def __init__(self, kernel: ArrayLike, boundary: str = "periodic"):
        self.kernel = floats("the kernel", kernel)
        if self.kernel.ndim != 2 or self.kernel.size == 0:
            raise ValueError(f"the kernel must be (height, width), not of shape {self.kernel.shape}")
        if boundary not in ("periodic", "reflect"):
            raise ValueError(f'boundary must be "periodic" or "reflect", not {boundary!r}')
        k = np.asarray(self.kernel)
        self.boundary = boundary
        self.even = k.shape[0] % 2 == k.shape[1] % 2 == 1 and bool((k == k[::-1]).all() and (k == k[:, ::-1]).all())

    def apply(self, x):
        x = self._extended(x)
        return self._cropped(convolved(self.symbol(x.shape), x))

    def extremes(self, shape):
        # With E x the mirrored image on the doubled torus, E^T E = 4, an even kernel maps such images to such images,
        # k * E x = E A x: A is a circular convolution on a subspace, that of the cosines, so that its eigenvalues are
        # k_hat at the frequencies pi i / height, pi j / width. Of another kernel both norms are attained by |k|: rows
        # of |A| add up to sum |k|, columns to A_{|k|}^T 1.
        slack = 16 * float(jnp.finfo(self.kernel.dtype).eps)  # rounding of the transforms, per sum of |k|
        if self.boundary == "reflect" and not self.even:
            ones, total = jnp.ones((1, *shape[1:3]), self.kernel.dtype), jnp.sum(jnp.abs(self.kernel))
            columns = eqx.tree_at(lambda blur: blur.kernel, self, jnp.abs(self.kernel)).adjoint(ones)
            return 0.0, total * jnp.max(columns) * (1 + slack)
        torus = shape if self.boundary == "periodic" else (1, 2 * shape[1], 2 * shape[2])
        size = jnp.abs(self.symbol(torus))
        if self.boundary == "reflect":
            size = size[:, : shape[1], : shape[2]]
        lost = slack * jnp.sum(jnp.abs(self.kernel))
        return jnp.maximum(jnp.min(size) - lost, 0) ** 2, (jnp.max(size) + lost) ** 2

    def image_shape(self, shape):
        if len(shape) > 2 and (np.asarray(self.kernel.shape) > shape[1:3]).any():
            raise ValueError(f"a kernel of {self.kernel.shape} does not fit into images of {shape[1:3]}: crop it")
        return shape

    def symbol(self, shape):
        """k_hat, with the kernel's middle at the origin; (1, height, width / 2 + 1)."""
        middle = [-(n // 2) for n in self.kernel.shape]
        pad = [(0, n - k) for n, k in zip(shape[1:3], self.kernel.shape, strict=True)]
        return jnp.fft.rfft2(jnp.roll(jnp.pad(self.kernel, pad), middle, (0, 1)))[None]

    def _margins(self):
        """How far the kernel reaches before and behind a pixel."""
        return [((n - 1) // 2, n // 2) for n in self.kernel.shape]

    def _extended(self, x):
        if self.boundary == "periodic":
            return x
        return jnp.pad(x, ((0, 0), *self._margins(), *((0, 0),) * (x.ndim - 3)), mode="symmetric")

    def _cropped(self, x):
        if self.boundary == "periodic":
            return x
        (top, bottom), (left, right) = self._margins()
        return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]


def convolved(symbol, x):
    """F^{-1} (symbol F x), along the axes of height and width."""
    symbol = symbol.reshape(*symbol.shape, *(1,) * (x.ndim - 3))
    return jnp.fft.irfft2(symbol * jnp.fft.rfft2(x, axes=(1, 2)), s=x.shape[1:3], axes=(1, 2))
