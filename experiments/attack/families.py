"""What is attacked: every family of draws by name, with its dtype, lower-level solver and number of draws.

Families of the same shapes, statics, dtype and solver share their compiled programs, and so many do.
"""

from functools import partial
from typing import Any

import numpy as np

import bilevel
from bilevel import LBFGS, GradientDescent, MixedPrecision, Nesterov, NewtonCG, SingleProducts
from experiments.attack.checks import Descents, Points, start_where_flat
from experiments.attack.draws import SHAPES, SUBSETS, draw_foe, draw_logistic, draw_tv, power
from experiments.attack.own import draw_cubic, draw_quartic, draw_regression, draw_squares, scaled
from experiments.attack.terms import real

F32, F64 = np.float32, np.float64
MIXED, SINGLE = MixedPrecision(Nesterov()), SingleProducts(NewtonCG())
FITTED = {"fitted": True, "condition": (0, 0.3)}


def everything() -> dict[str, Points | Descents]:
    """The families by name."""
    return {family.name: family for make in (images, logistic, squares, regressions, descents) for family in make()}


def family(name: str, draw: Any, *kinds: tuple, start: Any = None) -> list[Points]:
    """One for each (dtype, solver, count)."""
    found = []
    for dtype, solver, count in kinds:
        inner = getattr(solver, "solver", None)
        label = type(solver).__name__ + ("" if inner is None else f" of {type(inner).__name__}")
        found.append(Points(f"{name}: {dtype.__name__}, {label}", draw, dtype, solver, count, start))
    return found


def in_units(draw: Any) -> Any:
    return partial(scaled, draw=draw)


def images() -> list[Points]:
    one, two = partial(draw_tv, shape=(1, 5, 6)), partial(draw_tv, shape=(2, 4, 4))
    both = partial(one, isotropic=True, elastic=True)
    large = partial(draw_foe, boundary="reflect", filters=2, size=3, shape=(2, 4, 4))
    found = [
        *family("TV", one, (F64, Nesterov(), 700), (F32, LBFGS(), 700)),
        *family("TV isotropic", partial(two, isotropic=True), (F64, MIXED, 700), (F32, NewtonCG(), 700)),
        *family("TV elastic", partial(two, elastic=True), (F64, SINGLE, 700), (F32, Nesterov(), 700)),
        *family("TV isotropic elastic", both, (F64, LBFGS(), 700), (F32, LBFGS(), 700)),
        *family("TV in units", in_units(one), (F64, NewtonCG(), 400), (F32, LBFGS(), 400)),
        *family("FoE reflect, 3 x 3", large, (F64, MIXED, 150), (F32, NewtonCG(), 150)),
        *family("FoE in units", in_units(draw_foe), (F32, LBFGS(), 150)),
    ]
    for k, learned in enumerate(SUBSETS):
        for j, boundary in enumerate(("valid", "reflect")):
            kind = (F64, Nesterov(), 100) if (k + j) % 2 else (F32, LBFGS(), 100)
            draw = partial(draw_foe, learned=learned, boundary=boundary)
            found += family(f"FoE {boundary}: {' '.join(learned)}", draw, kind)
    return found


def logistic() -> list[Points]:
    found = []
    for k, (name, shape) in enumerate(SHAPES.items()):
        solvers = (Nesterov(), LBFGS()) if k % 2 else (LBFGS(), NewtonCG())
        kinds = [(dtype, solver, 250) for dtype, solver in zip((F64, F32), solvers, strict=True)]
        found += family(f"logistic: {name}", partial(draw_logistic, shape=shape), *kinds)
    few = partial(draw_logistic, mean=100.0, p=2, classes=2, m=60)
    for name, shape in (("one penalty", ()), ("a penalty a feature", (2, 1))):
        kinds = (F64, LBFGS(), 300), (F32, LBFGS(), 300)
        found += family(f"logistic at mean 100: {name}", partial(few, shape=shape), *kinds)
    return found + family("logistic in units", in_units(draw_logistic), (F64, SINGLE, 250), (F32, LBFGS(), 250))


