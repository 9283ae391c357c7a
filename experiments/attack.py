"""true <= bound (1 + 16 u) + the reference's own error, in every draw: the certificates under attack.

Random draws of every problem with constants vouched for, in float32 and float64, by every lower-level solver, at
accuracies from 10 to below what the dtype has, from cold and warm starts, in units from 1e-22 to 1e6; and whole descents,
in boxes and without. The truth comes from NumPy's 80-bit floats (attack_references.py), by formulas of its own.

    x          ||x - xhat||_W   <= error             of `hypergradient`
    value      |value - f|      <= value_error       of the same
    gradient   ||z - grad f||   <= gradient_error    of the same
    corrected  |value - f|      <= value_error       of the default method, which corrects values by the adjoint
    descents   the last three at every theta_k (the gradient by its projected norm); no accepted step that raises f;
               no `converged` where ||P(theta - grad f) - theta|| > tol, or without tol > 1e-2 of its largest on the way

A bound that is NaN is violated unless the result says why; an infinite one is if the result is `converged`. What is
labelled "estimated" is counted apart.
"""

import concurrent.futures
import math
import multiprocessing
import time
import zlib
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import attack_families as families
import jax
import numpy as np
import record
import style
from attack_families import Draw, power
from attack_references import Real, Truth, norm, real, truth
from matplotlib import pyplot as plt

import bilevel
from bilevel import LBFGS, RESULTS, GradientDescent, MixedPrecision, Nesterov, NewtonCG, SingleProducts

jax.config.update("jax_enable_x64", True)

F32, F64 = np.float32, np.float64
SEED, CHUNK = 0, 50
QUANTITIES = ("x", "value", "gradient", "corrected", "rise", "converged")
OPEN = 1e30  # a tolerance that every gradient meets
PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


class Points(NamedTuple):
    """Certificates at single thetas; `start` in place of `start_anywhere`."""

    name: str
    draw: Any
    dtype: Any
    solver: Any
    count: int
    start: Any = None


class Descents(NamedTuple):
    """Whole runs; tol is 10^uniform(tol), or left out where that is None."""

    name: str
    draw: Any
    dtype: Any
    method: Any
    count: int
    tol: tuple[float, float] | None = None
    box: tuple[float, float] | None = None


class Findings:
    """What was compared, and what did not hold."""

    def __init__(self):
        self.compared: dict[str, list] = {name: [] for name in QUANTITIES}
        self.estimated: list[bool] = []
        self.results, self.violations, self.worst = Counter(), Counter(), []
        self.blunt = 0

    def compare(self, quantity, true, bound, own, u, *, result, certificate, where) -> None:
        """true <= bound (1 + 16 u) + own?"""
        true, bound, own = float(true), float(bound), float(own)
        held = true <= bound * (1 + 16 * u) + own
        if math.isnan(bound):
            held = not (result == RESULTS.converged or result == RESULTS.accuracy_floor)
        elif math.isinf(bound):
            held = not result == RESULTS.converged
        elif math.isnan(true):
            held = False
        if certificate in ("estimated", "none"):
            self.estimated.append(held)
            return
        usable = math.isfinite(true) and math.isfinite(bound)
        self.compared[quantity].append((true, bound, own) if usable else (math.nan, math.nan, math.nan))
        self.blunt += usable and own > bound / 2 and true > bound / 2
        if not held:
            self.violations[quantity] += 1
            self.worst.append((ratio(true, bound, own), quantity, where))

    def summary(self) -> dict[str, Any]:
        """Per quantity: how many, violations, the largest true/bound, percentiles of log10(bound/true)."""
        out = {}
        for name, rows in self.compared.items():
            if not rows:
                continue
            true, bound, _ = np.array(rows).T
            usable = np.isfinite(true) & (bound > 0)
            with np.errstate(divide="ignore"):
                gaps = np.log10(bound[usable]) - np.log10(np.maximum(true[usable], 1e-300 * bound[usable]))
            worst = max((ratio(*row) for row in rows if math.isfinite(row[1])), default=0.0)
            out[name] = {
                "count": len(rows), "violations": self.violations[name], "worst": float(f"{worst:.4g}"),
                "log10": [round(float(v), 3) for v in np.percentile(np.clip(gaps, -40, 40), PERCENTILES)] if usable.any() else [],
            }  # fmt: skip
        worst = sorted(self.worst, key=lambda w: -w[0] if math.isfinite(w[0]) else -math.inf)[:3]
        return {
            "quantities": out, "results": dict(self.results), "blunt": self.blunt,
            "estimated": len(self.estimated), "estimated_held": sum(self.estimated),
            "examples": [[float(f"{r:.4g}"), quantity, where] for r, quantity, where in worst],
        }  # fmt: skip


