"""How much floating point may lose."""

import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = Float[Array, ""] | float


def unit_roundoff(dtype) -> float:
    """u: half the distance from 1 to the next number of `dtype`."""
    return float(jnp.finfo(dtype).eps) / 2


def rounding(L: Scalar, norm: Scalar, terms: Scalar, u: float) -> Scalar:
    """u (L ||x|| + terms): the size of the rounding in grad_x h(x), with the declared size of its other terms; in
    H q - grad_x g with ||q|| and ||grad_x g||. A model of what floating point does, not a theorem about any one code.
    """
    return u * (L * norm + terms)