def squares() -> list[Points]:
    both = (F64, Nesterov(), 400), (F32, LBFGS(), 400)
    measured = partial(draw_squares, cancel=True, offset=10.0, silent=("J",))
    # A2 x is the largest of what is added up here, so that `rounding` may be left out too
    untold = partial(draw_squares, offset=10.0, condition=(1, 3), spread=(-2, 0), silent=("L", "rounding"))
    return [
        *family("least squares", draw_squares, *both),
        *family("least squares at 1e3", partial(draw_squares, offset=1e3), *both),
        *family("least squares at 1e3, fitted", partial(draw_squares, offset=1e3, **FITTED), *both),
        *family("least squares, fitted, 96 rows", partial(draw_squares, m=96, **FITTED), *both),
        *family("least squares, J cancels", partial(draw_squares, cancel=True), *both),
        *family("least squares, J cancels, unknown", measured, (F64, MIXED, 400), (F32, NewtonCG(), 400)),
        *family("least squares, L unknown", untold, *both, start=start_where_flat),
        *family("least squares in units", in_units(partial(draw_squares, offset=3.0)), *both),
    ]


def regressions() -> list[Points]:
    found = []
    for k, loss in enumerate(("logcosh", "softplus", "huber")):
        for j, metric in enumerate((None, "Euclid", "own")):
            draw = partial(draw_regression, loss=loss, metric=metric, fit=("loss", "squares")[j % 2], reads=k == j)
            solvers = [(Nesterov(), LBFGS()), (LBFGS(), NewtonCG()), (SINGLE, Nesterov())][(k + j) % 3]
            name = {None: loss, "Euclid": f"{loss}, metric", "own": f"{loss}, constants in the metric"}[metric]
            found += family(name, draw, (F64, solvers[0], 250), (F32, solvers[1], 250))
    both, huber = ((F64, LBFGS(), 250), (F32, LBFGS(), 250)), draw_regression
    along = partial(huber, metric="own", fit="squares", aligned=True)
    silent = partial(huber, loss="logcosh", silent=("rounding", "rounding_cross", "concordance"))
    little = partial(huber, silent=("L", "L_hessian", "L_upper"))
    gradients = (F64, GradientDescent(), 250), (F32, GradientDescent(), 250)
    return [
        *found,
        *family("huber, along its metric", along, *both),
        *family("huber at 1e3", partial(huber, fit="squares", offset=1e3), (F64, MIXED, 250), (F32, LBFGS(), 250)),
        *family("huber, L unknown", partial(huber, silent=("L",)), *both),
        *family("logcosh, roundings unknown", silent, *both),
        *family("huber, tame", partial(huber, tame=True), *gradients),
        *family("huber in units", in_units(partial(huber, metric="own")), *both),
        *family("huber, much unknown", little, *both),
        *family("quartic", draw_quartic, (F64, Nesterov(), 400), (F32, LBFGS(), 400)),
        *family("cubic, attained", draw_cubic, (F64, Nesterov(), 300), start=start_attained),
    ]


def start_attained(rng, problem, x, q, flat, b, dtype) -> tuple:
    """Where `Cubic`'s bound is the whole error: x a little off, and q solves the adjoint system there."""
    mu, a = real(problem.mu), real(problem.a)
    x0 = mu / a * power(rng, -8, -4)
    return 10.0, 10.0, x0[None], q * mu / (mu + a * x0)


def descents() -> list[Descents]:
    units, box = in_units(draw_squares), (-20.0, 20.0)
    small = partial(scaled, draw=partial(draw_squares, **FITTED), a=(-1, 1), b=(-9, 0))
    tv = partial(draw_tv, isotropic=True, elastic=True, shape=(1, 5, 6))
    feature, huber = partial(draw_logistic, shape=(4, 1)), partial(draw_regression, metric="own", reads=True)
    default, maid, fixed = bilevel.quasi_newton(), bilevel.maid(), bilevel.fixed_accuracy(1e-4)
    kinds = [
        ("least squares, small g, box", small, F32, default, 60, (-9, -5), box),
        ("least squares in units, box", units, F32, default, 60, (-9, -2), box),
        ("least squares in units, box, maid", units, F32, maid, 60, (-9, -2), box),
        ("least squares", draw_squares, F64, default, 60),
        ("least squares, maid", draw_squares, F64, maid, 40),
        ("logistic, box", feature, F32, default, 60, None, (-8.0, 3.0)),
        ("logistic, box, to tol", feature, F64, default, 40, (-9, -3), (-8.0, 3.0)),
        ("TV, fixed accuracy", tv, F64, fixed, 40),
        ("TV", tv, F64, default, 40),
        ("TV, box, float32", tv, F32, default, 40, (-5, -1), (-8.0, 2.0)),
        ("huber in its metric", huber, F32, default, 60),
        ("huber in its metric, maid", huber, F64, maid, 40, (-9, -3)),
        ("quartic", draw_quartic, F64, default, 40, (-8, -2)),
        ("FoE", draw_foe, F64, default, 20, (-6, -2)),
    ]
    return [Descents(f"descents, {name}", *rest) for name, *rest in kinds]
