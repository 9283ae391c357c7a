"""How h and g curve at a point, and the points where h may curve least."""

from typing import NamedTuple

import numpy as np

from .probe import EFFORT, KRYLOV, Probe, norms, unit

DISTANCES = (1e-2, 1e-1, 1.0, 10.0, 100.0)  # from the solution, in units of 1 + ||x||
DESCENTS = 4


class Curvature(NamedTuple):
    """At one point: the eigenvalues of H and G that end their spectra, and ||K||; `noise`, what rounding hides of them.

    `flattest` is the eigenvector of `smallest`; `largest` is that of d2h/dx2. Exact where Hessians are measured whole;
    else Ritz values, which lie inside the spectrum.
    """

    y: np.ndarray
    finite: bool
    smallest: float
    flattest: np.ndarray
    largest: float
    noise: float
    g_low: float
    g_high: float
    g_noise: float
    K: float


def curvatures(probe: Probe, points: np.ndarray) -> list[Curvature]:
    """Of every point, in one batch where Hessians are measured whole."""
    if not probe.dense:
        return [_curvature(probe, y, krylov(probe, y, "Hv"), krylov(probe, y, "Gv")) for y in points]
    eye = np.eye(probe.n)
    seen = probe(np.repeat(points, probe.n, axis=0), np.tile(eye, (len(points), 1)))
    H, G, K = (field.reshape(len(points), probe.n, -1) for field in (seen.Hv, seen.Gv, seen.Ktv))
    return [_curvature(probe, y, (eye, H[k], K[k]), (eye, G[k], K[k])) for k, y in enumerate(points)]


def krylov(probe: Probe, y: np.ndarray, field: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An orthonormal basis (k, n) by Lanczos with the operator `field` at y, its products, and K^T of the basis."""
    rng = np.random.default_rng(probe.seed)
    steps = min(probe.n, KRYLOV + (probe.effort - 1) * 2**13 // probe.n)
    basis, products, crosses = np.zeros((steps + 1, probe.n)), np.zeros((steps, probe.n)), []
    basis[0] = unit(rng.standard_normal(probe.n))
    for k in range(steps):
        seen = probe(y, basis[k], fields=(field, "Ktv"))
        products[k] = getattr(seen, field)[0]
        crosses.append(seen.Ktv[0])
        for rest in (products[k], rng.standard_normal(probe.n)):  # the second where the first is nothing new
            size = norms(rest)
            for _ in range(2):
                rest = rest - (basis[: k + 1] @ rest) @ basis[: k + 1]
            if norms(rest) > 1e3 * probe.eps * size:
                break
        basis[k + 1] = unit(rest)
    return basis[:-1], products, np.asarray(crosses)


def _curvature(probe, y, of_h, of_g):
    (V, HV, _), (U, GU, KtU) = of_h, of_g
    if not all(np.isfinite(part).all() for part in (HV, GU, KtU)):
        return Curvature(y, False, *8 * (np.nan,))
    H, G = V @ HV.T, U @ GU.T
    values, vectors = np.linalg.eigh((H + H.T) / 2)
    g_values = np.linalg.eigvalsh((G + G.T) / 2)
    # d2h/dx2 on the same subspace: c^T H c / c^T V W^{-1} V^T c
    inverse = np.linalg.inv(np.linalg.cholesky((V * probe.root**2) @ V.T))
    largest = np.linalg.eigvalsh(inverse @ (H + H.T) @ inverse.T / 2)[-1]
    noise, g_noise = (
        8 * probe.eps * len(A) ** 0.5 * np.max(np.abs(ends)) + norms((A - A.T).ravel())
        for A, ends in ((H, values), (G, g_values))
    )
    K = np.linalg.norm(KtU, 2)
    return Curvature(y, True, values[0], vectors[:, 0] @ V, largest, noise, g_values[0], g_values[-1], g_noise, K)


def survey(
    probe: Probe, center: Curvature, start: np.ndarray, around: np.ndarray, extremes: tuple[np.ndarray, np.ndarray]
) -> list[Curvature]:
    """Of the starting point, the points `around` the solution, those where lines curve least and most, and, where
    Hessians are measured whole, of many more, near and far, from the least of which the smallest eigenvalue is followed
    downhill."""
    flat, steep = extremes
    if not probe.dense:
        return curvatures(probe, np.concatenate([start[None], around, flat[:1], steep[:1]]))
    rng = np.random.default_rng(probe.seed)
    between = probe.y - start
    points = [start, start + between / 2, start + 2 * between, *around]
    points += [*flat[: 2 * probe.effort], *steep[: probe.effort]]
    for far in DISTANCES:
        along = [center.flattest, -center.flattest, *probe.directions(rng, probe.effort // 4)]
        points += [probe.away(direction, far) for direction in along]
    seen = curvatures(probe, np.asarray(points))
    return seen + descend(probe, sorted((c for c in seen if c.finite), key=lambda c: c.smallest)[: EFFORT // 2])


def descend(probe: Probe, lowest: list[Curvature]) -> list[Curvature]:
    """Down the smallest eigenvalue of H, whose gradient is D3h[v, v, .] along its eigenvector v: the second difference
    of grad h. Four steps of different lengths a time; what was seen on the way."""
    seen = []
    for _ in range(DESCENTS if lowest else 0):
        y, v = (np.stack(part) for part in zip(*((c.y, c.flattest) for c in lowest), strict=True))
        t = probe.eps**0.25 * (1 + norms(y))[:, None]
        ahead, here, behind = (probe(y + k * t * v, v).rho for k in (1, 0, -1))
        downhill = unit(2 * here - ahead - behind)
        size = norms(y - probe.y)[:, None] + 0.1 * (1 + norms(probe.y))
        trials = [y + step * size * downhill for step in (1e-2, 1e-1, 0.3, 1.0)]
        found = curvatures(probe, np.concatenate(trials))
        seen += found
        lowest = [
            min((c for c in (old, *found[k :: len(lowest)]) if c.finite), key=lambda c: c.smallest)
            for k, old in enumerate(lowest)
        ]
    return seen
