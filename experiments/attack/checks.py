"""A family of draws against its references. What is compared, the truth with its bound:

    x          ||x - xhat||_W   <= error             of `hypergradient`, in the problem's metric
    value      |value - f|      <= value_error       of the same
    gradient   ||z - grad f||   <= gradient_error    of the same
    corrected  |value - f|      <= value_error       of the default method, which corrects values by the adjoint
    converged  ||x - xhat||_W   <= eps               wherever `hypergradient` says so

and of every step of a descent: corrected; gradient, by | ||P(theta - z) - theta|| - ||P(theta - grad f) - theta|| |;
rise, f(theta_k+1) - f(theta_k) <= 0 of accepted steps; converged, ||P(theta - grad f) - theta|| <= tol or, where none
was given, <= 1e-2 of the largest ||grad f|| on the way (the default promises 1e-3 of one of them, known within a half).
"""

import time
import zlib
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import bilevel
from bilevel import RESULTS
from experiments.attack.draws import Draw, power
from experiments.attack.findings import Findings, message
from experiments.attack.own import refer
from experiments.attack.references import Truth, truth
from experiments.attack.terms import Real, norm, real

SEED, CHUNK = 0, 50
OPEN = 1e30  # a tolerance that every gradient meets
NONE = (RESULTS.not_strongly_convex, RESULTS.not_convex, RESULTS.non_finite)  # the result: there is no certificate


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


def flat(tree: Any) -> np.ndarray:
    """A pytree as one vector of 80-bit floats."""
    return np.concatenate([real(leaf).ravel() for leaf in jax.tree.leaves(jax.device_get(tree))])


def shaped(vector: np.ndarray, like: Any) -> Any:
    """The other way, in the dtype of `like`; what that cannot hold becomes the largest that it can."""
    leaves, structure = jax.tree.flatten(like)
    parts = np.split(vector, np.cumsum([leaf.size for leaf in leaves])[:-1])
    most = [np.finfo(leaf.dtype).max for leaf in leaves]
    return structure.unflatten(
        [np.clip(p, -m, m).reshape(v.shape).astype(v.dtype) for p, v, m in zip(parts, leaves, most, strict=True)]
    )


def exactly(draws: list[Draw]) -> tuple[Truth, np.ndarray]:
    """xhat, f, grad f of all draws in the problems' units, and the unit of g."""
    reference, a, b = refer(draws)
    found = truth(reference, np.stack([flat(problem.guess(theta)) for problem, theta in draws]))
    found = found._replace(
        value=found.value * b, value_error=found.value_error * b, gradient_error=found.gradient_error * b,
        gradient=found.gradient * b[:, None], q=found.q * (b / a)[:, None],
    )  # fmt: skip
    return found, b


def start_anywhere(rng, problem, x, q, flat, b, dtype) -> tuple:
    """eps and delta from 10 to below the floor; x0 the guess, xhat, or up to 10 away, anyhow or where h is flattest; q0
    zero, or near qhat."""
    low = -8 if dtype == np.float32 else -17
    away = rng.standard_normal(x.shape) if rng.random() < 0.6 else flat
    x0 = x + rng.choice([0, power(rng, low, 1)]) * away if rng.random() < 0.7 else None
    q0 = q * (1 + rng.choice([0, power(rng, -6, 1)]) * rng.standard_normal(q.shape)) if rng.random() < 0.5 else None
    return power(rng, low, 1), power(rng, low, 1) * b, x0, q0


def start_where_flat(rng, problem, x, q, flat, b, dtype) -> tuple:
    """Near xhat along the smallest curvature, as accurate as asked for, and the adjoint solved: what the gradient at
    such a start tells of L is far too small."""
    single = dtype == np.float32
    away = power(rng, *(-6, -3) if single else (-14, -8))
    return away * power(rng, 0.5, 2), b * power(rng, -8 if single else -17, 0), x + away * flat, q


