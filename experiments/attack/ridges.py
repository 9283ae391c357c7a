"""The ridge regulariser's rows, its derivatives in theta and how far it is from convex, by NumPy in 80 bits.

    R = sum_i sum_p a_i psi(t, nu_i) - b_i psi(t, nu'_i),    t = (c_i * x)_p,    psi(t, nu) = sqrt(t^2 + nu^2)

as `bilevel.problems.Ridge` defines it; of the package's it takes the order of the DCT basis.
"""

from collections.abc import Mapping

import numpy as np

from bilevel.problems._regularisers.ridge_filters import bases
from experiments.attack.terms import Real, Terms, real

LEAST, RHO, GRID, SIZE, STEP = 5e-4, 0.9, 64, 3, Real(1e-60)
Leaves = Mapping[str, np.ndarray]


def ridge(R, leaves: Leaves, shape, dtype):
    """Terms, the columns of J by leaf, and sum_i k_i C_i^T C_i, -k_i the least curvature of the i-th potential."""
    parts = parts_of(leaves, R.weak, dtype)
    reads = taps_read(shape)  # (2, taps, P, n): of a filter and of its mirror image
    B, F = parts["a"].shape
    P, n = reads.shape[2:]
    K = np.einsum("bft,atpn->bfapn", parts["taps"], reads).reshape(B, F * 2 * P, 1, n)

    def spread(v):
        return np.repeat(v, 2 * P, axis=1)

    terms = [Terms("root", K, np.zeros(K.shape[:3], Real), spread(parts["a"]), spread(parts["nu"]))]
    if R.weak:
        terms.append(Terms("root", K, np.zeros(K.shape[:3], Real), spread(-parts["b"]), spread(parts["wide"])))

    def cross(x):
        """J = (d grad R/d parts) (d parts/d theta)."""
        t = terms[0].residual(x)[..., 0]
        inner = {}
        slope = bend = 0
        for sign, weight, width in ((1, "a", "nu"), (-1, "b", "wide"))[: 1 + R.weak]:
            a, nu = spread(parts[weight]), spread(parts[width])
            r = np.sqrt(t**2 + nu**2)
            slope, bend = slope + sign * a * t / r, bend + sign * a * nu**2 / r**3
            inner[weight] = np.einsum("bfp,bfpn->bnf", (sign * t / r).reshape(B, F, -1), K.reshape(B, F, -1, n))
            inner[width] = np.einsum(
                "bfp,bfpn->bnf", (-sign * a * t * nu / r**3).reshape(B, F, -1), K.reshape(B, F, -1, n)
            )
        slope, bend = (v.reshape(B, F, 2, P) for v in (slope, bend))
        seen = np.einsum("atpn,bn->batp", reads, x)
        inner["taps"] = np.einsum("bfap,atpn->bnft", slope, reads)
        inner["taps"] += np.einsum("bfap,batp,bfapn->bnft", bend, seen, K.reshape(B, F, 2, P, n))
        inner["taps"] = inner["taps"].reshape(B, n, -1)
        return {name: chained(leaves, name, R.weak, dtype, inner) for name in leaves if name != "elastic"}

    if not R.weak:
        return terms, cross, Real(0)
    k = np.repeat(hollow(parts), 2 * P, axis=1)
    return terms, cross, np.einsum("bp,bpm,bpn->bmn", k, K[:, :, 0], K[:, :, 0])


def chained(leaves, name, weak, dtype, inner):
    """sum over the parts of inner (dpart/dleaf), the second factor by a complex step."""
    leaf, columns = leaves[name], []
    for where in np.ndindex(*leaf.shape[1:]):
        moved = leaf.astype(np.clongdouble)
        moved[(slice(None), *where)] += 1j * STEP
        found = parts_of({**leaves, name: moved}, weak, dtype)
        columns.append(sum(
            np.einsum("bnf,bf->bn", inner[part], np.imag(v).reshape(len(v), -1) / STEP) for part, v in found.items()
        ))  # fmt: skip
    return np.stack(columns, axis=-1)


