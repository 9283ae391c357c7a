"""Filters in pairs that mirror each other, and the largest eigenvalue of sum_i k_i C_i^T C_i with a mirrored boundary.

    c = sum_j u_j b_j / ||u||,    b_j the DCT-II basis of s x s without its constant, orthonormal: ||c|| = 1, zero mean

b_(a,b) is multiplied by (-1)^a where its rows are reversed, by (-1)^b where its columns are. A filter takes either all
with a + b even or all with a + b odd: turned by half it is c or -c, so that c and its mirror image, columns reversed,
are all that the four flips make of it. Filters that oscillate, like those that learning finds, are of this kind.

C x is the correlation of c with x extended by its mirror images (np.pad: "symmetric"): as many responses as pixels.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..filters import dct_products

Filters = Float[Array, "2 m n"]  # coefficients u: a + b even, then odd
Taps = Float[Array, "K s s"]

GRID = 64  # frequencies between 0 and pi


@functools.cache
def bases(size: int) -> np.ndarray:
    """(2, n, s, s), n = (s^2 - 1)/2 for an odd s: a + b even, odd. Of neighbours 2k, 2k + 1, as far as there are such,
    mirroring changes the sign of one: their sum and its mirror image span both."""
    grid = [(a, b) for a in range(size) for b in range(size) if a + b > 0]
    low = sorted(grid, key=lambda ab: (ab[0] ** 2 + ab[1] ** 2, ab))
    kinds = {parity: [ab for ab in low if (ab[0] % 2, ab[1] % 2) == parity] for parity in np.ndindex(2, 2)}
    paired = len(kinds[1, 1])
    even = [ab for pair in zip(kinds[0, 0], kinds[1, 1], strict=False) for ab in pair] + kinds[0, 0][paired:]
    odd = [order for a, b in kinds[0, 1] for order in ((a, b), (b, a))]
    taps = dct_products(size)
    return np.stack([[taps[a * size + b - 1] for a, b in kind] for kind in (even, odd)])


def size_of(filters: Filters) -> int:
    """s, of n = (s^2 - 1)/2 coefficients."""
    return math.isqrt(2 * filters.shape[-1] + 1)


def generators(filters: Filters) -> Taps:
    """The m even and m odd filters, (2m, s, s), without their mirror images."""
    size = size_of(filters)
    unit = filters / jnp.linalg.norm(filters, axis=2, keepdims=True)
    basis = jnp.asarray(bases(size).reshape(2, -1, size**2), filters.dtype)
    return jnp.matmul(unit, basis, precision="highest").reshape(-1, size, size)


class Parts(NamedTuple):
    """c, a, nu and, weakly convex, b = a v and nu', of the 2m filters without their mirror images."""

    taps: Taps
    a: Float[Array, " K"]
    nu: Float[Array, " K"]
    b: Float[Array, " K"] | None
    wide: Float[Array, " K"] | None


# Let Q = sum_g k_g (C_g^T C_g + M_g^T M_g), M_g the mirror image's, and X be x with its mirror images on 2H x 2W,
# extended periodically: ||X||^2 = 4 ||x||^2. X is symmetric about the edges of x. So the responses of c on the flipped
# copy of x in X are, flipped, those of the flipped c on x; and the filters are, but for signs, the same after a flip.
# Hence the responses of all filters, weighted by k, have the same energy <x, Q x> on each of the four copies, and
#
#     4 <x, Q x> = sum over the torus of k |c * X|^2 <= 4 ||x||^2 max P,      P = sum_g k_g (|c_g^|^2 + |mirrored^|^2)
#
# by Parseval: the boundary costs nothing. In fact the DCT diagonalises Q. That holds for images of any size >= s.
#
# P is a trigonometric polynomial of degree d = s - 1 in either frequency, and >= 0. Let it be largest, M, at w*. Along
# the first frequency P(w) >= M cos(d (w_1 - w_1*)) for |w_1 - w_1*| <= pi/d (M. Riesz), and a multiple of pi/N is
# within pi/(2N): there P >= M cos(d pi/(2N)), and so once more along the second. Since P is even, 0 .. pi will do:
#
#     max P <= max over the grid / cos^2(d pi/(2N)).


def powers(taps: Taps) -> Float[Array, "K frequencies"]:
    """|c_g^|^2 + |mirrored^|^2 of every filter on the grid, with the factor that makes the grid's maximum a bound."""
    # e^{i w d} = (cos + i sin)(w_1 d_1) (cos + i sin)(w_2 d_2): an even c keeps cos cos -+ sin sin, whose squares add
    # up to twice the squares of both, an odd one sin cos +- cos sin; the others vanish.
    size = taps.shape[1]
    n = max(GRID, 8 * size)
    angles = np.outer(np.arange(n + 1) * np.pi / n, np.arange(size) - size // 2)
    waves = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)]), taps.dtype)
    parts = jnp.einsum("awi,kij,bvj->kabwv", waves, taps, waves, precision="highest")
    return 2 / math.cos((size - 1) * math.pi / (2 * n)) ** 2 * jnp.sum(parts**2, axis=(1, 2)).reshape(len(taps), -1)
