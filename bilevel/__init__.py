"""Certified bilevel optimisation in JAX: learn hyperparameters by descending a hypergradient whose error is known."""

from .accuracy import Adaptive as Adaptive
from .accuracy import Fixed as Fixed
from .accuracy import Geometric as Geometric
from .accuracy import Polynomial as Polynomial
from .accuracy import Scheduled as Scheduled
from .direction import SteepestDescent as SteepestDescent
from .linesearch import CertifiedBacktracking as CertifiedBacktracking
from .linesearch import Constant as Constant
from .linesearch import HOAGHeuristic as HOAGHeuristic
from .lower import LBFGS as LBFGS
from .lower import GradientDescent as GradientDescent
from .lower import Nesterov as Nesterov
from .lower import NewtonCG as NewtonCG
from .methods import Method as Method
from .methods import fixed_accuracy as fixed_accuracy
from .methods import hoag as hoag
from .methods import maid as maid
from .problem import AbstractProblem as AbstractProblem
from .problem import Bounds as Bounds
from .problem import Constants as Constants
from .results import RESULTS as RESULTS
from .results import Solution as Solution
from .solve import hypergradient as hypergradient
from .solve import iterate as iterate
from .solve import solve as solve
from .solve import solve_lower as solve_lower