def parts_of(leaves: Leaves, weak: bool, dtype) -> dict[str, np.ndarray]:
    """taps (B, F, s^2), a, nu and, weakly convex, b, nu' (B, F); analytic in theta where its largest frequency is."""
    B = len(leaves["weights"])
    flat = {name: v.reshape(B, -1) for name, v in leaves.items()}
    u = leaves["filters"]
    unit = u / np.sqrt(np.sum(u**2, axis=-1, keepdims=True))
    taps = np.einsum("bimj,ijt->bimt", unit, real(bases(SIZE).astype(dtype)).reshape(2, -1, SIZE**2))
    a, nu = np.exp(flat["weights"]), real(dtype(LEAST)) + np.exp(flat["smoothings"])
    found = {"taps": taps.reshape(B, -1, SIZE**2), "a": a, "nu": nu}
    if not weak:
        return found
    wide, b = nu + np.exp(flat["gaps"]), a / (1 + np.exp(-flat["concavities"]))
    found |= {"b": b, "wide": wide}
    curved, over, c = b * wide**2, a * nu**2, (wide - nu) * (wide + nu)
    inside = 1 - np.exp(Real(0.4) * (np.log(over) - np.log(curved)))
    inside = np.where(np.real(inside) > 0, inside, 0)
    bend = curved / (c * np.sqrt(c)) * inside**2 * np.sqrt(inside)
    peaks = np.einsum("bf,bfw->bw", bend, powers(found["taps"]))
    peak = np.take_along_axis(peaks, np.argmax(np.real(peaks), axis=1)[:, None], axis=1)
    return found | {"b": b * np.where(np.real(peak) > RHO, real(dtype(RHO)) / peak, 1)}


def powers(taps):
    """|c^|^2 + |mirrored^|^2 on a grid of frequencies, over cos^2((s - 1) pi/(2 GRID))^2: see ridge_filters.py."""
    pi, middle = np.arccos(Real(-1)), SIZE // 2
    w, d = np.arange(GRID + 1) * pi / GRID, np.arange(SIZE) - middle
    square = 0
    for sign in (1, -1):
        angle = w[:, None, None, None] * d[:, None] + sign * w[:, None, None] * d
        for wave in (np.cos(angle), np.sin(angle)):
            square = square + np.einsum("bft,wt->bfw", taps, wave.reshape(-1, SIZE**2)) ** 2
    return square / np.cos((SIZE - 1) * pi / (2 * GRID)) ** 2


def hollow(parts):
    """k of each filter, the largest -psi'' over t >= 0, by search, and a ten-thousandth more."""
    t = np.concatenate([[0], np.geomspace(1e-8, 1e4, 4000)])[:, None, None]

    def second(a, nu):
        return a * nu**2 / (t**2 + nu**2) ** 1.5

    most = np.max(second(parts["b"], parts["wide"]) - second(parts["a"], parts["nu"]), axis=0)
    return np.maximum(most, 0) * (1 + 1e-4)


def taps_read(shape):
    """(2, taps, pixels, n): which pixel each response reads by which tap, of a filter and of its mirror image."""
    n, height, width = shape[:3]
    number = np.arange(n * height * width).reshape(n, height, width)
    number = np.pad(number, ((0, 0), (SIZE // 2,) * 2, (SIZE // 2,) * 2), mode="symmetric")
    found = np.zeros((2, SIZE**2, n * height * width, n * height * width))
    for tap, (i, j) in enumerate(np.ndindex(SIZE, SIZE)):
        for mirrored, at in enumerate((j, SIZE - 1 - j)):
            pixels = number[:, i : i + height, at : at + width].ravel()
            found[mirrored, tap, np.arange(len(pixels)), pixels] = 1
    return real(found)
