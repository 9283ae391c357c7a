"""Penalties on folds, then weights on all rows.

1. One penalty for all weights, by the cross-validated loss on a grid: its best is where the descent starts, so what is
   learnt is never worse on the folds than the grid.
2. Descent of the cross-validated loss in all log penalties, certified (`solve`), in a box around the grid; for classes
   several penalties have a smaller one, which holds one penalty's best.
3. The weights of all rows at these penalties, an intercept held by next to nothing.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._linalg.norms import dual_norm, norm
from .._lower.descend import descend
from .._lower.newton_cg import NewtonCG
from .._outer.named import quasi_newton
from .._problem import lower_gradient
from .._program import program
from .._results import RESULTS, Solution
from .._solve import solve
from ..problems.families import Binomial, Gaussian, Multinomial
from ..problems.linear_model import LinearModel
from ..problems.sparse import is_sparse
from ._padding import Table, padded

GRID = 16  # penalties, from what leaves nearly nothing of the weights to what leaves the least column nearly free
FINER = 2  # grids of as many points, each between the neighbours of the last one's best
WIDEST, FREE = 10.0, 1e-6  # times the largest eigenvalue, and a column's mean square
SEPARATED = 1e-4  # the same but for least squares: rows left out that are all told apart want no penalty whatever
SEVERAL = 1e-2  # in place of it for several penalties, which tell rows apart that one cannot: `make floors`
HELD = 1e-8  # of what holds an intercept, at the end
PRODUCTS = 2000  # with A, for the last step
DECIMALS = 3  # of log penalties: finer than `tol` tells; one problem said by weights or by repeats then has one end


class Learnt(NamedTuple):
    """`coef` (p, columns) and `intercept` (columns,); `log_penalties`, theta without what was padded, of the mean loss
    over `mass`, the mean over folds of the sum of the weights learnt from; `missed`: the last step's gradient, as a
    part of that at zero."""

    coef: np.ndarray
    intercept: np.ndarray
    log_penalties: np.ndarray
    mass: float
    solution: Solution
    missed: float = 0.0


def learn(
    make: Callable[..., LinearModel], table: Table, sharing: str | np.ndarray, tol: float, max_steps: int, rescale: bool
) -> Learnt:
    """All three steps. `make`: the problem's class; `sharing`: "one", "class", "feature", "weight", or groups (p,);
    `rescale`: whether penalties count against the sum of the loss, not its mean, as the last step has more rows."""
    p = table.A.shape[1]
    table = padded(table)
    groups = None if isinstance(sharing, str) else np.pad(sharing, (0, table.A.shape[1] - p))
    problem = make(table.A, table.y, folds=table.splits, weights=table.weights, intercept=True, penalties=groups)
    lowest, highest = _range(problem, p)
    grid = np.linspace(highest, lowest, GRID)
    shape = _shape(sharing, problem, groups)
    best, values, xs = _best(problem, grid, shape)
    # a gradient within tol of the value, or, where that vanishes, of a millionth of what it is without features
    goal = tol * (values[best] + 1e-6 * float(problem.valid.unspent)) + 1e-300
    several = not (isinstance(sharing, str) and sharing == "one")
    if several and isinstance(problem.family, Binomial | Multinomial):
        lowest = min(lowest + math.log(SEVERAL / SEPARATED), grid[min(best + 1, GRID - 1)])
    box = lowest, highest
    method = quasi_newton(solver=NewtonCG())
    options = dict(tol=goal, max_steps=max_steps, bounds=box, progress=False)
    solution = solve(problem, np.full(shape, grid[best]), method, x0=xs[best], **options)
    if solution.result == RESULTS.accuracy_floor and not several:
        for _ in range(FINER):  # values are told where the sign of the gradient is not
            grid = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)], GRID)
            best, values, xs = _best(problem, grid, shape)
        finer = solve(problem, np.full(shape, grid[best]), method, x0=xs[best], **options)
        solution = finer if finer.value < solution.value else solution
    classes = isinstance(problem.family, Multinomial)
    del problem  # its features, before those of all rows
    mass = np.mean([table.weights[rows].sum() for rows, _ in table.splits])
    shrink = mass / table.weights.sum() if rescale else 1.0
    theta = np.round(solution.theta, DECIMALS)
    coef, intercept, missed = _refit(make, table, groups, theta + math.log(shrink), np.mean(solution.x, axis=0))
    if classes:  # no loss knows their mean, and so little holds it that rounding moves it
        intercept = intercept - np.mean(intercept)
    if shape[:1] == (table.A.shape[1],):
        theta = theta[:p]
    return Learnt(coef[:p], intercept, theta, mass, solution, float(missed))


def _best(problem, grid, shape) -> tuple[int, np.ndarray, np.ndarray]:
    """Where on the grid g is least; g and x on all of it."""
    values, found, xs = jax.device_get(_path(problem, jnp.asarray(np.stack([np.full(shape, v) for v in grid]))))
    values = np.where(np.isfinite(values), values, np.inf)
    if np.any(found & np.isfinite(values)):  # what a solve that ended early says may be far from f
        values = np.where(found, values, np.inf)
    best = int(np.argmin(values))
    if not math.isfinite(values[best]):
        raise ValueError("the loss is not finite for any penalty: scale the features")
    return best, values, xs


def _shape(sharing, problem, groups):
    if groups is not None:
        return (int(groups.max()) + 1,)
    features, columns = problem.penalties.features, problem.penalties.columns
    return {"one": (), "class": (1, columns), "feature": (features, 1), "weight": (features, columns)}[sharing]


def _range(problem, p):
    """The least and the largest log penalty worth a look, by the features' mean squares in the last step's units."""
    rows = problem.train
    squares = np.asarray(rows.mean_squares())[:p]
    squares = squares[squares > 1e-12 * squares.max()]
    curvature, top = float(rows.curvature), float(rows.norm)
    if not len(squares):  # constant features
        return -1.0, 1.0
    least = min(top, math.exp(np.mean(np.log(squares))))
    free = FREE if isinstance(problem.family, Gaussian) else SEPARATED
    return math.log(free * curvature * least), math.log(WIDEST * curvature * top)


@program
def _path(
    problem: LinearModel, thetas: Float[Array, "grid ..."]
) -> tuple[Float[Array, " grid"], Bool[Array, " grid"], Array]:
    """g(x), and x, for each theta, from the one before, and whether its gradient is 1e-5 of that at zero."""

    def step(x, theta):
        constants = problem.constants(theta)
        first = dual_norm(lower_gradient(problem, problem.guess(theta), theta), constants.metric)
        eps = 1e-5 * first / constants.mu
        solved = descend(problem, NewtonCG(), theta, x, eps, jnp.asarray(300))
        x = jnp.where(jnp.isfinite(solved.error), solved.x, problem.guess(theta))
        return x, (problem.upper(x, theta), solved.error <= eps, x)

    return jax.lax.scan(step, problem.guess(thetas[0]), thetas)[1]


@program
def _weights(problem: LinearModel, theta: Array, x: Array) -> tuple[Array, Array, Array]:
    """The weights at theta to the accuracy that the dtype has, or that so many products reach; `Learnt.missed`."""
    solved = descend(problem, NewtonCG(), theta, x, jnp.zeros((), x.dtype), jnp.asarray(PRODUCTS))
    first = norm(lower_gradient(problem, problem.guess(theta), theta))
    missed = norm(solved.rho) / jnp.where(first > 0, first, 1)
    return *problem.coefficients(solved.x), missed


def _refit(make, table, groups, theta, x) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    A, y, w, _ = table
    few = A if is_sparse(A) else A[:1]  # nobody asks for the loss of rows left out
    problem = make(A, y, few, y[: few.shape[0]], weights=w, intercept=True, penalties=groups)
    if problem.held is not None:
        problem = eqx.tree_at(lambda problem: problem.held, problem, HELD * problem.held)
    return jax.device_get(_weights(problem, jnp.asarray(theta), jnp.asarray(x)))
