"""What the programs cost beside the steps of their loops, from shapes alone."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax

from .._certificate.gradient import certificate_cost
from .._certificate.local_curvature import affordable, local_cost
from .._certificate.value import correction_cost
from .._chunked import Chunked
from .._linalg.vectors import Vector
from .._lower.descend import overhead
from .._nonsmooth import AbstractNonsmoothProblem
from .._problem import AbstractProblem


class Overheads(NamedTuple):
    """What a solve costs before its first step, a certificate beside its conjugate gradients, a corrected value, and
    the local curvature in products with H and with J (None where x is too large for it)."""

    solve: int
    certificate: int
    correction: int
    local: tuple[int, int] | None


def overheads(problem: AbstractProblem, x: Vector, theta: Vector) -> Overheads:
    """From the shapes alone."""
    leaves, structure = jax.tree.flatten((problem, x, theta))
    shapes = (jax.ShapeDtypeStruct(v.shape, v.dtype) if eqx.is_array(v) else v for v in leaves)
    return _overheads(structure, tuple(shapes))


@functools.lru_cache(maxsize=128)  # traces the problem's constants and bounds, so once per shape
def _overheads(structure, shapes):
    problem, x, theta = jax.tree.unflatten(structure, shapes)
    cost = []

    def trace(problem, x, theta):
        if isinstance(problem, AbstractNonsmoothProblem):
            cost.extend((problem.solve_cost(x), problem.slope_cost(x), 0, None))
            return
        if isinstance(problem, Chunked):  # a hypergradient looks at x again, and what is not kept corrects nothing
            trace(problem.first, problem.first.guess(theta), theta)
            solve, certificate, correction, local = cost
            cost[:] = solve, certificate + solve, correction * problem.keep, local
            return
        size = sum(v.size for v in jax.tree.leaves(x))
        certificate, correction = certificate_cost(problem, x, theta), correction_cost(problem, x, theta)
        local = local_cost(problem, x, theta) if affordable(x, theta) else None
        cost.extend((overhead(problem, theta, size), certificate, correction, local))

    eqx.filter_eval_shape(trace, problem, x, theta)
    return Overheads(*cost)
