"""z from gradients alone, certified: for lower levels whose Hessian products are dear, or not to be had.

    z = grad_theta g(x(t)) + (grad_theta h(x(t)) - grad_theta h(xhat)) / t,     x(t) = argmin over x of  h + t g

and, two-sided, the mean of that for t and -t (see `_certificate.penalty`). Its error is

    omega = bias t + amplified (eps_t + eps_0)/t + noise/t,

so for a wanted omega a third each: t = omega/(3 bias), eps = omega t/(6 amplified). An error of omega takes an eps of
the order of omega^2, where conjugate gradients take one of the order of omega: float64 is needed.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from .._certificate import penalty
from .._certificate.gradient import Hypergradient, weakest
from .._certificate.penalty import Difference, Penalised, undeclared
from .._linalg.sharding import zeros
from .._linalg.vectors import Vector
from .._lower.descend import LowerSolution, descend
from .._program import program
from .._results import RESULTS, told
from .base import Base
from .gradient import AbstractGradient, enough
from .method import ROUNDED
from .programs import BROKEN, UNLIMITED, Stop, read
from .refine import default_tolerance

FIRST, MOST = 0.01, 0.5  # of mu/L_g: the first t, while nothing is known; the largest
PART = 1 / 3  # of the omega that is wanted, for each of its parts

difference = program(penalty.difference)
room = program(penalty.room)


@program
def move(problem, solver, theta, lower, velocity, t, tau, eps, allowed):
    """x(t) to eps, from xhat + tau velocity."""
    x0 = optax.tree.add_scale(lower.x, tau, velocity)
    return descend(Penalised(problem, t), solver, theta, x0, eps, allowed, lower.curvature)


class Velocities(NamedTuple):
    """t, and (x(s) - xhat)/t for each side s, from which the next x(s) is guessed."""

    t: float
    velocities: tuple[Vector, ...]


class Penalty(AbstractGradient):
    """`Method(Balanced(), SlopeTest(), QuasiNewton(), gradient=Penalty())` takes no Hessian product.

    `two_sided`: off by O(t^2) instead of O(t), for the price of one more lower level; the bound is that of one side.
    The problem declares mu, L, L_upper, L_hessian and L_cross, for all x; ValueError otherwise.
    """

    two_sided: bool = False

    def init(self, theta, x):
        return Velocities(math.nan, (zeros(x),) * (1 + self.two_sided))

    def suits(self, problem, theta, x):
        super().suits(problem, theta, x)
        if lacking := undeclared(problem, x, theta):
            raise ValueError(f"Penalty() needs declared constants, and {type(problem).__name__} lacks {lacking}")

    def certify(self, base, method):
        if not math.isfinite(base.eps):
            raise Stop(base.point.lower.result)
        most = float(base.meter.call(room, base.meter.problem, base.theta))
        t = min(base.memory.gradient.t, MOST * most)
        t, eps, share = FIRST * most if math.isnan(t) else t, base.memory.asked.eps, PART
        while True:
            found, floor = self.measure(base, t, eps)
            if math.isnan(base.tol) and base.omega <= base.norm / 2:
                base.tol = default_tolerance(float(found.norm), base.omega, base.box)
            if base.within() and enough(base, method):
                raise Stop(RESULTS.converged)
            wanted = method.accuracy.wanted(base.memory.asked, base.reached)
            wanted = min(wanted, float(found.norm) / 2) if math.isnan(base.tol) else wanted
            if base.omega <= wanted:
                break
            if floor:
                raise Stop(RESULTS.accuracy_floor)
            t, eps = tighter(found, float(base.point.lower.floor), eps, share * wanted, MOST * most)
            share /= 2
        base.remember(asked=method.accuracy.settle(base.memory.asked, base.reached))

    def measure(self, base: Base, t: float, eps: float) -> tuple[Difference, bool]:
        """z at t with x and x(t) to eps; whether neither can be had more accurately."""
        if base.eps > ROUNDED * eps and not base.x_floor:
            base.solve(eps)
        moved = tuple(self.moved(base, k, t, eps) for k in range(1 + self.two_sided))
        problem, theta, lower, meter = base.meter.problem, base.theta, base.point.lower, base.meter
        found = read(meter.call(difference, problem, theta, lower, moved, number(base, t)))
        price = len(moved) * found.products
        meter.counts = meter.counts._replace(cross_products=meter.counts.cross_products + price)
        inexact = float(found.amplified) * (base.eps + max(float(m.error) for m in moved)) + float(found.noise)
        bias = float(found.bias)
        omega = bias * t + inexact / t
        if not math.isfinite(float(found.norm)) or math.isnan(omega):
            raise Stop(RESULTS.non_finite)
        self.keep(base, found, t, omega)
        floor = (base.x_floor or base.eps == 0) and all(told(m.result, RESULTS.accuracy_floor) for m in moved)
        return found, floor and omega <= 1.1 * 2 * math.sqrt(bias * inexact)

    def moved(self, base: Base, side: int, t: float, eps: float) -> LowerSolution:
        """x(t), or x(-t), to eps or to the floor."""
        meter, lower = base.meter, base.point.lower
        if meter.left < 1:
            raise Stop(RESULTS.max_cost_reached)
        allowed = np.asarray(int(min(meter.left, UNLIMITED)), np.int32)
        numbers = (number(base, v) for v in (-t if side else t, t, eps))
        velocity = base.memory.gradient.velocities[side]
        found = read(meter.call(move, meter.problem, meter.solver, base.theta, lower, velocity, *numbers, allowed))
        meter.add(found)
        for result in BROKEN:
            if told(found.result, result):
                raise Stop(result)
        if float(found.error) > ROUNDED * eps and not told(found.result, RESULTS.accuracy_floor):
            raise Stop(found.result)
        return found

    def keep(self, base: Base, found: Difference, t: float, omega: float) -> None:
        """What is known of z, where the loop looks for it; and from where the next x(t) are guessed."""
        lower, zero = base.point.lower, np.zeros((), base.point.value.dtype)
        base.gradient = Hypergradient(
            found.z, found.norm, jax.device_put(number(base, omega)), base.memory.q, jax.device_put(zero),
            lower.mu, lower.error, RESULTS.converged, *map(jax.device_put, np.zeros((2,), np.int32)),
            per_eps=jax.device_put(number(base, 2 / t * float(found.amplified))),
            per_delta=jax.device_put(zero), per_eps2=jax.device_put(zero), per_both=jax.device_put(zero),
            certificate=weakest(lower.certificate, "proven" if found.certain else "probable"),
        )  # fmt: skip
        base.z, base.headed = found.z, None
        base.remember(gradient=Velocities(t, found.velocities))
        base.show(base.gradient)


def tighter(found: Difference, floor: float, eps: float, part: float, most: float) -> tuple[float, float]:
    """t and eps that leave each part of omega at most `part`, but t where rounding is not more than the bias."""
    bias, amplified, noise = float(found.bias), float(found.amplified), float(found.noise)
    t = most if bias == 0 else min(most, max(part / bias, math.sqrt((2 * amplified * floor + noise) / bias)))
    return t, min(eps, part * t / (2 * amplified)) if amplified > 0 else eps


def number(base: Base, value: Any) -> np.ndarray:
    return np.asarray(value, base.point.value.dtype)
