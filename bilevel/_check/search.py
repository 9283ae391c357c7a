"""Where to look for a contradiction: up the third derivatives, by power iterations; and what differences say of h."""

from typing import NamedTuple

import jax
import numpy as np

from .probe import Probe, norms, unit


class Change(NamedTuple):
    """`amount`, the norm of what a field along v changes by between `ends`, is to be at most `name` times `length`;
    `size` is the norm of the field itself. J alone is no change, but the field at one end."""

    name: str
    ends: np.ndarray
    v: np.ndarray
    field: str
    amount: float
    length: float
    size: float


def confirmed(probe: Probe, change: Change, allowed: float) -> bool:
    """Whether the change is more than `allowed` whichever way both ends are rounded."""
    field = getattr(probe.jitter(change.ends, change.v, (change.field,)), change.field)
    changes = field[:, 1] - field[:, 0]
    return bool(norms(np.mean(changes, axis=0)) - 4 * norms(np.std(changes, axis=0)) > allowed)


def climb(probe: Probe, points: np.ndarray) -> list[Change]:
    """Power iterations up the third derivatives, from random directions at every point.

        v <- (H(y + t v) - H(y - t v)) v,      w <- (J(y + t c) - J(y - t c))^T c,   c <- (J(y + t c) - J(y - t c)) w
        p <- (H(y + t p) - H(y - t p)) q,      z <- J^T a,   a <- J z

    normalised, with q random and t two lengths in units of 1 + ||y||. The differences at the end, whatever t is, are
    what Lipschitz constants bound.
    """
    lengths, starts, steps = (1e-1, 1e-3), 1 + probe.effort // 6, 7 + 2 * probe.effort // 3
    y = np.repeat(points, starts * len(lengths), axis=0)
    rng = np.random.default_rng(probe.seed)
    t = np.tile(lengths, len(y) // len(lengths))[:, None] * (1 + norms(y))[:, None]
    v, c, a, p, q = (unit(rng.standard_normal(y.shape)) for _ in range(5))
    w, z = (unit(rng.standard_normal((len(y), probe.d))) for _ in range(2))

    def measure(count):
        where = [y + t * v, y - t * v, y + t * c, y - t * c, y + t * p, y - t * p, y, y, y, y][:count]
        rows = where, [v, v, c, c, q, q, a, v, c, q][:count], ([w] * 6 + [z] * 4)[:count]
        seen = probe(*(np.concatenate(part) for part in rows), fields=("Hv", "Jtv", "Jw"))
        return where, [jax.tree.map(lambda field: field[k * len(y) : (k + 1) * len(y)], seen) for k in range(count)]  # noqa: B023

    for _ in range(steps):
        _, (v1, v2, c1, c2, p1, p2, here) = measure(7)
        v, p = unit(v1.Hv - v2.Hv, v), unit(p1.Hv - p2.Hv, p)
        c, w = unit(c1.Jw - c2.Jw, c), unit(c1.Jtv - c2.Jtv, w)
        a, z = unit(here.Jw, a), unit(here.Jtv, z)
    where, seen = measure(10)
    found = []
    for name, field, along, one, two in (
        ("L_hessian", "Hv", v, 0, 1), ("L_cross", "Jtv", c, 2, 3), ("M_H", "Hv", v, 0, 7), ("M_H", "Hv", q, 4, 9),
        ("M_J", "Jtv", c, 2, 8), ("M_J", "Jtv", q, 4, 9), ("L_J", "Jtv", c, 2, 8), ("J", "Jtv", a, 6, None),
    ):  # fmt: skip
        for k in range(len(y)):
            values = [np.zeros(1) if at is None else getattr(seen[at], field)[k] for at in (one, two)]
            ends = np.stack([where[one][k], where[one if two is None else two][k]]).astype(probe.dtype)
            length = 1.0 if two is None else float(norms(ends[1].astype(float) - ends[0]))
            amount, size = float(norms(values[0] - values[1])), float(norms(values[0]) + norms(values[1]))
            found.append(Change(name, ends, along[k], field, amount, length, size))
    return found


class Mismatch(NamedTuple):
    """A derivative of lower, of length `size`, is `miss` away from the differences that it should explain."""

    name: str
    y: np.ndarray
    miss: float
    size: float


def mismatches(probe: Probe, points: np.ndarray) -> list[Mismatch]:
    """grad h against h, and H against grad h, along a random direction at every point, by central differences:

        (h(y + t v) - h(y - t v)) / 2t ~ <grad h, v>,        (grad h(y + t v) - grad h(y - t v)) / 2t ~ H v

    What they miss of a smooth function shrinks with t. Told is what does not, at every t that rounding leaves.
    """
    v = unit(np.random.default_rng(probe.seed).standard_normal(points.shape))
    fields = ("h", "rho", "Hv")
    here, near = probe(points, v, fields=fields), probe.jitter(points, v, fields)
    slope, curve = np.sum(here.rho * v, axis=1), norms(here.Hv)
    h_noise = 8 * (np.std(near.h, axis=0) + probe.eps * np.abs(here.h))
    rho_noise = 8 * (norms(np.std(near.rho, axis=0)) + probe.eps * (curve * norms(points) + norms(here.rho)))
    rows = {"gradient": [], "second derivative": []}
    for k in range(4):
        t = probe.eps ** (1 / 3) * (1 + norms(points)) / 10**k
        ends = [(points + sign * t[:, None] * v).astype(probe.dtype) for sign in (1, -1)]
        length = norms(ends[0].astype(float) - ends[1])
        ahead, behind = (probe(y, v, fields=fields) for y in ends)
        miss = np.abs((ahead.h - behind.h) / length - slope)
        rows["gradient"].append((miss, np.abs(slope) + t * curve, h_noise / t))
        miss = norms((ahead.rho - behind.rho) / length[:, None] - here.Hv)
        rows["second derivative"].append((miss, curve, rho_noise / t))
    out = []
    for name, steps in rows.items():
        for y, miss, size, noise in zip(points, *np.moveaxis(np.asarray(steps), (0, 1, 2), (2, 0, 1)), strict=True):
            clear = noise <= 0.1 * size
            wrong = miss[clear] > 1e-2 * size[clear] + noise[clear]
            if len(wrong) > 1 and wrong.all() and miss[clear][-1] > 0.5 * miss[clear][0]:
                out.append(Mismatch(name, y, float(miss[clear][-1]), float(size[clear][-1])))
    return out
