"""What `Ridge.bounds` and its constants read off images and theta, with the proofs.

phi'(t) = a tau r - b tau' r',  tau = t/nu, r = 1/sqrt(1 + tau^2), tau' and r' with nu'. The leaves enter it by a, nu, b
and nu', whose logs change by d log a = dw, d nu = e^s ds, d nu' = e^s ds + e^g dg and d log b = dw + (1 - sigmoid) dr +
d log S, and by dc, at most ||du||/||u|| long. So J is a sum over the filters of what is below, plus the column of log b
times the gradient of log S, whose norm is the drift.

    peak(k) ||y||^2 >= sum_g k_g (||C_g y||^2 + ||M_g y||^2),     M_g the mirror image of C_g

Hence what is at most sum over a pair of e_i ||C_i y|| for each g adds up, in squares, to at most peak(e_g^2 + e_m^2),
by Cauchy-Schwarz: sums over pixels below are over both of a pair.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .ridge_kernels import responses
from .tv import C3


class Rates(NamedTuple):
    """d nu/ds, d nu'/dg and d log b/dr, (1, K, 1) each."""

    s: jax.Array
    g: jax.Array | None
    r: jax.Array | None


def rates_of(theta, parts):
    column = {name: leaf.reshape(1, -1, 1) for name, leaf in theta.items() if name != "filters"}
    if parts.b is None:
        return Rates(jnp.exp(column["smoothings"]), None, None)
    return Rates(*(jnp.exp(column[name]) for name in ("smoothings", "gaps")), jax.nn.sigmoid(-column["concavities"]))


class Potential(NamedTuple):
    """psi' = tau r, -nu dpsi'/dnu = tau r^3 and nu psi'' at all pixels; and the largest nu psi'', |d(tau r^3)/dtau| and
    nu^2 |psi'''| where t may be."""

    first: jax.Array
    turn: jax.Array
    second: jax.Array
    near: jax.Array
    slope: jax.Array
    third: jax.Array


def potential(t, nu, reach):
    # psi'' = r^3/nu is largest nearest 0, |psi'''| = 3 |tau| r^5/nu^2 nearest 1/2. |d(tau r^3)/dtau| = r^3 |3 r^2 - 2|
    # is at most min(1, 2 r^3).
    tau, reach = t / nu, reach / nu
    size, r = jnp.abs(tau), lax.rsqrt(1 + tau**2)
    near = lax.rsqrt(1 + jnp.maximum(size - reach, 0) ** 2) ** 3
    worst = jnp.clip(0.5, size - reach, size + reach)
    third = 3 * worst * lax.rsqrt(1 + worst**2) ** 5
    return Potential(tau * r, tau * r**3, r**3, near, jnp.minimum(1, 2 * near), third)


