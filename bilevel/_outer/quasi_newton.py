"""Certified quasi-Newton descent: MAID's certificates, better directions, and accuracy where a decision needs it.

    certify:  solve the lower level to eps and the adjoint to delta until  omega <= C ||z||.
    direct:   d = -B z, B by L-BFGS from accepted points; -z where <z, d> is not clearly negative.
    search:   theta+ = P(theta + alpha d). The two value intervals are refined until they decide between
                  upper(theta+) - lower(theta) <= lambda <z, theta+ - theta>       accept: f itself has decreased
                  lower(theta+) - upper(theta) >  lambda <z, theta+ - theta>       shrink alpha

Both intervals are corrected by the base's adjoint q, |f - (g(x) - <q, rho>)| <= delta eps + (L_g + M_H) eps^2 / 2, so
they are of second order in eps at the base and nearly so close to it. A trial is solved from a guess by the affine
response through the points solved before, and only as accurately as the expected decrease asks. What the solver has
learnt of H, L-BFGS's pairs, starts every next solve and preconditions the adjoint.

||grad f|| <= (1 + C) ||z|| at every step, so z -> 0 is stationarity. Where no step along z's descent directions is
accepted, C falls to below one: then -z is a certified direction of descent, and short enough steps along it are
accepted, as in MAID. C is above one because the bound omega is 25 to 800 times the error that it bounds.

Certificates as in arXiv 2308.10098; the value's correction is the adjoint-weighted residual of goal-oriented error
estimation (Becker, Rannacher 2001), with its remainder bounded.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from .._certificate.gradient import Hypergradient
from .._certificate.value import Point
from .._linalg import lbfgs_pairs as secants
from .._linalg.norms import norm
from .._linalg.vectors import Vector
from .._lower.lbfgs import LBFGS
from .._lower.solver import AbstractLowerSolver
from .._program import program
from .._results import RESULTS
from .direction import keep_certifiable, projected_step, quasi_newton_direction, stationarity
from .method import ROUNDED, AbstractMethod, Info, State
from .predict import AbstractPredictor, Secants, observe
from .programs import Meter, Stop
from .refine import DEFAULT_TOLERANCE, default_tolerance, solved_to

# y = z+ - z is meaningless where its error could be all of it; omega is some hundred times the error of z.
MEANINGLESS = 0.01


class Memory(NamedTuple):
    """The adjoint q; the accuracies to ask for next; the pairs, and the last (theta, z, omega), where the next one
    starts; what the predictor knows; `length` of the last step; `width`, a trial's interval over its eps; `work`, the
    cost of the last accepted solve; `grow`, the first alpha to try; `quiet`, whether the last theta was within the
    default tolerance but for one more look."""

    q: Vector
    eps: float
    delta: float
    pairs: secants.Pairs
    last: tuple[Vector, Vector, float]
    guesses: Any
    length: float
    width: float
    work: int
    grow: float
    quiet: bool


class QuasiNewton(AbstractMethod):
    """See the equations above; `quasi_newton()` makes it.

    **Attributes**

    - `eps`, `delta`, `first`: the first accuracies and step, chosen from the problem where left out.
    - `C`: omega <= C ||z|| is asked of z. - `decrease`: lambda. - `pairs`: how many L-BFGS keeps.
    - `solver`: of the lower level. - `predictor`: of a trial's x.
    """

    eps: float | None = None
    delta: float | None = None
    first: float | None = None
    C: float = 3.0
    decrease: float = 1e-4
    pairs: int = eqx.field(static=True, default=100)
    solver: AbstractLowerSolver = LBFGS()
    predictor: AbstractPredictor = Secants()

    def __check_init__(self):
        if self.predictor.cost > 0:
            raise ValueError(
                f"{self.predictor!r} is fitted at a cost, for which this method has no place: use Secants() or "
                "Previous(), or bilevel.maid(predictor=...)"
            )

    def init(self, problem, theta0, x0, max_cost=math.inf):
        meter = Meter(problem, self.solver, max_cost)
        point = meter.solve(theta0, x0, math.inf)
        error, norm_g_x = float(point.lower.error), float(point.norm_g_x)
        # a tenth of the starting error; a start that is solved says nothing, then a value known to a thousandth will do
        start = max(error / 10, 1e-3 * abs(float(point.value)) / norm_g_x if norm_g_x > 0 else 0.0) or 1.0
        eps = start if self.eps is None else self.eps
        delta = (norm_g_x / 10 or 1.0) if self.delta is None else self.delta
        zeros = optax.tree.zeros_like(theta0)
        memory = Memory(
            optax.tree.zeros_like(x0), eps, delta, secants.empty(theta0, self.pairs),
            (zeros, zeros, math.inf), self.predictor.init(theta0, x0), math.nan, norm_g_x, meter.counts.cost, 1.0,
            False,
        )  # fmt: skip
        known = (meter.counts, meter.seconds)
        return State(theta0, point, memory, math.nan, 0, meter.counts, meter.seconds, meter.compile_seconds, known)

    def step(self, problem, state, *, tol=None, box=None, max_cost=math.inf, last=False):
        meter = Meter(problem, self.solver, max_cost, state)
        run = _Step(self, meter, state, box, tol)
        accepted = result = None
        C = self.C
        try:
            while accepted is None:
                run.certify(C)
                if last:
                    raise Stop(RESULTS.max_steps_reached)
                accepted = run.search()
                if accepted is None:
                    if C < 1:  # -z itself is certified to descend, and no step along it could be shown to
                        raise Stop(RESULTS.accuracy_floor if run.judged else RESULTS.no_decrease)
                    C = 0.5
                    run.forget()
        except Stop as stop:
            result = stop.result
            if result == RESULTS.accuracy_floor and run.kept < math.inf:
                # within the tolerance by B, and rounding hides whatever the flattest direction may leave
                result, run.decrease = RESULTS.converged, run.kept
        return run.finish(accepted, result)


class _Step:
    """One outer step: the base point, which gets more accurate as decisions need it."""

    def __init__(self, method: QuasiNewton, meter: Meter, state: State, box: Any, tol: float | None):
        self.method, self.meter, self.state, self.box = method, meter, state, box
        self.memory: Memory = state.memory
        self.theta, self.point = state.theta, state.point
        self.tol = state.tol if tol is None else tol
        self.gradient: Hypergradient | None = None
        self.norm, self.omega, self.delta, self.certificate = math.nan, math.inf, math.inf, "none"
        self.by_default, self.whole, self.decrease = tol is None, math.nan, math.nan
        self.promised = self.kept = math.inf
        self.lower_floor = self.adjoint_floor = self.judged = self.turned = self.sharpened = self.within = False
        self.known, self.alpha = state.known, math.nan

    def certify(self, C: float) -> None:
        """z with omega <= C ||z||, or Stop."""
        eps, delta, share = self.memory.eps, self.memory.delta, 0.4
        if not math.isfinite(float(self.point.lower.error)):
            raise Stop(self.point.lower.result)
        begun = self.meter.counts.cost
        while True:
            if float(self.point.lower.error) > ROUNDED * eps and not self.lower_floor:
                self.refine(eps)
                self.gradient = None
            if self.gradient is None or (float(self.gradient.delta) > ROUNDED * delta and not self.adjoint_floor):
                self.differentiate(delta)
            if math.isnan(self.tol) and self.omega <= self.whole / 2:
                self.tol = default_tolerance(self.whole, self.omega, self.box)
            small = self.norm + self.omega <= self.tol or self.norm + self.omega == 0
            if small and self.exhausted():
                raise Stop(RESULTS.converged)
            # close to a stationary point all that is missing is the certificate
            near = self.norm < 0.9 * self.tol and not small
            wanted = self.tol - self.norm if near else C * self.norm
            if math.isnan(self.tol):
                wanted = min(wanted, self.whole / 2) if self.norm > 0 else self.whole / 2
            if self.omega <= wanted:
                break
            floor = (self.lower_floor or float(self.point.lower.error) == 0) and (
                self.adjoint_floor or float(self.gradient.delta) == 0
            )
            if self.sharpen(math.inf if floor else (self.meter.counts.cost - begun) / 3):
                continue
            if floor and math.isnan(self.tol) and self.omega <= C * self.norm:
                self.tol = 0.0  # theta0's norm cannot be certified: nothing will be called converged
                break
            if floor:
                raise Stop(RESULTS.accuracy_floor)
            # omega ~ per_eps eps + per_delta delta: each gets its share of what is wanted, and less at every repetition
            eps, delta = (
                min(eps, self.affords("eps", share * wanted)),
                min(delta, self.affords("delta", share * wanted)),
            )
            share /= 2
            reached = float(self.point.lower.error), float(self.gradient.delta)
            if eps >= reached[0] and delta >= reached[1]:  # what is too large is of second order
                eps, delta = reached[0] / 2, reached[1] / 2
        # what the next point is asked for first: the same, in the hope of a norm half as large
        wanted = 0.2 * self.method.C * self.norm
        self.memory = self.memory._replace(eps=self.affords("eps", wanted), delta=self.affords("delta", wanted))

    def differentiate(self, delta: float) -> None:
        """z, omega and what they tell."""
        self.point, self.gradient = self.meter.differentiate(self.theta, self.point, self.memory.q, delta)
        self.adjoint_floor = bool(self.gradient.result == RESULTS.accuracy_floor)
        self.memory = self.memory._replace(q=self.gradient.q)
        self.omega, self.whole = float(self.gradient.error), float(self.gradient.norm)
        self.delta, self.certificate = float(self.gradient.delta), self.gradient.certificate
        self.norm = self.meter.stationarity(self.theta, self.gradient, self.box)
        self.known = (self.meter.counts, self.meter.seconds)

    def exhausted(self) -> bool:
        """Whether a gradient within the tolerance ends the run: it does where the tolerance was asked for. The default
        one wants the decrease that may be left to be within a thousandth of the value, too, at two points running: on
        an ill-conditioned f the gradient falls by a thousand long before f does."""
        self.correct()
        if not self.by_default or self.norm + self.omega == 0:
            return True
        self.direction()
        enough = DEFAULT_TOLERANCE * abs(float(self.point.value))
        self.within = self.decrease <= enough
        self.kept = min(self.kept, self.promised if self.promised <= enough else math.inf)
        return self.within and self.memory.quiet

    def sharpen(self, most: float) -> bool:
        """Bounds from H(x) itself, once, if they cost at most `most`: a third of what was spent in vain, or, where
        nothing else is left, anything."""
        point = None if self.sharpened else self.meter.sharpen(self.theta, self.point, most)
        if point is not None:
            self.point, self.gradient, self.sharpened = point, None, True
        return point is not None

    def affords(self, name: str, share: float) -> float:
        """The eps, or delta, whose part of omega is `share`."""
        per = float(getattr(self.gradient, f"per_{name}"))
        return share / per if per > 0 else math.inf

    def correct(self) -> None:
        """The base's interval corrected by its own adjoint."""
        self.point = self.meter.correct(self.theta, self.point, self.memory.q)

    def refine(self, eps: float, q: Vector | None = None) -> None:
        """The base to eps."""
        self.point = solved_to(self.meter, self.theta, self.point, eps, q)
        self.lower_floor = float(self.point.lower.error) > ROUNDED * eps

    def direction(self) -> tuple[Vector, float]:
        """d and the first alpha, 0 where z vanishes."""
        theta, z, memory = self.theta, self.gradient.gradient, self.memory
        noise = self.number(MEANINGLESS * (self.omega + memory.last[2]))
        pairs, d, *told = self.meter.call(direct, memory.pairs, theta, z, *memory.last[:2], noise, self.box)
        size, used, learnt, slope, flattest = (v.item() for v in jax.device_get(told))
        if not self.turned:
            # no curvature seen: the step was too short for it, or f is concave along it
            self.memory = memory._replace(grow=1.0 if learnt else 2 * memory.grow)
        # what B promises, or as if all of z lay along the flattest direction seen: B knows little of those it has not
        self.promised = -slope / 2 if used else math.inf if size > 0 else 0.0
        self.turned, self.decrease = True, max(self.promised, flattest / 2)
        self.memory = self.memory._replace(pairs=pairs, last=(theta, z, self.omega))
        length = memory.length
        if not size > 0:
            return d, 0.0
        if math.isnan(length):  # a move of about one for each hyperparameter
            first = self.method.first
            return d, math.sqrt(optax.tree.size(theta)) / size if first is None else first
        if not used:
            return d, 2 * length / size
        return d, min(self.memory.grow, 10 * length / size)

    def number(self, value: float) -> Any:
        return jnp.asarray(value, self.point.value.dtype)

    def forget(self) -> None:
        """No pairs, no step length that was right: steepest descent from a step like the last."""
        self.memory = self.memory._replace(pairs=secants.empty(self.theta, self.method.pairs))

    def search(self) -> tuple[Vector, Point, int, float] | None:
        """The trial accepted, with its cost and length; None when steps and accuracies have shrunk in vain."""
        method, meter = self.method, self.meter
        self.correct()
        d, alpha = self.direction()
        if alpha == 0:
            raise Stop(RESULTS.accuracy_floor)
        predictor = method.predictor
        guesses = meter.call(observe, predictor, self.memory.guesses, self.theta, self.point.lower.x)
        self.memory = self.memory._replace(guesses=guesses)
        cap = max(250, 2 * self.memory.work)
        lower, per_eps = self.point.lower, self.gradient.per_eps
        floor, per_eps, L, mu = map(float, jax.device_get((lower.floor, per_eps, lower.L, lower.mu)))
        # log(L/mu) where rounding takes a thirtieth of what omega may be, to first order; that may lie below the base's
        wall = math.log(L / mu) + (
            math.log(method.C * self.norm / 30 / floor / per_eps) if floor * per_eps > 0 else math.inf
        )
        for attempt in range(12):
            if attempt == 4:  # the wall may be what is in the way
                wall = math.inf
            trial, x, *told = meter.call(
                propose, meter.problem, predictor, self.memory.guesses, self.theta, lower.x, self.gradient.gradient,
                d, self.number(alpha), self.number(wall), self.box,
            )  # fmt: skip
            length, slope = map(float, jax.device_get(told))
            if not length > 0 or not slope > 0:
                if wall == math.inf:
                    return None
                wall = math.inf
                continue
            spent = meter.counts.cost
            verdict, point = self.compare(trial, x, slope, cap)
            if verdict == "accept":
                self.alpha = alpha
                return trial, point, meter.counts.cost - spent, length
            if verdict == "floor":
                return None
            self.judged |= verdict != "capped"
            if verdict == "capped":
                alpha *= 0.1
                continue
            guesses = meter.call(observe, predictor, self.memory.guesses, trial, point.lower.x)
            self.memory = self.memory._replace(guesses=guesses)
            rise = float(point.value) - float(self.point.value)
            # the minimiser of the parabola through both values and the slope
            alpha *= min(max(slope / (2 * (rise + slope)) if rise + slope > 0 else 0.5, 0.1), 0.5)
        return None

    def compare(self, trial: Vector, x: Vector, slope: float, cap: float) -> tuple[str, Point]:
        """Refine the intervals of trial and base until one verdict is certain: accept, worse, capped or floor."""
        meter, q, target = self.meter, self.memory.q, -self.method.decrease * slope
        # a quarter of half the slope, which a step to a parabola's minimum gains
        eps, start = slope / 8 / self.memory.width if self.memory.width > 0 else math.inf, meter.counts.cost
        while True:
            point = meter.solve(trial, x, eps, cap - (meter.counts.cost - start), q=q)
            error = float(point.lower.error)
            floor = bool(point.lower.result == RESULTS.accuracy_floor)
            half = float(point.value_error)
            if not math.isfinite(half) or (error > ROUNDED * eps and not floor):
                return "capped", point
            if error > 0:
                self.memory = self.memory._replace(width=half / error)
            while True:
                change = float(point.value) - float(self.point.value)
                base = float(self.point.value_error)
                if change + half + base <= target:
                    return "accept", point
                if change - half - base > target:
                    return "worse", point
                gap = abs(change - target)
                if base <= max(half, gap / 4) or self.lower_floor or float(self.point.lower.error) == 0:
                    break
                self.refine(float(self.point.lower.error) * min(0.5, max(1e-3, gap / 4 / base)), q)
            if floor or error == 0:
                return "floor", point
            x, eps = point.lower.x, error * min(0.5, max(1e-3, gap / 4 / half) if half > 0 else 0.5)

    def finish(self, accepted: Any, result: RESULTS | None) -> tuple[State, Info]:
        meter, memory, point = self.meter, self.memory, self.point
        value, value_error, eps = (float(v) for v in (point.value, point.value_error, point.lower.error))
        info = Info(
            self.theta, self.state.steps, value, value_error, self.norm, self.omega, eps, self.delta, self.alpha,
            *self.known, self.certificate, result, self.decrease,
        )  # fmt: skip
        theta, steps, known = self.theta, self.state.steps, self.state.known
        if accepted is not None:
            theta, point, work, length = accepted
            memory = memory._replace(work=work, length=length, quiet=self.within)
            steps, known = steps + 1, (meter.counts, meter.seconds)
        state = State(theta, point, memory, self.tol, steps, meter.counts, meter.seconds, meter.compile_seconds, known)
        return state, info


