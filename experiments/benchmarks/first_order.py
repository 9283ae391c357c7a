"""Hypergradients from gradients alone, beside the adjoint's: what they cost, and how accurate they can get.

    z = grad_theta g(x(t)) + (grad_theta h(x(t)) - grad_theta h(xhat)) / t,     x(t) = argmin over x of  h + t g

The default method, z from conjugate gradients on the adjoint system or so, one- and two-sided, from the same start to
the default tolerance; on the closed form, the error and its bound against t. `make first-order`.
"""

import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt
from sklearn import datasets
from tqdm import tqdm

import bilevel
from bilevel import problems
from bilevel._certificate.penalty import Penalised, difference, room
from bilevel._lower.descend import descend
from bilevel._outer.programs import UNLIMITED
from bilevel._program import program
from bilevel.problems import data
from experiments._harness import console, record, style

jax.config.update("jax_enable_x64", True)

SOURCES = {"adjoint": bilevel.Adjoint(), "one-sided": bilevel.Penalty(), "two-sided": bilevel.Penalty(two_sided=True)}
INKS = {"adjoint": "#111111", "one-sided": "#0072B2", "two-sided": "#C1121F"}
SIZES = np.logspace(-7, -0.5, 27)  # of t, in units of mu/L_g
MOST = np.asarray(UNLIMITED, np.int32)


def tables() -> problems.LogisticRegression:
    """Wine with noise, a sixth of it to learn from."""
    A, y = datasets.load_wine(return_X_y=True)
    A = (A - A.mean(axis=0)) / A.std(axis=0) + np.random.default_rng(0).standard_normal(A.shape)
    train = np.arange(len(y)) % 6 == 0
    return problems.LogisticRegression(A[train], y[train], A[~train], y[~train])


def photographs(size: int) -> problems.TotalVariation:
    train, _ = data.denoising_set("photographs", sigma=0.1, size=size)
    return problems.TotalVariation(train.clean, train.noisy)


def cases(smoke: bool) -> dict:
    made = {"quadratic": (problems.quadratic.uniform_data(0), np.ones(10)), "wine": (tables(), np.array(-2.0))}
    return made | {"TV": (photographs(12 if smoke else 64), np.array([-3.0, -3.0]))}


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    made, done = cases(smoke), log.finished()
    for case, (problem, theta0) in made.items():
        for name, source in tqdm(SOURCES.items(), desc=case, disable=None):
            if (run := f"{case}, {name}") not in done:
                parts = bilevel.Balanced(), bilevel.SlopeTest(), bilevel.QuasiNewton()
                method = bilevel.Method(*parts, predictor=bilevel.Secants(), gradient=source)
                limits = dict(max_cost=200 if smoke else 50_000, progress=False)
                found = record.solve(log, run, {}, problem, theta0, method, **limits)
                if name == "one-sided":
                    log.write("config", f"{case}, attainable", **record.environment())
                    log.write("end", f"{case}, attainable", omega=attainable(problem, found))
    if "slopes" not in done:
        slopes(log, made["quadratic"][0], made["quadratic"][1])


@program
def at(problem, solver, theta, x, t, eps, allowed):
    """xhat, x(t) and x(-t), with what they say of z."""
    base, plus, minus = (
        descend(level, solver, theta, x, eps, allowed)
        for level in (problem, Penalised(problem, t), Penalised(problem, -t))
    )
    return (base, plus, minus), [difference(problem, theta, base, moved, t) for moved in ((plus,), (plus, minus))]


def attainable(problem, found: bilevel.Solution) -> float:
    """2 sqrt(bias (amplified (eps_t + eps_0) + noise)), both lower levels at their floor: the least omega there is."""
    theta = jax.tree.map(jnp.asarray, found.theta)
    t = jnp.asarray(1e-4 * room(problem, theta))
    (base, plus, _), (one, _) = at(problem, bilevel.LBFGS(), theta, found.x, t, jnp.asarray(1e-300), MOST)
    return 2 * math.sqrt(float(one.bias) * float(one.amplified * (base.error + plus.error) + one.noise))


def slopes(log: record.Log, problem: problems.Quadratic, theta: np.ndarray) -> None:
    """||z - grad f|| and its bound at theta, both lower levels at their floor."""
    log.write("config", "slopes", **record.environment())
    exact, theta, began = problem.closed_form(theta), jnp.asarray(theta), time.perf_counter()
    for k, size in enumerate(SIZES):
        t = jnp.asarray(size * room(problem, theta))
        levels, found = at(problem, bilevel.LBFGS(), theta, jnp.asarray(exact.x), t, jnp.asarray(1e-300), MOST)
        row = {"k": k, "t": float(t)}
        for name, one in zip(("one-sided", "two-sided"), found, strict=True):
            inexact = one.amplified * (levels[0].error + max(m.error for m in levels[1:])) + one.noise
            row[f"error, {name}"] = float(np.linalg.norm(one.z - exact.gradient))
            row[f"bound, {name}"] = float(one.bias * t + inexact / t)
        log.write("step", "slopes", **row)
    log.write("end", "slopes", seconds=time.perf_counter() - began)


def report(runs: dict[str, record.Run]) -> None:
    rows = []
    for run in (name for name in runs if name.split(", ")[-1] in SOURCES):
        case, source = run.split(", ")
        end = runs[run].end
        least = "-" if source == "adjoint" else f"{runs[f'{case}, attainable'].end['omega']:.1e}"
        counts = end["lower_gradients"], end["hessian_products"]
        value, omega = f"{end['value']:.6f}", "-" if end["gradient_error"] is None else f"{end['gradient_error']:.1e}"
        rows.append(
            (case, source, "yes" if end["converged"] else "no", value, *counts, f"{end['seconds']:.2f}", omega, least)
        )
    head = (
        "problem",
        "z from",
        "result",
        "value",
        "gradients",
        "Hessian products",
        "s",
        "omega at the end",
        "attainable",
    )
    print(console.table(head, rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    figure, axes = plt.subplots(figsize=(6, 4))
    steps = runs["slopes"].steps
    for name in ("one-sided", "two-sided"):
        axes.loglog(steps["t"], steps[f"error, {name}"], "o-", ms=3, color=INKS[name], label=f"error, {name}")
        axes.loglog(steps["t"], steps[f"bound, {name}"], "--", color=INKS[name], label=f"bound, {name}")
    axes.set(xlabel="t", ylabel="error of z")
    axes.legend()
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("first_order", "Hypergradients from gradients alone.", solve, report, draw)