def ratio(true: float, bound: float, own: float) -> float:
    """(true - own) / bound, at least 0; infinite where the bound is not a number."""
    beyond = max(true - own, 0.0)
    return beyond / bound if bound > 0 else math.inf if beyond > 0 or math.isnan(bound) else 0.0


def flat(tree: Any) -> np.ndarray:
    """A pytree as one vector of 80-bit floats."""
    return np.concatenate([real(leaf).ravel() for leaf in jax.tree.leaves(jax.device_get(tree))])


def shaped(vector: np.ndarray, like: Any) -> Any:
    """The other way, in the dtype of `like`."""
    leaves, structure = jax.tree.flatten(like)
    parts = np.split(vector, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return structure.unflatten([p.reshape(v.shape).astype(v.dtype) for p, v in zip(parts, leaves, strict=True)])


def exactly(draws: list[Draw]) -> tuple[Truth, families.Units]:
    """xhat, f, grad f of all draws, in the problems' units."""
    reference, units = families.refer(draws)
    found = truth(reference, np.stack([flat(problem.guess(theta)) for problem, theta in draws]))
    b = units.b
    found = found._replace(
        value=found.value * b, value_error=found.value_error * b, gradient_error=found.gradient_error * b,
        gradient=found.gradient * b[:, None], q=found.q * (b / units.a)[:, None],
    )  # fmt: skip
    return found, units


def start_anywhere(rng, problem, x, q, flat, b, dtype) -> tuple:
    """eps and delta from 10 to below the floor; x0 the guess, xhat, or 1e-6 to 10 away, anyhow or where h is flat;
    q0 zero, or near qhat."""
    low = -8 if dtype == F32 else -17
    away = rng.standard_normal(x.shape) if rng.random() < 0.6 else flat
    x0 = x + rng.choice([0, power(rng, low, 1)]) * away if rng.random() < 0.7 else None
    q0 = q * (1 + rng.choice([0, power(rng, -6, 1)]) * rng.standard_normal(q.shape)) if rng.random() < 0.5 else None
    return power(rng, low, 1), power(rng, low, 1) * b, x0, q0


def attack_points(family: Points, count: int, findings: Findings) -> None:
    dtype, u = family.dtype, float(np.finfo(family.dtype).eps) / 2
    smallest, largest = (float(getattr(np.finfo(dtype), name)) for name in ("tiny", "max"))
    start = family.start or start_anywhere
    for first in range(0, count, CHUNK):
        rng = np.random.default_rng([SEED, zlib.crc32(family.name.encode()), first])
        draws = [family.draw(rng, dtype) for _ in range(min(CHUNK, count - first))]
        exact, units = exactly(draws)
        for k, (problem, theta) in enumerate(draws):
            xhat, guess = exact.x[k], problem.guess(theta)
            eps, delta, x0, q0 = start(rng, problem, xhat, exact.q[k], exact.flat[k], units.b[k], dtype)
            x0, q0 = (None if v is None else shaped(np.clip(v, -largest, largest), guess) for v in (x0, q0))
            eps, delta = (float(np.clip(v, smallest, largest)) for v in (eps, delta))
            compare = partial(findings.compare, u=u, where=first + k)
            out = bilevel.hypergradient(problem, theta, eps=eps, delta=delta, x0=x0, q0=q0, solver=family.solver)
            findings.results[message(out.result)] += 1
            if void(out.result):
                continue
            told = partial(compare, result=out.result, certificate=out.certificate)
            distance = norm(flat(out.x) - xhat, exact.W[k])
            told("x", distance, out.error, exact.x_error[k])
            told("value", abs(real(out.value) - exact.value[k]), out.value_error, exact.value_error[k])
            told("gradient", norm(flat(out.gradient) - exact.gradient[k]), out.gradient_error, exact.gradient_error[k])
            if out.result == RESULTS.converged:
                told("converged", distance, eps * (1 + 8 * u), exact.x_error[k])
            if (first + k) % 2 == 0:
                method = bilevel.quasi_newton(eps, delta, solver=family.solver)
                run = bilevel.solve(problem, theta, method, tol=OPEN, x0=x0, progress=False, max_steps=0)
                if not void(run.result):
                    label = "proven" if run.certified else "estimated"
                    told = partial(compare, result=run.result, certificate=label)
                    told("corrected", abs(Real(run.value) - exact.value[k]), run.value_error, exact.value_error[k])


def message(result: RESULTS) -> str:
    return str(RESULTS[result]).split(".")[0].split(":")[0]


def void(result: RESULTS) -> bool:
    """The result itself says that there is no certificate."""
    return bool((result == RESULTS.not_strongly_convex) | (result == RESULTS.non_finite))


def attack_descents(family: Descents, count: int, findings: Findings) -> None:
    rng = np.random.default_rng([SEED, zlib.crc32(family.name.encode())])
    u = float(np.finfo(family.dtype).eps) / 2
    for run in range(count):
        problem, theta = family.draw(rng, family.dtype)
        if family.box is not None:  # some entries start on a bound
            theta = jax.tree.map(lambda t: np.clip(t * rng.choice([1, 1, 100]), *family.box).astype(t.dtype), theta)
        tol = None if family.tol is None else power(rng, *family.tol)
        steps = bilevel.iterate(
            problem, theta, family.method, tol=tol, max_steps=20, max_cost=20_000, bounds=family.box
        )
        infos = [info for _, info in steps]
        exact, _ = exactly([(problem, info.theta) for info in infos])
        lo, hi = family.box or (-np.inf, np.inf)
        seen = Real(0)
        for k, info in enumerate(infos):
            told = partial(findings.compare, u=u, result=info.result, where=[run, k])
            told = partial(told, certificate=info.certificate)
            own, gradient = exact.gradient_error[k], exact.gradient[k]
            steepest = norm(np.clip(-gradient, lo - flat(info.theta), hi - flat(info.theta)))
            seen = max(seen, norm(gradient))
            result = info.result
            findings.results["a step" if result is None else message(result)] += 1
            if result is not None and void(result):
                continue
            told("corrected", abs(Real(info.value) - exact.value[k]), info.value_error, exact.value_error[k])
            if info.certificate != "none":
                told("gradient", abs(Real(info.gradient_norm) - steepest), info.gradient_error, own)
            if result is not None and result == RESULTS.converged:
                told("converged", steepest, 1e-2 * seen if tol is None else tol, own)
            if k + 1 < len(infos):
                rise = exact.value[k + 1] - exact.value[k]
                told("rise", max(rise, 0), 0.0, exact.value_error[k] + exact.value_error[k + 1])


MIXED, SINGLE = MixedPrecision(Nesterov()), SingleProducts(NewtonCG())


def points() -> list[Points]:
    """The families. Those of the same shapes, dtype and solver share their compiled programs."""
    found = []

    def add(name, draw, *kinds, **options):
        for dtype, solver, count in kinds:
            label = f"{name}, {dtype.__name__}, {called(solver)}"
            found.append(Points(label, draw, dtype, solver, count, **options))

    def in_units(draw):
        return partial(families.scaled, draw=draw)

    tv, foe, logistic = families.draw_tv, families.draw_foe, families.draw_logistic
    squares, regression = families.draw_squares, families.draw_regression
    one, two = {"shape": (1, 5, 6)}, {"shape": (2, 4, 4)}
    add("TV", partial(tv, **one), (F64, Nesterov(), 700), (F32, LBFGS(), 700))
    add("TV isotropic", partial(tv, isotropic=True, **two), (F64, MIXED, 700), (F32, NewtonCG(), 700))
    add("TV elastic", partial(tv, elastic=True, **two), (F64, SINGLE, 700), (F32, Nesterov(), 700))
    both = partial(tv, isotropic=True, elastic=True, **one)
    add("TV isotropic elastic", both, (F64, LBFGS(), 700), (F32, LBFGS(), 700))
    add("TV in units", in_units(partial(tv, isotropic=True, elastic=True, **one)), (F32, LBFGS(), 400))
    add("TV in units", in_units(partial(tv, **one)), (F64, NewtonCG(), 400))

    for k, learned in enumerate(families.SUBSETS):
        for j, boundary in enumerate(("valid", "reflect")):
            kind = (F64, Nesterov(), 100) if (k + j) % 2 else (F32, LBFGS(), 100)
            add(f"FoE {boundary}: {' '.join(learned)}", partial(foe, learned=learned, boundary=boundary), kind)
    large = partial(foe, boundary="reflect", filters=2, size=3, shape=(2, 4, 4))
    add("FoE reflect 3 x 3", large, (F64, MIXED, 150), (F32, NewtonCG(), 150))
    add("FoE in units", in_units(foe), (F32, LBFGS(), 150))

    for k, (name, shape) in enumerate(families.SHAPES.items()):
        solvers = (Nesterov(), LBFGS()) if k % 2 else (LBFGS(), NewtonCG())
        kinds = [(dtype, solver, 250) for dtype, solver in zip((F64, F32), solvers, strict=True)]
        add(f"logistic: one penalty per {name}".replace("per one", "in all"), partial(logistic, shape=shape), *kinds)
        if name in ("feature", "weight"):
            add(f"logistic at mean 100, per {name}", partial(logistic, shape=shape, mean=100.0), *kinds)
    add("logistic in units", in_units(logistic), (F32, LBFGS(), 250), (F64, SINGLE, 250))

    ends = (F64, Nesterov(), 400), (F32, LBFGS(), 400)
    add("least squares", squares, *ends)
    add("least squares at 1e3", partial(squares, offset=1e3), *ends)
    add("least squares at 1e3, fitted", partial(squares, offset=1e3, fitted=True), *ends)
    add("least squares, fitted, 96 rows", partial(squares, fitted=True, m=96), (F64, LBFGS(), 300), (F32, LBFGS(), 300))
    add("least squares, J cancels", partial(squares, cancel=True), *ends)
    measured = partial(squares, cancel=True, offset=10.0, silent=("J",))
    add("least squares, J cancels and is measured", measured, (F64, MIXED, 300), (F32, NewtonCG(), 300))
    # A2 x is larger here than what else is added up, so that `rounding` may be left out too
    untold = partial(squares, offset=10.0, spread=(-2, 0), silent=("L", "rounding"))
    add("least squares, L left out, fitted", partial(untold, fitted=True), *ends)
    add("least squares, L left out", untold, *ends)
    add("least squares in units", in_units(partial(squares, offset=3.0)), *ends)

    for k, loss in enumerate(("logcosh", "softplus", "huber")):
        for j, metric in enumerate((None, "Euclid", "own")):
            draw = partial(regression, loss=loss, metric=metric, fit=("loss", "squares")[j % 2], reads=k == j)
            solvers = [(Nesterov(), LBFGS()), (LBFGS(), NewtonCG()), (SINGLE, Nesterov())][(k + j) % 3]
            label = {None: loss, "Euclid": f"{loss}, metric", "own": f"{loss}, constants in the metric"}[metric]
            add(label, draw, (F64, solvers[0], 250), (F32, solvers[1], 250))
    own = partial(regression, metric="own", fit="squares", aligned=True)
    add("huber, aligned with its metric", own, (F64, LBFGS(), 250), (F32, LBFGS(), 250))
    add("huber at 1e3", partial(regression, fit="squares", offset=1e3), (F64, MIXED, 250), (F32, LBFGS(), 250))
    add("huber, L left out", partial(regression, silent=("L",)), (F64, Nesterov(), 250), (F32, LBFGS(), 250))
    plain = partial(regression, loss="logcosh", silent=("rounding", "rounding_cross", "concordance"))
    add("logcosh, roundings left out", plain, (F64, LBFGS(), 250), (F32, LBFGS(), 250))
    add("huber, tame", partial(regression, tame=True), (F64, GradientDescent(), 250), (F32, GradientDescent(), 250))
    add("huber in units", in_units(partial(regression, metric="own")), (F32, LBFGS(), 300), (F64, NewtonCG(), 300))
    little = partial(regression, silent=("L", "L_hessian", "L_upper"))
    add("huber, estimated", little, (F64, Nesterov(), 250), (F32, LBFGS(), 250))

    add("quartic", families.draw_quartic, (F64, Nesterov(), 500), (F32, LBFGS(), 500))
    add("cubic, attained", families.draw_cubic, (F64, Nesterov(), 300), start=attained)
    return found


def attained(rng, problem, x, q, flat, b, dtype) -> tuple:
    """Where `Cubic`'s bound is the whole error: x a little off, and q solves the adjoint system there."""
    x0 = real(problem.mu / problem.a) * power(rng, -8, -4)
    return 10.0, 10.0, np.array([x0]), q * real(problem.mu) / (real(problem.mu) + real(problem.a) * x0)


def descents() -> list[Descents]:
    squares, regression = families.draw_squares, families.draw_regression
    units = partial(families.scaled, draw=squares)
    small = partial(families.scaled, draw=partial(squares, fitted=True), a=(-1, 1), b=(-9, 0))
    tv = partial(families.draw_tv, isotropic=True, elastic=True, shape=(1, 5, 6))
    feature = partial(families.draw_logistic, shape=(4, 1))
    default, maid, fixed = bilevel.quasi_newton(), bilevel.maid(), bilevel.fixed_accuracy(1e-4)
    return [
        Descents("least squares, small g, box", small, F32, default, 60, tol=(-9, -5), box=(-20.0, 20.0)),
        Descents("least squares in units, box", units, F32, default, 60, tol=(-9, -2), box=(-20.0, 20.0)),
        Descents("least squares in units, box, maid", units, F32, maid, 60, tol=(-9, -2), box=(-20.0, 20.0)),
        Descents("least squares", squares, F64, default, 60),
        Descents("least squares, maid", squares, F64, maid, 40),
        Descents("logistic, box", feature, F32, default, 60, box=(-8.0, 3.0)),
        Descents("logistic, box, to tol", feature, F64, default, 40, tol=(-9, -3), box=(-8.0, 3.0)),
        Descents("TV, fixed accuracy", tv, F64, fixed, 40),
        Descents("TV", tv, F64, default, 40),
        Descents("TV, box, float32", tv, F32, default, 40, tol=(-5, -1), box=(-8.0, 2.0)),
        Descents("huber in its metric", partial(regression, metric="own", reads=True), F32, default, 60),
        Descents("huber, maid", partial(regression, metric="own", reads=True), F64, maid, 40, tol=(-9, -3)),
        Descents("quartic", families.draw_quartic, F64, default, 40, tol=(-8, -2)),
        Descents("FoE", families.draw_foe, F64, default, 20, tol=(-6, -2)),
    ]


def called(solver: Any) -> str:
    inner = getattr(solver, "solver", None)
    return type(solver).__name__ + ("" if inner is None else f"({type(inner).__name__})")


def everything() -> dict[str, Points | Descents]:
    return {f"{'descents: ' if isinstance(f, Descents) else ''}{f.name}": f for f in (*points(), *descents())}


def attack(family: Points | Descents, count: int) -> dict[str, Any]:
    """What came of `count` draws, or runs, of a family."""
    started, findings = time.perf_counter(), Findings()
    (attack_descents if isinstance(family, Descents) else attack_points)(family, count, findings)
    seconds = round(time.perf_counter() - started, 1)
    return {"draws": count, **findings.summary(), "seconds": seconds}