@program
def direct(pairs, theta, z, theta_last, z_last, noise, box):
    """The pairs with the last step's, d, ||d||, whether the pairs made it, whether the last step told a positive
    curvature, <z, d>, and ||z||^2 over the least curvature <s, y> / ||s||^2 of all pairs."""
    s, y = optax.tree.sub(theta, theta_last), optax.tree.sub(z, z_last)
    y = optax.tree.where(norm(y) > noise, y, optax.tree.zeros_like(y))
    new = secants.push(pairs, s, y)
    d, size, used = quasi_newton_direction(new, theta, z, box)
    curved = jnp.diagonal(new.products)
    flattest = jnp.max(jnp.where(curved > 0, jax.vmap(norm)(new.s) ** 2 / jnp.where(curved > 0, curved, 1), 0))
    return (
        new,
        d,
        size,
        used,
        new.count > pairs.count,
        optax.tree.vdot(z, d),
        flattest * stationarity(theta, z, box) ** 2,
    )


@program
def propose(problem, predictor, guesses, theta, x, z, d, alpha, wall, box):
    """theta+, a guess of its x, ||theta+ - theta||, and <z, theta - theta+>."""
    trial, _ = projected_step(theta, d, alpha, box)
    trial = keep_certifiable(problem, trial, wall)
    if box is not None:
        trial = jax.tree.map(jnp.clip, trial, *box)
    step = optax.tree.sub(trial, theta)
    return trial, predictor.guess(guesses, theta, x, trial), norm(step), -optax.tree.vdot(z, step)
