"""Accuracy until a question about the gradient at one theta is answered, and the tolerance that is asked by default.

    omega ~ per_eps eps + per_delta delta + per_eps2 eps^2 + per_both eps delta:

eps and delta each get a share of what omega may be, and less at every repetition.

The default tolerance is a thousandth of a norm that is certified: with omega <= ||z||/2 at theta0,

    tol = 1e-3 (||z|| - omega)  <=  1e-3 ||grad f(theta0)||.
"""

import math
from collections.abc import Callable

import jax
import numpy as np

from .._certificate.gradient import Hypergradient
from .._certificate.value import Point
from .._linalg.vectors import Box, Vector
from .._results import RESULTS, told
from .method import ROUNDED
from .programs import Meter, Stop
from .reached import Per

DEFAULT_TOLERANCE = 1e-3
SHARE = 0.4  # of eps, and of delta, in omega at the first attempt; the rest is for rounding and bounds that move with x
Pair = tuple[float, float]  # of eps and delta


def default_tolerance(norm: float, omega: float, box: Box) -> float:
    """A thousandth of a certified norm; in a box, of its shortest side at most: the projected gradient, in whose norm
    the tolerance is met, is never longer than the box."""
    tol = DEFAULT_TOLERANCE * (norm - omega)
    if box is not None:
        sides = np.concatenate([np.ravel(hi - lo) for lo, hi in zip(*map(jax.tree.leaves, box), strict=True)])
        tol = min(tol, DEFAULT_TOLERANCE * float(np.min(sides, where=sides > 0, initial=math.inf)))
    return tol


def first_tolerance(meter: Meter, theta: Vector, point: Point, gradient: Hypergradient, box: Box) -> float:
    """The default tolerance, for methods that have no need of so accurate a gradient at theta0: certified once, and
    counted. 0 where rounding leaves the norm uncertain: then nothing is called converged."""
    _, gradient = refine(meter, theta, point, gradient, lambda z: float(z.norm) / 2)
    norm, omega = float(gradient.norm), float(gradient.error)
    return default_tolerance(norm, omega, box) if omega <= norm / 2 else 0.0


def refine(
    meter: Meter,
    theta: Vector,
    point: Point,
    gradient: Hypergradient,
    wanted: Callable[[Hypergradient], float],
) -> tuple[Point, Hypergradient]:
    """The point and its hypergradient, with omega <= wanted(gradient), or as accurate as rounding lets them be."""
    share = SHARE
    while float(gradient.error) > wanted(gradient):
        exact = told(gradient.result, RESULTS.accuracy_floor) or float(gradient.delta) == 0
        solved = told(point.lower.result, RESULTS.accuracy_floor) or float(point.lower.error) == 0
        delta = float(gradient.delta)
        if exact and solved:
            sharper = None if math.isfinite(float(point.lower.local.t)) else meter.sharpen(theta, point)
            if sharper is None:
                break
            point = sharper
        else:
            per = Per.of(gradient)
            reached = float(point.lower.error), float(gradient.delta)
            eps, delta = split(share * wanted(gradient), per, reached)
            share /= 2
            delta = min(delta, reached[1])
            if reached[0] > eps and not solved:
                point = solved_to(meter, theta, point, eps)
        point, gradient = meter.differentiate(theta, point, gradient.q, delta)
    return point, gradient


def split(share: float, per: Per, reached: Pair, most: Pair = (math.inf, math.inf)) -> Pair:
    """The accuracies whose parts of omega are `share` each, at most `most`. Where both were reached already, bounds
    hold on too large a ball, or have moved with x: half of each."""
    eps, _ = per.afford(share, most[0])
    delta = min(most[1], per.afford(share, min(most[0], reached[0]))[1])  # x is not made coarser again
    return (reached[0] / 2, reached[1] / 2) if eps >= reached[0] and delta >= reached[1] else (eps, delta)


def solved_to(meter: Meter, theta: Vector, point: Point, eps: float, q: Vector | None = None) -> Point:
    """The point solved to eps, or to the floor, from where it is; or Stop."""
    meter.recall(point)
    point = meter.solve(theta, point.lower.x, eps, q=q)
    if float(point.lower.error) > ROUNDED * eps and not told(point.lower.result, RESULTS.accuracy_floor):
        raise Stop(point.lower.result)
    return point
