"""Many lower levels that share theta and nothing else, solved one after the other: no more than a chunk is in memory.

    h(x, theta) = sum h_i(x_i, theta),     f(theta) = 1/N sum f_i(theta),     f_i(theta) = g_i(xhat_i(theta), theta)

Values, gradients and the bounds of their errors are means over the units i = 0 ... N - 1, so what is certified of each
is certified of f.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ._nonsmooth import AbstractNonsmoothProblem
from ._problem import AbstractProblem


class Kept(NamedTuple):
    """What is kept on the host of the units' solutions, stacked: x, exactly; q, in float32, since it starts and
    corrects, and proves nothing; None where they are computed anew. `eps`: of each unit; `asked`: of all."""

    x: PyTree[np.ndarray] | None
    q: PyTree[np.ndarray] | None
    eps: np.ndarray
    asked: float


@dataclasses.dataclass(eq=False)
class Source:
    """Makes units. For JAX all are equal, since no program depends on one, and what is compiled for one is for all.

    `chunk` is no field of it, and in no fingerprint of a checkpoint: a run goes on under another one."""

    make: Callable[..., AbstractProblem]
    data: tuple[Any, ...]
    size: int
    chunk: dataclasses.InitVar[int]

    def __post_init__(self, chunk: int):
        self.chunk = chunk

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source)

    def __hash__(self) -> int:
        return hash(Source)

    @property
    def count(self) -> int:
        return len(self.data[0]) // self.size

    def __call__(self, i: int) -> Any:
        return self.make(*(v[i * self.size : (i + 1) * self.size] for v in self.data))


class Chunked(AbstractProblem):
    """`Chunked(problems.TotalVariation, clean, noisy, size=8)`: unit i is `make(*(v[8 i : 8 i + 8] for v in data))`.

    - `make`: returns a problem with a `guess` and a smooth lower level; called whenever the unit is needed. All units
      are of one class, of one dtype, and their x of one shape; one shape of data is one compiled program.
    - `data`: what has a length, the same for all, and can be sliced: arrays, memory maps, lists, or `range(n)` where
      `make` is a function of indices. Read when it is needed, and never copied as a whole.
    - `size`: how many entries make a unit, which has to divide their number. A unit is solved to its own accuracy by
      one program: as many images as fill a device, and fit into a processor's cache.
    - `chunk`: how many units are on the device at once. It changes no bit of any result.
    - `keep`: x, and the adjoint in float32, stay on the host from step to step, from where the next solves start. With
      False every solve starts from `guess`, values are not corrected by the adjoint, and `Solution.x` is None.

    `bilevel.solve` and `bilevel.hypergradient` take it as any other problem, with methods whose gradient is the
    adjoint's. eps and delta are those of all units together, of which each gets an equal share; a cost of 1 is a
    gradient of every unit, rounded up. `Solution.x` has the units' x in NumPy arrays with one more axis in front: for
    stacks of images `np.concatenate(solution.x)` has them as the data do.

    Raises TypeError for a `make` or data that are none, ValueError for lengths and sizes; so does whatever `make` does.
    """

    first: AbstractProblem
    source: Source = eqx.field(static=True)
    keep: bool = eqx.field(static=True)

    def __init__(
        self, make: Callable[..., AbstractProblem], *data: Any, size: int = 1, chunk: int = 8, keep: bool = True
    ):
        if not callable(make):
            raise TypeError(f"make must be a problem's class, or a function that returns one, not {make!r}")
        if not data:
            raise TypeError("Chunked has no data: pass arrays, or range(n) where make is a function of indices")
        for v in data:
            if not (hasattr(v, "__len__") and hasattr(v, "__getitem__")):
                raise TypeError(f"data must have a length and slices, and {type(v).__name__} has not: pass an array")
        lengths = [len(v) for v in data]
        if len(set(lengths)) > 1 or lengths[0] == 0:
            raise ValueError(f"data must have one length, at least 1: they have {lengths}")
        for name, value in (("size", size), ("chunk", chunk)):
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
        if lengths[0] % size:
            near = max(k for k in range(1, size) if lengths[0] % k == 0)
            raise ValueError(
                f"size={size} does not divide {lengths[0]}, and all units have one shape: pass size={near}, or drop "
                f"the last {lengths[0] % size}"
            )
        self.source, self.keep = Source(make, data, int(size), int(chunk)), bool(keep)
        self.first = self.unit(0)

    def __len__(self) -> int:
        """N."""
        return self.source.count

    def unit(self, i: int) -> AbstractProblem:
        """The i-th unit, a problem by itself."""
        try:
            made = self.source(i)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"unit {i}: {error}") from error
        if not isinstance(made, AbstractProblem) or isinstance(made, Chunked):
            raise TypeError(f"make must return a bilevel.AbstractProblem, and no Chunked, not {type(made).__name__}")
        if isinstance(made, AbstractNonsmoothProblem):
            raise TypeError(
                f"the lower level of {type(made).__name__} has a kink, and no gradient of it adds up to a certified "
                "one: pass a smooth problem, such as TotalVariation"
            )
        if i and type(made) is not type(self.first):
            raise TypeError(
                f"unit {i} is a {type(made).__name__}, unit 0 a {type(self.first).__name__}: make must tell"
            )
        return made

    def lower(self, x, theta):
        """h, for x a sequence of the units' x."""
        _untraced(x, theta)
        return functools.reduce(operator.add, (self.unit(i).lower(v, theta) for i, v in enumerate(x)))

    def upper(self, x, theta):
        """g = 1/N sum of g_i, for x a sequence of the units' x."""
        _untraced(x, theta)
        return functools.reduce(operator.add, (self.unit(i).upper(v, theta) for i, v in enumerate(x))) / len(self)

    def constants(self, theta):
        """Those of the first unit, by which a search keeps theta where rounding ends; nothing is certified by them."""
        return self.first.constants(theta)


def _untraced(*arguments: Any) -> None:
    """Raises TypeError in a program: the data would be a part of it, and another data set's would not be looked at."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
        raise TypeError("data of a Chunked problem are read unit by unit: compile problem.unit(i), not the whole")


def refuse_chunks(problem: Any, what: str) -> None:
    """Raises TypeError for a `Chunked`; `what` is done and cannot be."""
    if isinstance(problem, Chunked):
        raise TypeError(f"{what}, and this is Chunked, many of them: pass one, problem.unit(i)")
