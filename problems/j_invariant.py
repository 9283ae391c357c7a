"""Denoising learnt without clean images and without knowing the noise: each pixel is foretold from the others.

    g(x) = c/n sum over images and k of 1/2 ||(x_k - y)_{J_k}||^2,       c = stride^2/masks

x_k denoises y with the pixels J_k replaced by means of their neighbours, so that it does not depend on y there
(J-invariance). If the noise has mean zero, given the clean image, and is independent from pixel to pixel, then the mean
of g is that of c/n sum 1/2 ||(x_k - clean)_{J_k}||^2 plus half the noise's energy, which does not depend on theta:
Batson, Royer 2019 (Noise2Self, arXiv 1901.11365).
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from bilevel import Constants

from ._regularisers.base import AbstractRegulariser
from ._restoration import Restoration
from .inputs import floats

Images = Float[Array, "..."]
Scalar = Float[Array, ""]


class JInvariant(Restoration):
    """`JInvariant(noisy, regulariser)`; theta is the regulariser's dict; `elastic` and `floor` as in `Restoration`.

    - `noisy`: (n, height, width) or (n, height, width, channels), float32 or float64, finite, sides of at least
      `stride`.
    - `stride`: at least 2; J_k are the pixels whose row and column are a_k and b_k modulo `stride`.
    - `masks`: how many of the stride^2 sets J_k each image is taken with, drawn by `seed`; all unless given. Each one
      is a lower level: with many images one is enough.

    x is (masks n, ...). Denoise with what was learnt as ever, `Restoration(None, noisy, regulariser)`: what is learnt
    foretells pixels that it has not seen, and need not be the best for pixels that it has. Raises TypeError for dtypes
    and ValueError for shapes and values, lists of images among them. In `bilevel.Chunked` give each unit a seed of its
    own: `Chunked(lambda y, k: JInvariant(y, R, masks=1, seed=k[0]), noisy, range(len(noisy)))`.
    """

    noisy: Images
    chosen: Bool[Array, "..."]
    every: int = eqx.field(static=True)

    def __init__(
        self,
        noisy: ArrayLike | list,
        regulariser: AbstractRegulariser,
        *,
        stride: int = 4,
        masks: int | None = None,
        seed: int = 0,
        elastic: bool = False,
        floor: float | None = None,
    ):
        if isinstance(noisy, list):
            raise ValueError("JInvariant takes one stack (n, height, width), not a list: make a problem of each size")
        if not (isinstance(stride, int) and stride >= 2):
            raise ValueError(f"stride must be an integer of at least 2, not {stride!r}: neighbours are left in")
        self.every = stride**2
        masks = self.every if masks is None else masks
        if not (isinstance(masks, int) and 1 <= masks <= self.every):
            raise ValueError(f"masks must be an integer from 1 to stride^2 = {self.every}, not {masks!r}")
        self.noisy = floats("noisy", noisy)
        if self.noisy.ndim not in (3, 4) or min(self.noisy.shape[1:3]) < stride:
            raise ValueError(
                f"noisy has shape {self.noisy.shape}: pass (n, height, width) or (n, height, width, channels), sides "
                f"of at least stride = {stride}"
            )
        self.chosen = jnp.asarray(left_out(self.noisy.shape, stride, masks, seed))
        replaced = jnp.where(self.chosen, from_neighbours(self.noisy)[None], self.noisy[None])
        super().__init__(None, replaced.reshape(-1, *self.noisy.shape[1:]), regulariser, elastic=elastic, floor=floor)

    def upper(self, x: Images, theta: dict[str, Array]) -> Scalar:
        """g(x)."""
        missed = jnp.where(self.chosen, x.reshape(-1, *self.noisy.shape) - self.noisy[None], 0)
        return self.every * jnp.sum(missed**2) / (2 * len(x))

    def constants(self, theta: dict[str, Array]) -> Constants:
        """Those of `Restoration`, with L_upper = c/n."""
        known = super().constants(theta)
        return dataclasses.replace(known, L_upper=self.every * known.L_upper)


def left_out(shape: tuple[int, ...], stride: int, masks: int, seed: int) -> Bool[np.ndarray, "masks ..."]:
    """J_k of every image, (masks, n, height, width), with channels a last axis of 1."""
    n, height, width = shape[:3]
    kinds = np.tile(np.arange(stride**2), (n, 1))
    kinds = np.random.default_rng(seed).permuted(kinds, axis=1)[:, :masks].T if masks < stride**2 else kinds.T
    kind = stride * (np.arange(height) % stride)[:, None] + np.arange(width) % stride
    return (kind == kinds[..., None, None]).reshape(masks, n, height, width, *(1,) * (len(shape) - 3))


def from_neighbours(y: Images) -> Images:
    """Means of the eight pixels around each, the four nearest twice; mirrored about the pixels of the border."""
    height, width = y.shape[1:3]
    padded = jnp.pad(y, ((0, 0), (1, 1), (1, 1), *((0, 0),) * (y.ndim - 3)), mode="reflect")
    around = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    return sum((1 + (1 in at)) * padded[:, at[0] : at[0] + height, at[1] : at[1] + width] for at in around) / 12
