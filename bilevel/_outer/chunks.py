"""The evaluation of a `Chunked` problem: programs of one unit, a chunk of units at a time, and their means.

For the outer loop it is a meter as any other, whose points have no x: what of it is kept lies on the host, in
`lower.curvature`. There is one program for all units, of shapes that no chunk's length enters: so no bit of a result
depends on it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._certificate import units
from .._certificate.means import Means, Sum, hypergradient, solved
from .._certificate.means import point as point_of
from .._certificate.units import Told
from .._certificate.value import Point
from .._chunked import Chunked, Kept
from .._inputs import check_declared, uniform
from .._linalg.vectors import Vector
from .._problem import AbstractProblem
from .._program import FEW, program
from .._results import RESULTS
from .method import ROUNDED
from .overheads import overheads
from .programs import UNLIMITED, Meter, Stop

HALF = np.float32

# compiled quickly where all units together are small, else thoroughly, however small one is: it is called for each
QUICK, THOROUGH = ((program(units.solve, few), program(units.differentiate, few)) for few in (FEW, 0))


class ChunkedMeter(Meter):
    """Solves start from where theta was solved last, else from the base. What a trial leaves is written over by the
    next."""

    def __init__(self, problem: Chunked, solver: Any, max_cost: float, state: Any = None):
        super().__init__(problem, solver, max_cost, state)
        numbers = sum(leaf.size for leaf in jax.tree.leaves(problem.first) if hasattr(leaf, "size"))
        self.programs = QUICK if len(problem) * numbers <= FEW else THOROUGH
        # theta and what is kept of it: where the step starts, and of the last trial; of a state nothing is overwritten
        self.state = None if state is None else state.point.lower.curvature
        self.base = (None, None) if state is None else (state.theta, self.state)
        self.last: tuple[Vector | None, Kept | None] = (None, None)

    def recall(self, point: Point) -> None:
        self.base = self.base[0], point.lower.curvature

    def solve(self, theta, x0, eps, cap=math.inf, q=None):
        known = overheads(self.problem, x0, theta)
        correction = 0 if q is None else known.correction
        if self.left < known.solve + correction:
            raise Stop(RESULTS.max_cost_reached)
        cap, dtype, seed = max(cap, known.solve + correction), jax.tree.leaves(theta)[0].dtype, self.seed
        share = np.asarray(eps / math.sqrt(len(self.problem)), dtype)
        again = same(self.last[0], theta)
        at_base = self.base[0] is None or (same(self.base[0], theta) and not again)
        here = self.last[1] if again else self.base[1] if at_base else None  # what is kept of this very theta
        from_x = None if self.base[1] is None else (self.last if again else self.base)[1].x
        by = self.base[1].q if correction else None

        def run(i, unit, x, allowed):
            if self.base[0] is None:  # as every problem's are before the first solve
                check_declared(unit, theta)
            x = unit.guess(theta) if x is None else part(x, i)
            return self._call(
                self.programs[0], unit, self.solver, theta, x, None if by is None else part(by, i), share, allowed, seed
            )  # fmt: skip

        x, told = self.room(self.base[1] if at_base else self.last[1], "x"), [None] * len(self.problem)
        left, todo = int(min(cap, self.left, UNLIMITED)) * len(told), list(range(len(told)))
        while todo and left >= len(todo) * (known.solve + correction):
            # of one mean allowance; what some leave of it is for those that it cut off
            allowed = np.asarray(min(left // len(todo), UNLIMITED), np.int32)
            for i, (found, one) in zip(todo, self.over(todo, run, dtype, from_x, allowed), strict=True):
                left -= one.cost
                if here is not None and here.x is not None and not one.eps <= here.eps[i]:
                    found, one = part(here.x, i), one.at(here.eps[i])  # nearer than what was found
                x = self.store(x, i, found)
                told[i] = one if told[i] is None else told[i].then(one)
            todo, from_x = [i for i in todo if told[i].cut], x
        means = self.counted(told)
        q = None if self.base[1] is None else self.base[1].q
        if self.problem.keep and q is None:
            q = jax.tree.map(lambda v: np.zeros(v.shape, HALF), x)
        kept = Kept(x, q, means["eps"], eps)
        if at_base:
            self.base = theta, kept
        else:
            self.last = theta, kept
        point = point_of(means, kept, solved(means, eps), math.inf, dtype)
        if self.left < cap and self.left <= 0 and float(point.lower.error) > eps:
            raise Stop(RESULTS.max_cost_reached)
        return point

    def attempt(self, theta, point, q, delta, corrects=False):
        known, sharp = overheads(self.problem, (), theta), math.isfinite(float(point.lower.local.t))
        rest = known.certificate + 1 + (sum(known.local) if sharp else 0)
        if self.left < rest:
            raise Stop(RESULTS.max_cost_reached)
        corrects = corrects and 0 < known.correction <= self.left - rest
        allowed = np.asarray(int(min(self.left, UNLIMITED)), np.int32)
        kept, root = point.lower.curvature, math.sqrt(len(self.problem))
        dtype, seed = jax.tree.leaves(theta)[0].dtype, self.seed
        # x as it is kept, or as far again
        goals = np.asarray(np.maximum(kept.eps * ROUNDED, kept.asked / root), dtype)
        share = np.asarray(delta * root, dtype)

        def run(i, unit):
            x = unit.guess(theta) if kept.x is None else part(kept.x, i)
            by = jax.tree.map(lambda v: np.zeros(v.shape, HALF), x) if kept.q is None else part(kept.q, i)
            return self._call(
                self.programs[1], unit, self.solver, theta, x, by, goals[i], share, allowed, seed, sharp, corrects
            )  # fmt: skip

        qs, told, z = self.room(kept, "q"), [], Sum(theta)
        for i, (found, slope, one) in enumerate(self.over(range(len(self.problem)), run, dtype)):
            qs = self.store(qs, i, found, HALF)
            z.add(slope)
            told.append(one)
        means = self.counted(told)
        kept = kept._replace(q=qs)
        point = point_of(means, kept, point.lower.result, float(point.lower.local.t), dtype)
        self.base = theta, kept
        return point, hypergradient(theta, means, z, delta, dtype)

    def room(self, kept: Kept | None, name: str) -> Any:
        """Arrays to write into, where there are any that nobody else needs: not a state's."""
        old = None if kept is None else getattr(kept, name)
        return None if self.state is not None and old is getattr(self.state, name) else old

    def store(self, stack: Any, i: int, found: Any, dtype: Any = None) -> Any:
        """The stack with what was found for unit i; made where there is none, and it is to be kept."""
        if not self.problem.keep:
            return None
        if stack is None:
            count = len(self.problem)
            stack = jax.tree.map(lambda v: np.empty((count, *v.shape), v.dtype if dtype is None else dtype), found)
        shapes = [(a.shape[1:], b.shape) for a, b in zip(*map(jax.tree.leaves, (stack, found)), strict=True)]
        if any(a != b for a, b in shapes):
            raise ValueError(
                f"the x of unit {i} has the shapes {[b for _, b in shapes]}, others {[a for a, _ in shapes]}"
            )
        for a, b in zip(*map(jax.tree.leaves, (stack, found)), strict=True):
            a[i] = b
        return stack

    def over(
        self, units: Sequence[int], run: Callable[..., Any], dtype: np.dtype, *arguments: Any
    ) -> Iterator[Any]:  # fmt: skip
        """What `run(i, unit, *arguments)` returns for these in turn, on the host; a chunk of units is on the device."""
        chunk = self.problem.source.chunk
        for begin in range(0, len(units), chunk):
            there = [(i, uniform(self.problem.unit(i), dtype)) for i in units[begin : begin + chunk]]
            yield from jax.device_get([run(i, unit, *arguments) for i, unit in there])

    def sharpen(self, theta, point, most=math.inf):
        """The same point, marked: the next hypergradient is made with these bounds, and pays for them."""
        price = overheads(self.problem, (), theta).local
        if price is None or sum(price) > min(self.left, most) or not math.isfinite(float(point.lower.error)):
            return None
        lower = point.lower
        local = dataclasses.replace(lower.local, t=jnp.zeros_like(lower.mu))
        return dataclasses.replace(point, lower=dataclasses.replace(lower, local=local))

    def counted(self, told: list[Told]) -> Means:
        means = Means(told)
        spent = means.spent(self.counts._fields)
        self.counts = type(self.counts)(*(old + new for old, new in zip(self.counts, spent, strict=True)))
        return means


def part(stack: Any, i: int) -> Any:
    return jax.tree.map(lambda v: v[i], stack)


def same(one: Vector | None, other: Vector) -> bool:
    """Whether they are equal to the bit."""
    if one is None:
        return False
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, jax.device_get((one, other))), strict=True))


def meter(problem: AbstractProblem, solver: Any, max_cost: float, state: Any = None) -> Meter:
    """What evaluates this problem."""
    return (ChunkedMeter if isinstance(problem, Chunked) else Meter)(problem, solver, max_cost, state)
