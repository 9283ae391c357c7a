"""x(theta + e) ~ xhat(theta) + K e: what is a best response worth, as a predictor and as a method of its own?

The same three problems for all: total variation, (log weight, log smoothing), on 25 Kodak images of 96 x 96; Fields of
Experts, 12 filters 5 x 5 with weights and smoothings (324), on 10 of 48 x 48; logistic regression with one penalty for
each of the 1 440 weights, on MNIST. Without these data, images and digits that scikit-image and scikit-learn carry.

maid() and certified quasi-Newton descent start each trial's lower level from the last x ("previous"), or from the
affine response through points solved before ("secants", which cost nothing). Self-tuning descends through a response
fitted at perturbed theta, whose gradients count, and certifies no step; `slow` has a fifth of the default's learning
rate and twice its fitting steps. On each problem all have the same lower-level solver, and f is judged by an accurate
solve, not counted. `make responses`, or `python -m experiments.networks.responses`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter
from tqdm import tqdm

import bilevel
from bilevel import problems
from bilevel.problems import data, foe, labelled
from experiments._harness import console, record, style
from experiments.paper.foe_runs import ZeroMean

jax.config.update("jax_enable_x64", True)

TUNING = "#17A2A2"
LOOKS = {  # colour and line
    "maid": (style.COLOURS["maid"], "-"),
    "maid, secants": (style.COLOURS["maid"], "--"),
    "quasi-newton, previous": (style.COLOURS["quasi-newton"], "--"),
    "quasi-newton, secants": (style.COLOURS["quasi-newton"], "-"),
    "self-tuning": (TUNING, "-"),
    "self-tuning, slow": (TUNING, "--"),
}
SHARES = (0.1, 0.01, 0.001)  # of what the best run gains, left to gain


class Case(NamedTuple):
    """A problem, its start and box, the solver that all methods use, the budget, and how accurately x is solved to
    judge a theta."""

    problem: bilevel.AbstractProblem
    theta0: Any
    bounds: tuple[float, float] | None
    solver: Any
    budget: int
    eps: float
    config: dict[str, Any]


def total_variation(source: str, smoke: bool) -> Case:
    size, budget = (16, 150) if smoke else (96, 5000)
    train, _ = data.denoising_set(source, sigma=0.1, seed=0, size=size)
    problem = problems.TotalVariation(train.clean, train.noisy)
    config = {"images": len(train.names), "size": size}
    return Case(problem, np.array([-5.0, -5.0]), None, bilevel.Nesterov(), budget, 1e-4, config)


def fields_of_experts(source: str, smoke: bool) -> Case:
    (filters, width), count, size, budget = ((3, 3), 2, 16, 150) if smoke else ((12, 5), 10, 48, 2000)
    train, _ = data.denoising_set(source, sigma=0.1, seed=0, size=size)
    clean, noisy = train.clean[:count], train.noisy[:count]
    theta0 = foe.initial(0, filters, width)
    scale = theta0.pop("scale")
    problem = ZeroMean(clean, noisy, fixed={"scale": scale})
    config = {"images": len(clean), "size": size, "filters": [filters, width, width]}
    return Case(problem, theta0, None, bilevel.LBFGS(), budget, 1e-3, config)


def logistic_regression(source: str, smoke: bool) -> Case:
    if source == "kodak" and not smoke:
        parts, shape, budget, config = labelled.mnist(), (144, 10), 2000, {"data": "MNIST 12 x 12"}
    else:
        parts = labelled.split(labelled.digits(), (300, 150) if smoke else (1200, 597), seed=0)
        shape, budget, config = ((1, 10), 150, {}) if smoke else ((64, 10), 2000, {"data": "digits"})
    problem = problems.LogisticRegression(*parts[0], *parts[1])
    # below -12 a penalty is none, above 4 its weight is zero
    return Case(problem, np.full(shape, -4.0), (-12.0, 4.0), bilevel.LBFGS(), budget, 1e-3, config)


CASES: dict[str, Callable[[str, bool], Case]] = {
    "total variation": total_variation,
    "Fields of Experts": fields_of_experts,
    "logistic regression": logistic_regression,
}


def methods(case: Case) -> dict[str, Any]:
    solver = case.solver
    default = bilevel.quasi_newton(solver=solver)
    made = (
        bilevel.maid(solver=solver),
        bilevel.maid(solver=solver, predictor=bilevel.Secants()),
        replace(default, predictor=bilevel.Previous()),
        default,
        bilevel.self_tuning(solver=solver),
        bilevel.self_tuning(optax.adam(0.02), steps=8, solver=solver),
    )
    return dict(zip(LOOKS, made, strict=True))


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    done, source = log.finished(), "photographs" if packaged else "kodak"
    for name, make in CASES.items():
        case = make(source, smoke)
        judged = jax.jit(lambda problem, x, theta: problem.upper(x, theta))

        def judge(theta, x, case=case, judged=judged):
            lower = bilevel.solve_lower(case.problem, theta, eps=case.eps, x0=x, solver=case.solver)
            return {"value": float(judged(case.problem, lower.x, theta)), "eps": float(lower.error)}

        runs = {f"{name}: {method}": (method, made) for method, made in methods(case).items()}
        for run in (bar := tqdm([run for run in runs if run not in done], disable=None)):
            bar.set_description(run)
            method, made = runs[run]
            config = {"problem": name, "method": method, "source": source, **case.config}
            record.solve(
                log, run, config, case.problem, case.theta0, made, judge=judge, bounds=case.bounds,
                max_cost=case.budget, tol=0.0, max_steps=100_000, progress=False,
            )  # fmt: skip


class Curve(NamedTuple):
    """f, judged, against what had been spent."""

    cost: np.ndarray
    value: np.ndarray


def curves(runs: dict[str, record.Run], name: str) -> tuple[dict[str, Curve], float, float]:
    """The methods' curves, f at their common start, and the least f that any of them reached."""
    own = {run.config["method"]: run for run in runs.values() if run.config["problem"] == name}
    made = {method: Curve(own[method].judged["cost"], own[method].judged["value"]) for method in LOOKS if method in own}
    return made, own["maid"].steps["value"][0], min(curve.value.min() for curve in made.values())


