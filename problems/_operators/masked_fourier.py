"""Magnetic resonance imaging, one coil: some Fourier coefficients of a real image were measured.

A x = (Re, Im) M F x,    F the unitary discrete transform, M a mask of frequencies
"""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool

from ..inputs import dense, floats
from .base import AbstractOperator
from .mask import kept, zeros_and_ones


class MaskedFourier(AbstractOperator):
    """`MaskedFourier(mask)`: the coefficients numpy.fft.fft2(x, norm="ortho") of real images where the mask is true.

    - `mask`: (height, width) of booleans, in the order of numpy.fft: zero frequency first (numpy.fft.ifftshift of a
      mask that has it in the middle).

    Data are complex64 or complex128, (n, height, width) or with channels, and held as pairs of real numbers. What lies
    outside the mask is not read. For real x, k and -k say the same: the eigenvalues of A^T A are (M(k) + M(-k)) / 2.
    Raises TypeError for data that are not complex, and ValueError for masks and shapes.
    """

    mask: Bool[Array, "height width"]

    def __init__(self, mask: ArrayLike):
        self.mask = zeros_and_ones(mask)
        if self.mask.ndim != 2:
            raise ValueError(f"the mask of frequencies must be (height, width), not of shape {self.mask.shape}")

    def apply(self, x):
        z = jnp.fft.fft2(x, axes=(1, 2), norm="ortho")
        return jnp.where(self._like(x)[..., None], jnp.stack([z.real, z.imag], axis=-1), 0)

    def adjoint(self, y):
        # Re F^H M r: of a real x, <F x, r> = Re sum conj(F x) r = <x, Re F^H r>
        y = jnp.where(self._like(y), y, 0)
        return jnp.fft.ifft2(y[..., 0] + 1j * y[..., 1], axes=(1, 2), norm="ortho").real

    def extremes(self, shape):
        # |F x|^2 is the same at k and -k, and these values are otherwise free but for Parseval's sum, ||x||^2
        both = self.mask.astype(int) + jnp.roll(self.mask[::-1, ::-1], (1, 1), (0, 1))
        return 0.5 * jnp.min(both), 0.5 * jnp.max(both)

    def image_shape(self, shape):
        if self.mask.shape != shape[1:3]:
            raise ValueError(f"the mask of frequencies is {self.mask.shape}, the data have {shape[1:3]}")
        return shape[:-1]

    def measured(self, data):
        data = dense("data", data)
        if not jnp.issubdtype(data.dtype, np.complexfloating):
            raise TypeError(
                f"data are {data.dtype}, Fourier coefficients are complex: pass the transform as it was measured, as "
                'numpy.fft.fft2(images, norm="ortho") gives it'
            )
        xp = np if isinstance(data, np.ndarray) else jnp
        pairs = xp.stack([data.real, data.imag], axis=-1)
        if pairs.ndim > 3:
            self.image_shape(pairs.shape)
            pairs = kept(self._like(pairs), pairs)
        return floats("data", pairs)

    def _like(self, x):
        """With as many axes as x."""
        return self.mask.reshape(1, *self.mask.shape, *(1,) * (x.ndim - 3))