def rough(image, size):
    """Of every pixel, sum over its patch of (x - x_p)^2: at least ||patch less its mean||^2."""
    margin, (height, width) = size // 2, image.shape
    padded = jnp.pad(image, margin, mode="symmetric")
    moved = [padded[i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return sum((v - image) ** 2 for v in moved).reshape(-1)


def measures(x, q, parts, rates, reach):
    """Of one image: sums over its pixels, max_p |phi''' C q| of each filter or its mirror image, the largest patch."""
    size = parts.taps.shape[1]
    t, u = (responses(jnp.pad(v, size // 2, mode="symmetric"), parts.taps) for v in (x, q))
    X2, Q2 = rough(x, size), rough(q, size)
    X, Q = (jnp.sqrt(v)[None, None] for v in (X2, Q2))
    a, nu = parts.a[None, :, None], parts.nu[None, :, None]
    P = potential(t, nu, reach)
    first, second, near, third = a * P.first, a / nu * P.second, a / nu * P.near, a / nu**2 * P.third
    turn, slope = a * P.turn * rates.s / nu, a / nu * P.slope * rates.s / nu
    over = {}
    if parts.b is not None:
        b, wide = parts.b[None, :, None], parts.wide[None, :, None]
        W = potential(t, wide, reach)
        first, second = first - b * W.first, second - b / wide * W.second
        near, third = jnp.maximum(near, b / wide * W.near), third + b / wide**2 * W.third
        turn, slope = turn - b * W.turn * rates.s / wide, slope + b / wide * W.slope * rates.s / wide
        over = {
            "J gaps": b * W.turn * rates.g / wide, "M gaps": b / wide * W.slope * rates.g / wide * u,
            "J concavities": rates.r * b * W.first, "M concavities": rates.r * b / wide * W.near * u,
            "J S": jnp.sqrt(b * wide) * W.first, "M S": jnp.sqrt(b / wide) * W.near * u,
        }  # fmt: skip
    over |= {
        "J weights": first, "M weights": near * u, "J smoothings": turn, "M smoothings": slope * u,
        "J patches": second * X, "M q": near * Q, "M patches": third * u * X,
    }  # fmt: skip
    sums = {name: jnp.sum(v**2, axis=(0, 2)) for name, v in over.items()}
    flat = first.reshape(-1, first.shape[2])
    gram = jnp.matmul(flat, flat.T, precision="highest")
    return sums | {"gram": gram}, jnp.max(jnp.abs(third * u), axis=(0, 2)), jnp.max(X2)


def first_order(sums, X2, parts, rates, power, length, drift):
    """Bounds on ||J||, and of how it changes: M_J along q, and L_J."""
    # J dc = D^T phi' + C^T (phi'' D x), D the correlation by dc. ||D^T phi'|| <= s ||dc|| ||F||, F with phi' as rows,
    # dc over both of a pair, sqrt(2) ||dc_g|| long: the patches X_p of x in a matrix have ||X||_F = s ||x||, for all
    # shifts and their flips together see each pixel s^2 times. The second has e_i = || |phi''| |X_p| || ||dc||.
    # M: of Q phi' + X (phi'' C q) along z, |d phi'| <= near |C z|, ||dX||_F <= s ||z||, |d phi''| <= third |C z|.
    # L: D^T d phi' and C^T (phi'' D z) are at most sqrt(2) s sqrt(peak) each, for ||D|| <= s ||dc||; third as before.
    # S: its column of J is sum_i C_i^T b tau' r', at most sqrt(peak(b/nu')) sqrt(sum_i nu'/b ||b tau' r'||^2).
    size, bent = parts.taps.shape[1], parts.b is not None

    def peak(k):
        return jnp.max(k @ power)

    def steepest(slopes):  # the largest peak(sum over j of k_j d_j) for vectors d of length 1 in all
        return jnp.sqrt(jnp.max(sum(k**2 for k in slopes) @ power**2))

    twice = jnp.concatenate([1 / length] * 2)
    top = jnp.maximum(jnp.linalg.eigvalsh(twice[:, None] * sums["gram"] * twice[None])[-1], 0)
    J = [2**0.5 * size * jnp.sqrt(top) + jnp.sqrt(peak(sums["J patches"] / length**2))]
    M = [jnp.sqrt(peak(sums["M q"] / length**2)) + 2**0.5 * size * jnp.sqrt(jnp.sum(sums["M weights"] / length**2))]
    M[0] += jnp.sqrt(peak(sums["M patches"] / length**2))
    for name in ["weights", "smoothings"] + ["gaps", "concavities"] * bent:
        J.append(jnp.sqrt(peak(sums[f"J {name}"])))
        M.append(jnp.sqrt(peak(sums[f"M {name}"])))
    A, third, s = parts.a / parts.nu, parts.a / parts.nu**2, rates.s[0, :, 0]
    largest, of_logs = A, [A, A * s / parts.nu]
    if bent:
        B, third = parts.b / parts.wide, third + parts.b / parts.wide**2
        largest, g = jnp.maximum(A, B), rates.g[0, :, 0]
        of_logs = [largest, A * s / parts.nu + B * s / parts.wide, B * g / parts.wide, B * rates.r[0, :, 0]]
    filters = 2**1.5 * size * jnp.sqrt(peak((largest / length) ** 2)) + C3 * jnp.sqrt(X2) * steepest([third / length])
    J, M, L = (jnp.linalg.norm(jnp.stack(terms)) for terms in (J, M, [filters, steepest(of_logs)]))
    if not bent:
        return J, M, L
    root = jnp.sqrt(peak(B))
    J += drift * root * jnp.sqrt(jnp.sum(sums["J S"]))
    return J, M + drift * root * jnp.sqrt(jnp.sum(sums["M S"])), L + drift * root**2


def summands(parts, length, drift, pixels, reach):
    """The size of what J adds up: in C^T phi', s ||phi'||, and in t, which phi' sees with its slope."""
    size = parts.taps.shape[1]
    t = size * reach
    moved = parts.a / parts.nu * t
    terms = jnp.minimum(moved, parts.a * math.sqrt(2 * pixels)) + moved
    if parts.b is not None:
        terms += 2 * parts.b / parts.wide * t
    terms *= 2 * size
    return jnp.sqrt(4 * jnp.sum(terms**2) + jnp.sum((2 * size * terms / length) ** 2)) + drift * jnp.sum(terms)