def report(runs: dict[str, record.Run]) -> None:
    """The tables, from the log alone."""
    for name in CASES:
        made, first, best = curves(runs, name)
        rows = []
        for method, curve in made.items():
            end = runs[f"{name}: {method}"].end
            costs = []
            for share in SHARES:
                reached = curve.cost[curve.value - best <= share * (first - best)]
                costs.append(f"{reached[0]:.0f}" if len(reached) else "never")
            interval = "none" if end["gradient_error"] is None else f"{end['gradient_error']:.0e}"
            rows.append((method, *costs, f"{curve.value[-1]:.5f}", f"{curve.value.min():.5f}",
                         f"{end['value_error']:.0e}", interval, end["steps"], end["cost"],
                         f"{end['seconds']:.0f}"))  # fmt: skip
        heads = (f"cost to {1 - share:.1%}" for share in SHARES)
        header = (name, *heads, "f at end", "least f", "known to", "gradient to", "steps", "cost", "s")
        print(console.table(header, rows))
        print(f"of the way from {first:.4f} to {best:.5f}, the least f that any run reached\n")


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """The figure, from the log alone."""
    style.use()
    figure, axes = plt.subplots(1, len(CASES), figsize=(13, 4.8), sharey=True)
    for a, name in zip(axes, CASES, strict=True):
        made, first, best = curves(runs, name)
        for method, curve in made.items():
            colour, line = LOOKS[method]
            left = np.maximum((curve.value - best) / (first - best), 1e-5)
            a.plot(curve.cost, left, color=colour, ls=line, marker=".", ms=4, label=method)
        a.set(xscale="log", yscale="log", title=name, xlabel="cost: gradients and products", ylim=(0.7e-5, 3))
        a.yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("left of what the best run gains in f (cut off at $10^{-5}$)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    style.save(figure, f"{figures}_values.png")


def needs() -> None:
    data.kodak()
    labelled.mnist()


if __name__ == "__main__":
    console.main("responses", __doc__.splitlines()[0], solve, report, draw, needs=needs)
