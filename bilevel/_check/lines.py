"""Where to look for a contradiction: along lines, halving intervals.

On a line y + t v everything is a function of one number: slope = <grad h, v>, bend = <v, H v>. Over an interval with
the midpoint m,

    slope(b) - slope(a) = (b - a) (bend(a) + 4 bend(m) + bend(b)) / 6 + defect

The defect falls with the fifth power of b - a where h is smooth, with the first where bend jumps, and not at all where
slope does, at a kink: intervals are halved where it is largest, by itself, over b - a and over (b - a)^2; and where h
curves least and most.
"""

from typing import NamedTuple

import numpy as np

from .probe import Probe, norms

HALVINGS = 60  # from the longest interval to the resolution of float64
SLACK = 1 + 1e-6


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

    def __init__(self, probe: Probe, directions: np.ndarray, reach: float):
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
        jumps = probe.constants.L_hessian is not None or probe.constants.concordance is not None
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
        allowed = np.where(length <= 4 * self.resolution(a), length * np.maximum(10 * bend, L) + noise, np.inf)
        return self._largest(a, b, allowed, lambda slope, bend: slope)

    def jump(self, L_hessian: float) -> Found | None:
        """Where bend changes by more than L_hessian allows."""
        a, b, length = self.neighbours()
        noise = 8 * self.probe.eps * (np.abs(a[:, 3]) + np.abs(b[:, 3]))
        allowed = SLACK * L_hessian * (length + 4 * self.probe.eps * self._size(a)) + noise
        return self._largest(a, b, allowed, lambda slope, bend: bend)

    def factor(self, concordance: float, L: float) -> Found | None:
        """Where bend, as large as L elsewhere, changes by a factor whose logarithm is more than concordance allows."""
        a, b, length = self.neighbours()
        upward = (a[:, 3] > 0) & (b[:, 3] > 0)
        a, b, length = a[upward], b[upward], length[upward]
        noise = 8 * self.probe.eps * (1 + L / np.minimum(a[:, 3], b[:, 3]))
        allowed = SLACK * concordance * (length + 4 * self.probe.eps * self._size(a)) + noise
        return self._largest(a, b, allowed, lambda slope, bend: np.log(np.maximum(bend, np.finfo(float).tiny)))

    def _size(self, nodes):
        return norms(self.probe.y) + np.abs(nodes[:, 1])

    def _largest(self, a, b, allowed, measure):
        """The largest change above what is allowed, if it is above the rounding that is seen at both ends too."""
        change = np.abs(measure(b[:, 2], b[:, 3]) - measure(a[:, 2], a[:, 3]))
        for k in np.argsort(allowed - change)[:4]:
            if not change[k] > allowed[k]:
                return None
            ends, v = self.at(np.stack([a[k], b[k]])), self.v[int(a[k, 0])]
            seen = self.probe.jitter(ends, v, ("rho", "Hv"))
            changes = np.diff(measure(seen.rho @ v, seen.Hv @ v), axis=1)
            if abs(np.mean(changes)) - 4 * np.std(changes) > allowed[k]:
                length = b[k, 1] - a[k, 1]
                return Found(ends.mean(axis=0), change[k], length, length <= 4 * self.resolution(a[[k]])[0])
        return None
