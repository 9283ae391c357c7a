"""Certified bilevel optimisation in JAX: learn hyperparameters by descending a hypergradient whose error is known."""

from . import _checkout as _checkout
from ._at_one_theta import hypergradient as hypergradient
from ._at_one_theta import solve_lower as solve_lower
from ._check.check import check_problem as check_problem
from ._chunked import Chunked as Chunked
from ._estimate_error import ErrorEstimate as ErrorEstimate
from ._estimate_error import estimate_error as estimate_error
from ._lower.gradient_descent import GradientDescent as GradientDescent
from ._lower.lbfgs import LBFGS as LBFGS
from ._lower.nesterov import Nesterov as Nesterov
from ._lower.newton_cg import NewtonCG as NewtonCG
from ._lower.precision import MixedPrecision as MixedPrecision
from ._lower.precision import SingleProducts as SingleProducts
from ._lower.solver import AbstractLowerSolver as AbstractLowerSolver
from ._lower.solver import Iterate as Iterate
from ._lower.solver import LowerLevel as LowerLevel
from ._nonsmooth import AbstractNonsmoothProblem as AbstractNonsmoothProblem
from ._nonsmooth import Solved as Solved
from ._objective import objective as objective
from ._outer.accuracy import AbstractAccuracy as AbstractAccuracy
from ._outer.accuracy import Adaptive as Adaptive
from ._outer.accuracy import Asked as Asked
from ._outer.accuracy import Fixed as Fixed
from ._outer.balanced import Balanced as Balanced
from ._outer.best_response import BestResponse as BestResponse
from ._outer.bfgs import QuasiNewton as QuasiNewton
from ._outer.direction import AbstractDirection as AbstractDirection
from ._outer.direction import Heading as Heading
from ._outer.direction import Steepest as Steepest
from ._outer.estimated import Estimated as Estimated
from ._outer.gradient import Adjoint as Adjoint
from ._outer.method import AbstractMethod as AbstractMethod
from ._outer.named import fixed_accuracy as fixed_accuracy
from ._outer.named import hoag as hoag
from ._outer.named import maid as maid
from ._outer.named import quasi_newton as quasi_newton
from ._outer.named import self_tuning as self_tuning
from ._outer.named import value_descent as value_descent
from ._outer.optimiser import Optax as Optax
from ._outer.penalty import Penalty as Penalty
from ._outer.predict import AbstractPredictor as AbstractPredictor
from ._outer.predict import Previous as Previous
from ._outer.predict import Secants as Secants
from ._outer.reached import Interval as Interval
from ._outer.reached import Reached as Reached
from ._outer.response import FittedResponse as FittedResponse
from ._outer.response import Responding as Responding
from ._outer.scheduled import Geometric as Geometric
from ._outer.scheduled import Polynomial as Polynomial
from ._outer.scheduled import Scheduled as Scheduled
from ._outer.search import AbstractSearch as AbstractSearch
from ._outer.search import Always as Always
from ._outer.search import CertifiedBacktracking as CertifiedBacktracking
from ._outer.search import Constant as Constant
from ._outer.search import HOAGHeuristic as HOAGHeuristic
from ._outer.search import Judgement as Judgement
from ._outer.search import Verdict as Verdict
from ._outer.slope_test import SlopeTest as SlopeTest
from ._outer.step import Method as Method
from ._outer.value_test import ValueTest as ValueTest
from ._outer.valued import Valued as Valued
from ._problem import AbstractProblem as AbstractProblem
from ._problem import Bounds as Bounds
from ._problem import Constants as Constants
from ._results import RESULTS as RESULTS
from ._results import Solution as Solution
from ._sampled import Decision as Decision
from ._sampled import SampledTest as SampledTest
from ._solve import iterate as iterate
from ._solve import solve as solve
from ._version import __version__ as __version__


def __getattr__(name):
    if name == "problems":  # loaded on first use
        from importlib import import_module

        return import_module(".problems", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
