"""L1 penalties on folds, then weights on all rows: `_learn`'s three steps, where nothing but values is certified.

1. Along a grid of penalties, from the largest that leaves a feature down to a thousandth, each solve starts from the
   one before; elastic net has such a path for each of three shares of the L1 penalty.
2. Descent from the best of them on certified values: it ends where no step that was tried lowers the value by more.
3. The weights of all rows, to the accuracy that float64 has.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._outer.named import value_descent
from .._program import program
from .._solve import solve
from ..problems.lasso import ElasticNet, Lasso
from ._learn import DECIMALS, Learnt
from ._padding import Table, padded

GRID, LEAST = 40, 1e-3  # penalties of a path; its last, relative to its first
SHARES = (0.1, 0.5, 0.9)  # of the L1 penalty in elastic net's two
COST = 20_000  # of a solve, at most


def learn_l1(
    make: Callable[..., Lasso | ElasticNet], table: Table, sharing: str | np.ndarray, tol: float, max_steps: int,
    rescale: bool,
) -> Learnt:  # fmt: skip
    """`sharing`: "one", "feature" or groups; penalties always count against the mean of the loss."""
    p = table.A.shape[1]
    table = padded(table)
    options = dict(intercept=True)
    if not isinstance(sharing, str):
        options["penalties"] = np.pad(sharing, (0, table.A.shape[1] - p))
    problem = make(table.A, table.y, folds=table.splits, weights=table.weights, **options)
    thetas, box = _grid(problem, sharing)
    values, xs = jax.device_get(_path(problem, jnp.asarray(thetas)))
    best = int(np.nanargmin(values))
    goal = tol * (values[best] + 1e-6 * float(problem.valid.unspent)) + 1e-300
    solution = solve(
        problem, thetas[best], value_descent(goal), max_steps=max_steps, bounds=box, x0=xs[best], progress=False
    )  # fmt: skip
    theta, A, y, w = np.round(solution.theta, DECIMALS), table.A, table.y, table.weights
    whole = make(A, y, A, y, weights=w, weights_valid=w, **options)
    coef, intercept = jax.device_get(_weights(whole, jnp.asarray(theta), jnp.mean(solution.x, axis=0)))
    theta = theta[:p] if theta.shape == (table.A.shape[1], 1) else theta
    return Learnt(coef[:p], intercept, theta, 1.0, solution)


def _grid(problem, sharing):
    """Log penalties (GRID, ...) and their box."""
    largest = float(problem.largest)
    top = math.log(largest if largest > 0 else 1.0)
    path = np.linspace(top, top + math.log(LEAST), GRID)
    if isinstance(problem, ElasticNet):
        # in scikit-learn's words alpha = l + rho begins where l alone leaves no feature
        each = [np.stack([path, path + math.log((1 - share) / share)], axis=1) for share in SHARES]
        return np.concatenate(each), (top + math.log(LEAST) - 5, top + 5)
    features = len(problem.train.A.T)
    shape = {"one": (), "feature": (features, 1)}.get(sharing) if isinstance(sharing, str) else (sharing.max() + 1,)
    return np.stack([np.full(shape, v) for v in path]), (float(path[-1]), float(path[0]))


@program
def _path(problem: Lasso | ElasticNet, thetas: Float[Array, "grid ..."]) -> tuple[Float[Array, " grid"], Array]:
    """g(x) and x for each theta, from the one before, to a ten-thousandth of the size of x."""
    eps = 1e-4 * jnp.sqrt(problem.train.unspent / jnp.maximum(problem.train.norm, 1e-300))

    def step(x, theta):
        x = problem.minimise(theta, x, None, eps, COST).x
        return x, (problem.upper(x, theta), x)

    return jax.lax.scan(step, problem.guess(thetas[0]), thetas)[1]


@program
def _weights(problem: Lasso | ElasticNet, theta: Array, x: Array) -> tuple[Array, Array]:
    return problem.coefficients(problem.minimise(theta, x, None, jnp.zeros((), x.dtype), COST).x)
