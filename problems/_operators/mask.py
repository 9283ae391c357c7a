"""Inpainting: some pixels were measured."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool

from ..inputs import dense
from .base import AbstractOperator


class Mask(AbstractOperator):
    """`Mask(mask)`: A x = x where the mask is true, and 0 elsewhere.

    - `mask`: of booleans, or zeros and ones; (height, width) for all images and channels, or the shape of the data.

    Data that the mask leaves out are not read, and may be NaN. A^T A is the mask: its eigenvalues are 0 and 1. Raises
    ValueError for a mask without a single pixel, with other values, or that does not fit the data.
    """

    mask: Bool[Array, "..."]
    rounding = 0.0

    def __init__(self, mask: ArrayLike):
        self.mask = zeros_and_ones(mask)

    def apply(self, x):
        return jnp.where(self._like(x), x, 0)

    def adjoint(self, y):
        return self.apply(y)

    def extremes(self, shape):
        return jnp.min(self.mask), jnp.max(self.mask)

    def image_shape(self, shape):
        if self.mask.shape not in (shape[1:3], shape):
            raise ValueError(
                f"the mask has shape {self.mask.shape}, the data {shape}: pass a mask of {shape[1:3]} for all images, "
                "or one of the data's shape"
            )
        return shape

    def measured(self, data):
        data = dense("data", data)
        if data.ndim > 2:
            self.image_shape(data.shape)
            data = kept(self._like(data), data)
        return super().measured(data)

    def _like(self, x):
        """With as many axes as x."""
        mask = self.mask if self.mask.ndim > 2 else self.mask[None]
        return mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim))


def kept(mask: Bool[Array, "..."], data: Array | np.ndarray) -> Array | np.ndarray:
    """The data where the mask is true, else 0; on the host where they are there."""
    where = np.where if isinstance(data, np.ndarray) else jnp.where
    return where(mask, data, np.zeros((), data.dtype))


def zeros_and_ones(mask: ArrayLike) -> Bool[Array, "..."]:
    """The mask as booleans. Raises ValueError unless there are only zeros and ones, and a one at least."""
    mask = np.asarray(mask)
    if not np.isin(mask, (0, 1)).all():
        raise ValueError("a mask holds booleans, or zeros and ones: compare yours with a threshold, as in mask > 0.5")
    if mask.ndim < 2 or not mask.any():
        raise ValueError(f"the mask, of shape {mask.shape}, has not a single pixel: nothing was measured")
    return jnp.asarray(mask, bool)
