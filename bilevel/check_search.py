"""Where to look for a contradiction: along lines, bisecting; and up the third derivatives, by power iterations.

On a line y + t v everything is a function of one number: slope = <grad h, v>, bend = <v, H v>. Over an interval with
the midpoint m,

    slope(b) - slope(a) = (b - a) (bend(a) + 4 bend(m) + bend(b)) / 6 + defect

The defect falls with the fifth power of b - a where h is smooth, with the first where bend jumps, and not at all where
slope does, at a kink: intervals are halved where it is largest, by itself, over b - a and over (b - a)^2; and where h
curves least and most.
"""

from typing import NamedTuple

import jax
import numpy as np

from .check_probe import Probe, norms, unit

HALVINGS = 60  # from the longest interval to the resolution of float64


class Found(NamedTuple):
    """What was found at y: slope or bend changes by `amount` within `length`; `sharp`: which cannot be resolved."""

    y: np.ndarray
    amount: float
    length: float
    sharp: bool


class Lines:
    """The lines y + t v through the solution, refined on construction.

    `cells` (cells, 3, 4): line, t, slope and bend at both ends of an interval and between them.
    """

    def __init__(self, probe: Probe, directions: np.ndarray, reach: float, jumps: bool):
        self.probe, self.v = probe, directions
        self.per_t = norms(probe.root * directions)  # the distance in x that t makes
        self.widest = np.max(np.abs(directions), axis=1)
        # no round numbers: a midpoint shall not hit a kink that lies at one
        steps = np.pi / 3 * np.geomspace(1e-6, reach, 46 if probe.dense else 10)
        steps = np.concatenate([-steps[::-1], [0.0], steps]) * probe.scale
        steps = np.insert((steps[:-1] + steps[1:]) / 2, np.arange(len(steps)), steps)
        line = np.arange(len(directions))[:, None]
        nodes = self._measure(line, steps / self.per_t[:, None])
        cells = np.stack([nodes[:, :-2:2], nodes[:, 1::2], nodes[:, 2::2]], axis=2)
        self.cells = cells.reshape(-1, 3, 4)
        for _ in range(HALVINGS):
            length = self.cells[:, 2, 1] - self.cells[:, 0, 1]
            rise = self.cells[:, 2, 2] - self.cells[:, 0, 2]
            defect = np.abs(rise - length * (self.cells[:, :, 3] @ [1, 4, 1]) / 6)
            scores = [defect, defect / length, -rise / length, rise / length] + [defect / length**2] * jumps
            scores = np.stack(scores)
            closed = (length < 2 * self.resolution(self.cells[:, 1])) | ~np.isfinite(self.cells).all(axis=(1, 2))
            scores[:, closed] = -np.inf
            pick = np.unique(np.argsort(-scores, axis=1)[:, : probe.effort])
            pick = pick[~closed[pick]]
            if not pick.size:
                break
            self._halve(pick)

    def _halve(self, pick):
        old = self.cells[pick]
        quarters = (old[:, :2, 1] + old[:, 1:, 1]) / 2
        new = self._measure(old[:, :2, 0], quarters)
        halves = [np.stack([old[:, k], new[:, k], old[:, k + 1]], axis=1) for k in (0, 1)]
        self.cells = np.concatenate([np.delete(self.cells, pick, axis=0), *halves])

    def _measure(self, line, t):
        line, t = np.broadcast_arrays(line.astype(int), t)
        nodes = np.empty((t.size, 4))
        for k in range(0, t.size, self.probe.rows):
            part = slice(k, k + self.probe.rows)
            v = self.v[line.ravel()[part]]
            y = (self.probe.y + t.reshape(-1, 1)[part] * v).astype(self.probe.dtype)
            seen = self.probe(y, v, fields=("rho", "Hv"))
            columns = line.ravel()[part], *(np.sum(rows * v, axis=1) for rows in (y - self.probe.y, seen.rho, seen.Hv))
            nodes[part] = np.stack(columns, axis=1)  # t as rounded
        return nodes.reshape(*t.shape, 4)

    def neighbours(self):
        """Nodes a and b without another between them, where all is finite, and their distance."""
        pairs = np.concatenate([self.cells[:, :2], self.cells[:, 1:]])
        pairs = pairs[np.isfinite(pairs).all(axis=(1, 2))]
        return pairs[:, 0], pairs[:, 1], pairs[:, 1, 1] - pairs[:, 0, 1]

    def resolution(self, nodes):
        """64 spacings of the numbers that y is made of."""
        size = (1 + np.max(np.abs(self.probe.y))) / self.widest[nodes[:, 0].astype(int)]
        return 64 * self.probe.eps * (size + np.abs(nodes[:, 1]))

    def at(self, nodes):
        return self.probe.y + nodes[:, 1:2] * self.v[nodes[:, 0].astype(int)]

    def extremes(self) -> tuple[np.ndarray, np.ndarray]:
        """On every line the point that curves least, the least first; and that which curves most, the most first."""
        nodes = self.cells.reshape(-1, 4)
        nodes = nodes[np.isfinite(nodes).all(axis=1)]
        return self._first_of_lines(nodes, nodes[:, 3]), self._first_of_lines(nodes, -nodes[:, 3])

    def _first_of_lines(self, nodes, order):
        first = np.lexsort((order, nodes[:, 0]))
        first = first[np.unique(nodes[first, 0], return_index=True)[1]]
        return self.at(nodes[first[np.argsort(order[first])]])

    def kink(self, L: float) -> Found | None:
        """Where slope changes by far more than it bends on either side, and than L allows, as finely as can be
        resolved."""
        a, b, length = self.neighbours()
        bend = np.maximum(np.abs(a[:, 3]), np.abs(b[:, 3]))
        noise = 8 * self.probe.eps * (np.abs(a[:, 2]) + np.abs(b[:, 2]) + bend * self._size(a))
        fine = length <= 4 * self.resolution(a)
        return self._confirmed(
            a, b, length, np.where(fine, length * np.maximum(10 * bend, L) + noise, np.inf), column=2
        )

    def jump(self, L_hessian: float) -> Found | None:
        """Where bend changes by more than L_hessian allows."""
        a, b, length = self.neighbours()
        noise = 8 * self.probe.eps * (np.abs(a[:, 3]) + np.abs(b[:, 3]))
        allowed = (1 + 1e-6) * L_hessian * (length + 4 * self.probe.eps * self._size(a))
        return self._confirmed(a, b, length, allowed + noise, column=3)

    def _size(self, nodes):
        return norms(self.probe.y) + np.abs(nodes[:, 1])

    def _confirmed(self, a, b, length, allowed, column):
        """The largest change above what is allowed, if it is above the rounding that is measured at both ends too."""
        change = np.abs(b[:, column] - a[:, column])
        for k in np.argsort(allowed - change)[:4]:
            if not change[k] > allowed[k]:
                return None
            ends, v = self.at(np.stack([a[k], b[k]])), self.v[int(a[k, 0])]
            if confirmed(self.probe, ends, v, "rho" if column == 2 else "Hv", allowed[k], v[:, None]):
                return Found(ends.mean(axis=0), change[k], length[k], length[k] <= 4 * self.resolution(a[k : k + 1])[0])
        return None


def confirmed(probe: Probe, ends: np.ndarray, v: np.ndarray, field: str, allowed: float, onto=None) -> bool:
    """Whether the change of a field between two points is more than `allowed`, whichever way both are rounded."""
    fields = getattr(probe.jitter(ends, v, (field,)), field)
    changes = fields[:, 1] - fields[:, 0] if onto is None else (fields[:, 1] - fields[:, 0]) @ onto
    return bool(norms(np.mean(changes, axis=0)) - 4 * norms(np.std(changes, axis=0)) > allowed)


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
