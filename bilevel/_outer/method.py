"""What a method is: a start and one outer step. `State` is what the next step needs, `Info` what a person needs."""

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx

from .._certificate.value import Point
from .._linalg.vectors import Box, Vector
from .._problem import AbstractProblem
from .._results import RESULTS
from .programs import Counts

ROUNDED = 1 + 1e-6  # eps is rounded to the dtype on its way into a solve


class Memory(NamedTuple):
    """What the next step starts from, beside theta and its point: the adjoint q, and what each part remembers.

    `asked`: the accuracies. `work`: the cost of solving at theta. `within`: whether the last theta was within the
    default tolerance but for one more look.
    """

    q: Vector
    asked: Any
    direction: Any
    search: Any
    gradient: Any
    guesses: Any
    work: int = 0
    within: bool = False


class State(eqx.Module):
    """theta with its solved lower level `point`, the meter's readings, and what the method remembers in `memory`.

    `known` are the readings from when theta was accepted; `tol` is nan until a gradient has set it.
    """

    theta: Vector
    point: Point
    memory: Any
    tol: float
    steps: int
    counts: Counts
    seconds: float
    compile_seconds: float
    known: tuple[Counts, float]


class Info(NamedTuple):
    """theta_k, its numbers, and how step k ended. `result` is None while the run goes on.

    `eps`, `delta`: the accuracies reached; `step`: the alpha accepted (nan if none); `counts`, `seconds`: the meter
    when these numbers became known; `certificate`: "proven", "probable", "estimated" or, with no gradient, "none".
    `decrease`: what may be had from here by the method's model of f, nan where it has none or was not asked.
    """

    theta: Vector
    steps: int
    value: float
    value_error: float
    gradient_norm: float
    gradient_error: float
    eps: float
    delta: float
    step: float
    counts: Counts
    seconds: float
    certificate: str
    result: RESULTS | None
    decrease: float = math.nan


class AbstractMethod(eqx.Module):
    """`Method` is the one that the package has; `maid()`, `hoag(...)`, `quasi_newton()` and others compose it."""

    def settle(self, problem: AbstractProblem, theta0: Vector, x0: Vector) -> "AbstractMethod":
        """The method with what it leaves open chosen for the problem; what runs, and what a checkpoint belongs to."""
        return self

    @abc.abstractmethod
    def init(self, problem: AbstractProblem, theta0: Vector, x0: Vector, max_cost: float = math.inf) -> State:
        """The state before the first step: x0 with its certified error, and what the method remembers."""

    @abc.abstractmethod
    def step(
        self,
        problem: AbstractProblem,
        state: State,
        *,
        tol: float | None = None,
        box: Box = None,
        max_cost: float = math.inf,
        last: bool = False,
    ) -> tuple[State, Info]:
        """One outer step from theta_k. theta changes if and only if a trial was accepted; else `info.result` says why
        not. `last`: certify theta_k and stop there."""