def attack_points(family: Points, count: int, findings: Findings) -> None:
    smallest, largest = (float(getattr(np.finfo(family.dtype), name)) for name in ("tiny", "max"))
    for first in range(0, count, CHUNK):
        rng = np.random.default_rng([SEED, zlib.crc32(family.name.encode()), first])
        draws = [family.draw(rng, family.dtype) for _ in range(min(CHUNK, count - first))]
        exact, b = exactly(draws)
        for k, (problem, theta) in enumerate(draws):
            start = family.start or start_anywhere
            eps, delta, x0, q0 = start(rng, problem, exact.x[k], exact.q[k], exact.flat[k], b[k], family.dtype)
            x0, q0 = (None if v is None else shaped(v, problem.guess(theta)) for v in (x0, q0))
            eps, delta = (float(np.clip(v, smallest, largest)) for v in (eps, delta))
            out = bilevel.hypergradient(problem, theta, eps=eps, delta=delta, x0=x0, q0=q0, solver=family.solver)
            findings.results[message(out.result)] += 1
            if out.result not in NONE:
                told = partial(findings.compare, result=out.result, certificate=out.certificate, where=first + k)
                distance, change = norm(flat(out.x) - exact.x[k], exact.W[k]), flat(out.gradient) - exact.gradient[k]
                told("x", distance, out.error, exact.x_error[k])
                told("value", abs(real(out.value) - exact.value[k]), out.value_error, exact.value_error[k])
                told("gradient", norm(change), out.gradient_error, exact.gradient_error[k])
                if out.result == RESULTS.converged:
                    told("converged", distance, eps * (1 + 8 * findings.u), exact.x_error[k])
            if k % 2 == 0:
                method = bilevel.quasi_newton(eps, delta, solver=family.solver)
                run = bilevel.solve(problem, theta, method, tol=OPEN, x0=x0, progress=False, max_steps=0)
                if run.result not in NONE:
                    label = "proven" if run.certified else "estimated"
                    told = partial(findings.compare, result=run.result, certificate=label, where=first + k)
                    told("corrected", abs(Real(run.value) - exact.value[k]), run.value_error, exact.value_error[k])


def attack_descents(family: Descents, count: int, findings: Findings) -> None:
    rng = np.random.default_rng([SEED, zlib.crc32(family.name.encode())])
    lo, hi = family.box or (-np.inf, np.inf)
    for run in range(count):
        problem, theta = family.draw(rng, family.dtype)
        if family.box is not None:  # some start on the box's boundary
            far = rng.choice([1, 1, 100])
            theta = jax.tree.map(lambda t, far=far: np.clip(t * far, lo, hi).astype(t.dtype), theta)
        tol, limits = None if family.tol is None else power(rng, *family.tol), {"max_steps": 20, "max_cost": 20_000}
        steps = bilevel.iterate(problem, theta, family.method, tol=tol, bounds=family.box, **limits)
        infos = [info for _, info in steps]
        exact, _ = exactly([(problem, info.theta) for info in infos])
        largest = np.max(norm(exact.gradient))
        for k, info in enumerate(infos):
            result, own = info.result, exact.gradient_error[k]
            findings.results["a step" if result is None else message(result)] += 1
            if info.certificate == "none" or (result is not None and result in NONE):
                continue
            told = partial(findings.compare, result=result, certificate=info.certificate, where=[run, k])
            steepest = norm(np.clip(-exact.gradient[k], lo - flat(info.theta), hi - flat(info.theta)))
            told("corrected", abs(Real(info.value) - exact.value[k]), info.value_error, exact.value_error[k])
            told("gradient", abs(Real(info.gradient_norm) - steepest), info.gradient_error, own)
            if result is not None and result == RESULTS.converged:
                told("converged", steepest, 1e-2 * largest if tol is None else tol, own)
            if k + 1 < len(infos):
                rise = max(exact.value[k + 1] - exact.value[k], Real(0))
                told("rise", rise, 0.0, exact.value_error[k] + exact.value_error[k + 1])


def attack(family: Points | Descents, count: int) -> dict[str, Any]:
    """What came of `count` draws, or runs, of a family."""
    started, findings = time.perf_counter(), Findings(family.dtype)
    (attack_descents if isinstance(family, Descents) else attack_points)(family, count, findings)
    return {"draws": count, **findings.summary(), "seconds": round(time.perf_counter() - started, 1)}
