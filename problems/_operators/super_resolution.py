"""Super-resolution: every other pixel of a blurred image was measured."""

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike

from .base import AbstractOperator
from .blur import Blur


class SuperResolution(AbstractOperator):
    """`SuperResolution(kernel, factor)`: A x = (k * x)[::factor, ::factor].

    - `kernel`, `boundary`: as in `Blur`.
    - `factor`: an integer of at least 2 that divides the height and the width of the images.

    A^T A is singular. Its largest eigenvalue is the largest mean, over the `factor`^2 frequencies that subsampling
    cannot tell apart, of |k_hat|^2 where periodic; reflected, that of the blur is a bound. Raises as `Blur`.
    """

    blur: Blur
    factor: int = eqx.field(static=True)

    def __init__(self, kernel: ArrayLike, factor: int, boundary: str = "periodic"):
        if not isinstance(factor, int) or factor < 2:
            raise ValueError(f"factor must be an integer of at least 2, not {factor!r}; with 1 this is Blur(kernel)")
        self.blur, self.factor = Blur(kernel, boundary), factor

    def apply(self, x):
        return self.blur.apply(x)[:, :: self.factor, :: self.factor]

    def extremes(self, shape):
        # S^T S k: a frequency of the small image gathers the factor^2 ones of the large that alias to it; A maps these
        # to their sum weighted by k_hat / factor, a row (unitary transforms), whose square is its largest eigenvalue.
        f, (_, height, width) = self.factor, shape[:3]
        if self.blur.boundary == "reflect":
            return 0.0, self.blur.extremes(shape)[1]
        aliases = jnp.abs(jnp.fft.fft2(self.blur.kernel, s=(height, width))).reshape(f, height // f, f, width // f)
        lost = 32 * float(jnp.finfo(aliases.dtype).eps) * jnp.sum(jnp.abs(self.blur.kernel)) ** 2
        return 0.0, jnp.max(jnp.mean(aliases**2, axis=(0, 2))) + lost

    def image_shape(self, shape):
        if len(shape) < 3:
            return shape
        n, height, width, *channels = shape
        return self.blur.image_shape((n, self.factor * height, self.factor * width, *channels))
