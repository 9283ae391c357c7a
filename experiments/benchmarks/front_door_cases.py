"""Problems as people bring them, each with its objective F written a second time (front_door_objectives.py).

What a run ends with is compared with F there, and with the best that SciPy's L-BFGS-B finds over F from the same theta0
(where F has many valleys, from where the run ended).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets
from sklearn.preprocessing import scale

import bilevel
from bilevel import problems
from bilevel.problems import data
from bilevel.problems.quadratic import uniform_data
from experiments.benchmarks.front_door_objectives import (
    Objective,
    QuadraticObjective,
    RidgeObjective,
    SoftmaxObjective,
    TVObjective,
)

MAX_COST = 60_000


class Ridge(bilevel.AbstractProblem):
    """README's problem of one's own: mu is declared, and nothing else."""

    A: jax.Array
    b: jax.Array
    A_valid: jax.Array
    b_valid: jax.Array

    def lower(self, x, theta):
        return jnp.sum((self.A @ x - self.b) ** 2) / 2 + jnp.sum(jnp.exp(theta) * x**2) / 2

    def upper(self, x, theta):
        return jnp.sum((self.A_valid @ x - self.b_valid) ** 2) / 2

    def guess(self, theta):
        return jnp.zeros_like(theta)

    def constants(self, theta):
        return bilevel.Constants(mu=jnp.min(jnp.exp(theta)))


def ridge() -> Ridge:
    """README's data."""
    A, x = np.random.default_rng(0).normal(size=(80, 6)), np.array([3.0, 2, 1, 0, 0, 0])
    b = A @ x + np.random.default_rng(1).normal(size=80)
    return Ridge(A[:40], b[:40], A[40:], b[40:])


def table(load: Callable, prepare: Callable, rows: int, dtype: Any = np.float64) -> problems.LogisticRegression:
    """One of scikit-learn's tables: `rows` to train, as many (or what is left) to validate."""
    features, labels = load(return_X_y=True)
    order, features = np.random.default_rng(0).permutation(len(labels)), prepare(features).astype(dtype)
    train, valid = order[:rows], order[rows : 2 * rows]
    return problems.LogisticRegression(features[train], labels[train], features[valid], labels[valid])


def photographs() -> problems.TotalVariation:
    """README's problem, made small for the sparse factors."""
    train, _ = data.denoising_set("photographs", sigma=0.1, size=24, held_out=6)
    return problems.TotalVariation(train.clean, train.noisy)


class Case(NamedTuple):
    """`problem()` from `theta0`, perhaps within `bounds`; F is `objective(problem)`.

    `converges`: it has to. `valleys`: F has so many that SciPy's answer depends on the last digit of theta0.
    """

    problem: Callable[[], bilevel.AbstractProblem]
    objective: Callable[[Any], Objective]
    theta0: np.ndarray
    converges: bool
    bounds: tuple[float, float] | None = None
    valleys: bool = False


def _cases() -> dict[str, Case]:
    one, each = np.array(-3.0), lambda features: np.full((features, 1), -3.0)
    logistic = partial(Case, objective=SoftmaxObjective)
    made = {
        f"ridge from {start:g}": Case(ridge, RidgeObjective, np.full(6, start), True, (-6.0, 6.0))
        for start in (0.0, -4.0, 3.0)
    }
    for seed in range(5):
        made[f"quadratic, seed {seed}"] = Case(partial(uniform_data, seed), QuadraticObjective, np.ones(10), True)
    for start in ((-5.0, -5.0), (-2.0, -6.0), (-3.0, -3.0)):
        made["TV from ({:g}, {:g})".format(*start)] = Case(photographs, TVObjective, np.array(start), True)
    # These need not converge, "not there" is right too: float32; raw features, up to 1e3, so that the best penalties,
    # e^-11, leave little of a certificate; and a penalty for each feature, where the infimum lies at infinity.
    for how, prepare in (("scaled", scale), ("raw", np.asarray)):
        wine = partial(table, datasets.load_wine, prepare, 89)
        made[f"wine, {how}, 1"] = logistic(wine, theta0=one, converges=how == "scaled")
        # theta0 moved by 1e-9 of itself: 0.0018 becomes 0.017 (scaled); another box: 0.0725 becomes 0.0682 (raw)
        made[f"wine, {how}, 13"] = logistic(wine, theta0=each(13), converges=False, valleys=True)
        for dtype in (np.float64, np.float32):
            cancer = partial(table, datasets.load_breast_cancer, prepare, 284, dtype)
            name = f"breast cancer, {how}, {dtype.__name__}"
            made[f"{name}, 1"] = logistic(cancer, theta0=one, converges=how == "scaled" and dtype is np.float64)
            made[f"{name}, 30"] = logistic(cancer, theta0=each(30), converges=False)
    digits = partial(table, datasets.load_digits, lambda features: features / 16, 600)
    made["digits, 1"] = logistic(digits, theta0=one, converges=True)
    return made


CASES = _cases()


class Ended(NamedTuple):
    """What a run ended with, and the truth: F at theta0 and at theta, SciPy's best, ||grad F(theta0)||, and at theta
    ||P(theta - grad F) - theta||, P on the bounds."""

    solution: bilevel.Solution
    before: float
    after: float
    best: float
    first: float
    last: float

    @property
    def gap(self) -> float:
        """How far the value reported lies above SciPy's best, of the best."""
        return (self.solution.value - self.best) / abs(self.best)


def run(case: Case, method: Any = None, max_cost: int = MAX_COST) -> Ended:
    """`bilevel.solve` as a person calls it, without `tol`, and the truth beside it."""
    problem = case.problem()
    F = case.objective(problem)
    solution = bilevel.solve(
        problem, case.theta0, method, bounds=case.bounds, max_cost=max_cost, max_steps=10**6, progress=False
    )
    theta = np.asarray(solution.theta, np.float64)
    (before, first), (after, last) = F(case.theta0), F(theta)
    best = F.best(theta if case.valleys else case.theta0, case.bounds)
    return Ended(solution, before, after, best, np.linalg.norm(first), projected(theta, last, case.bounds))


def projected(theta: np.ndarray, gradient: np.ndarray, bounds: tuple | None) -> float:
    """||P(theta - gradient) - theta||, without the rounding of theta - gradient."""
    lo, hi = (-np.inf, np.inf) if bounds is None else bounds
    return float(np.linalg.norm(np.clip(-gradient, lo - theta, hi - theta)))
