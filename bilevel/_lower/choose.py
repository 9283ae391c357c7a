"""Which solver a lower level gets where none is named: by shapes and counts alone, never by a measured time.

L-BFGS needs the fewest gradients, and moves forty arrays of x's size a step to get by with them; Nesterov's method
moves ten. So L-BFGS, but where all of these hold: x is larger than a cache, mu and L are declared, and a gradient is so
cheap that moving the arrays is what takes the time.
"""

import jax
import optax

from .._chunked import Chunked
from .._linalg.vectors import Vector
from .._problem import AbstractProblem, lower_gradient
from .lbfgs import LBFGS
from .nesterov import Nesterov
from .operations import operations
from .solver import AbstractLowerSolver

SMALL = 2**14  # numbers in x: then ten pairs of vectors are about 2 MB
# Operations of a gradient for each number of x. Measured: total variation has 30 to 40 and is 2.8 times as fast by
# Nesterov's method; eight filters of 3 x 3 have 220 and are slower by it.
CHEAP = 64


def choose(problem: AbstractProblem, theta: Vector, x: Vector) -> AbstractLowerSolver:
    """`LBFGS()` or `Nesterov()`."""
    units = 1
    if isinstance(problem, Chunked):  # what takes the time is the same, however small a unit is
        units, problem = len(problem), problem.first
        x = problem.guess(theta)
    size = optax.tree.size(x)
    constants = jax.eval_shape(problem.constants, theta)
    if units * size <= SMALL or constants.mu is None or constants.L is None:
        return LBFGS()
    return Nesterov() if operations(lower_gradient, problem, x, theta) < CHEAP * size else LBFGS()
