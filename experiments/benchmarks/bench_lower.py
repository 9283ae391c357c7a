"""min over x of h(x, theta) until ||grad_x h|| <= mu eps: which method asks for least, in products and in seconds?

Gradient descent, Nesterov, L-BFGS and Newton-CG, two of them partly in float32, and the candidates of
`lower_candidates`, on total variation (nine photographs 96 x 96) at three theta, on the paper's quadratic and on the
digits with 640 penalties, from the problem's own guess; then bilevel.maid() on total variation as a whole with each.
Cost counts lower-level gradients and Hessian products and is exact. Seconds are medians without compilation, of this
machine as it is now.

`python -m experiments.benchmarks.bench_lower`, last part of `make bench`.
"""

import argparse
import itertools
import statistics
import time

import jax
import numpy as np
from tqdm import tqdm

import bilevel
from bilevel import problems
from bilevel.problems import data
from bilevel.problems.quadratic import uniform_data
from experiments._harness import console, packed, record
from experiments.benchmarks import bench_cases
from experiments.benchmarks.lower_candidates import (
    HalfQuadratic,
    NonlinearCG,
    PrimalDual,
    RegularisedNewton,
    by_blocks,
)

jax.config.update("jax_enable_x64", True)

LOG = console.EXPERIMENTS / "logs" / "bench_lower.jsonl"
SOLVERS = {
    "GradientDescent": bilevel.GradientDescent(),
    "Nesterov": bilevel.Nesterov(),
    "LBFGS": bilevel.LBFGS(),
    "NewtonCG": bilevel.NewtonCG(),
    "Nesterov, mixed": bilevel.MixedPrecision(bilevel.Nesterov()),
    "NewtonCG, single": bilevel.SingleProducts(bilevel.NewtonCG()),
    "NonlinearCG": NonlinearCG(),
    "RegularisedNewton": RegularisedNewton(),
}
FOR_TV = {"HalfQuadratic": HalfQuadratic(), "PrimalDual": PrimalDual()}
FOR_SOFTMAX = {"RegularisedNewton, blocks": RegularisedNewton(by_blocks)}
EPS = (1e-1, 1e-3, 1e-5, 1e-8)
THETA0 = np.array([-5.0, -5.0])
WITHIN = 0.02
MOST = 120_000  # gradients and products of one solve


def lower_levels(log: record.Log, repeats: int, budget: float) -> None:
    """Every method on every lower-level problem; repeats end early once `budget` seconds are spent on one of them."""
    photographs = data.photographs(96).pixels
    tv = problems.TotalVariation(photographs, data.add_noise(photographs, 0.1, seed=0))
    digits = problems.LogisticRegression(*(array for part in bench_cases.digits_data()[:2] for array in part))
    places = {
        "TV (-5, -5), start": (tv, THETA0),
        "TV (-2.08, -4.6), near the optimum": (tv, np.array([-2.08, -4.6])),
        "TV (0, -4.6), too strong": (tv, np.array([0.0, -4.6])),
        "quadratic, ones": (uniform_data(0), np.ones(10)),
        "digits, 640 penalties e^-8": (digits, np.full((64, 10), -8.0)),
    }
    bar = tqdm(places.items(), desc="lower level", disable=None)
    for place, (problem, theta) in bar:
        solvers = SOLVERS | (FOR_TV if problem is tv else FOR_SOFTMAX if problem is digits else {})
        constants = problem.constants(theta)
        kappa = float(constants.L / constants.mu)
        rows = {}
        for name, solver in solvers.items():
            for eps in EPS:
                seconds = []
                while len(seconds) < 2 or (len(seconds) <= repeats and sum(seconds) < budget):
                    start = time.perf_counter()
                    solution = bilevel.solve_lower(problem, theta, eps=eps, solver=solver, max_cost=MOST)
                    jax.block_until_ready(solution)
                    seconds.append(time.perf_counter() - start)
                numbers = {
                    "lower_gradients": int(solution.lower_gradients),
                    "hessian_products": int(solution.hessian_products),
                    "seconds": statistics.median(seconds[1:]),
                    "first_call_seconds": seconds[0],
                    "repeats": len(seconds) - 1,
                    "eps": eps,
                    "error": float(solution.error),
                    "result": str(bilevel.RESULTS[solution.result]),
                }
                log.write("config", f"{place}, {name}, eps {eps:g}", solver=name, eps=eps, kappa=kappa, place=place,
                          **record.environment())  # fmt: skip
                log.write("end", f"{place}, {name}, eps {eps:g}", **numbers)
                rows[name, eps] = numbers
        header = ("cost / ms", *(f"eps {eps:g}" for eps in EPS))
        cells = [
            (name, *(f"{_cost(rows[name, eps])} / {1e3 * rows[name, eps]['seconds']:.1f}" for eps in EPS))
            for name in solvers
        ]
        tqdm.write(f"\n{place}: condition number {kappa:.4g}\n{console.table(header, cells)}")


def members(log: record.Log) -> None:
    """Does a batch pay for its slowest image? What each needs by itself, to its share of eps, beside all at once."""
    photographs = data.photographs(96).pixels
    noisy = data.add_noise(photographs, 0.1, seed=0)
    rows = []
    for place, theta in {"(-2.08, -4.6)": (-2.08, -4.6), "(0, -4.6)": (0.0, -4.6)}.items():
        for name, eps in itertools.product(("Nesterov", "LBFGS"), EPS[:2]):

            def cost(part, share, solver=SOLVERS[name], theta=np.array(theta)):
                problem = problems.TotalVariation(photographs[part], noisy[part])
                return int(bilevel.solve_lower(problem, theta, eps=share, solver=solver).lower_gradients)

            n = len(photographs)
            each = [cost(slice(i, i + 1), eps / n**0.5) for i in range(n)]
            numbers = {"together": cost(slice(None), eps), "least": min(each), "mean": np.mean(each), "most": max(each)}
            run = f"members, {place}, {name}, eps {eps:g}"
            log.write("config", run, place=place, solver=name, eps=eps, **record.environment())
            log.write("end", run, **numbers)
            rows.append((place, name, f"{eps:g}", *(f"{number:.0f}" for number in numbers.values())))
    header = ("TV at", "solver", "eps", "all at once", "each: least", "mean", "most")
    print(f"\ngradients for a batch, and for its images one by one\n{console.table(header, rows)}")


def estimates(log: record.Log) -> None:
    """A hypergradient's true error, beside its bound and its first-order estimate."""
    photographs = data.photographs(96).pixels
    tv = problems.TotalVariation(photographs, data.add_noise(photographs, 0.1, seed=0))
    rows = []
    for place, (problem, theta) in {
        "TV (-2.08, -4.6)": (tv, np.array([-2.08, -4.6])), "quadratic, ones": (uniform_data(0), np.ones(10)),
    }.items():  # fmt: skip
        exact = bilevel.hypergradient(problem, theta, eps=1e-9, delta=1e-9, solver=SOLVERS["LBFGS"]).gradient
        for eps in (10.0, 1e-1, 1e-3, 1e-5):
            solution = bilevel.hypergradient(problem, theta, eps=eps, delta=eps, solver=SOLVERS["LBFGS"])
            estimate = bilevel.estimate_error(problem, theta, solution)
            true = float(np.linalg.norm(solution.gradient - exact))
            numbers = {
                "true": true, "bound": float(solution.gradient_error), "estimate": float(estimate.norm),
                "cost": solution.counts.cost, "estimate_cost": estimate.counts.cost,
            }  # fmt: skip
            run = f"estimates, {place}, eps {eps:g}"
            log.write("config", run, place=place, eps=eps, **record.environment())
            log.write("end", run, **numbers)
            ratios = (f"{numbers['bound'] / true:.3g}", f"{numbers['estimate'] / true:.3f}")
            rows.append((place, f"{eps:g}", f"{true:.1e}", *ratios, numbers["cost"], numbers["estimate_cost"]))
    header = ("hypergradient at", "eps = delta", "true error", "bound / true", "estimate / true", "cost", "estimate's")
    print(f"\n{console.table(header, rows)}")


def whole_runs(log: record.Log, max_cost: float) -> None:
    """maid() on eight photographs, chelsea held out, with each method: cost and seconds to the optimum + 0.02."""
    train, _ = data.denoising_set("photographs", sigma=0.1, seed=0, held_out=["chelsea"])
    problem = problems.TotalVariation(train.clean, train.noisy)
    # the smallest value any of them reaches, known to its certified error, stands for the optimum
    solutions, seconds = {}, {}
    for name, solver in tqdm((SOLVERS | FOR_TV).items(), desc="maid()", disable=None):
        config = {"method": "maid", "solver": name, "place": "TV, whole run"}
        method = bilevel.maid(solver=solver)
        bilevel.solve(problem, THETA0, method, max_cost=300, progress=False)  # compile, and warm up
        solutions[name] = record.solve(
            log, f"maid, {name}", config, problem, THETA0, method, max_cost=max_cost, tol=1e-2, progress=False
        )
        seconds[name] = solutions[name].seconds
    optimum = min(s.value for s in solutions.values())
    rows = []
    for name, s in solutions.items():
        reached = np.flatnonzero(s.history["value"] + s.history["value_error"] <= optimum + WITHIN)
        k = int(reached[0]) if len(reached) else None
        there = ("-", "-") if k is None else (int(s.history["cost"][k]), f"{s.history['seconds'][k]:.2f}")
        rows.append((name, *there, s.cost, f"{seconds[name]:.2f}", "yes" if s.converged else "no"))
        log.write("config", f"reached, {name}", optimum=optimum, within=WITHIN)
        log.write("end", f"reached, {name}", cost=None if k is None else there[0],
                  seconds=None if k is None else float(s.history["seconds"][k]))  # fmt: skip
    header = ("maid() with", f"cost to {WITHIN}", "seconds", "cost to tol 1e-2", "seconds", "converged")
    print(f"\nTV, eight photographs, from (-5, -5); smallest value {optimum:.6f}\n{console.table(header, rows)}")


def _cost(numbers: dict) -> str:
    cost = numbers["lower_gradients"] + numbers["hessian_products"]
    return f"{cost}" if numbers["error"] <= numbers["eps"] else f"{cost}!"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default 5)")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds after which no further repeat starts")
    arguments = parser.parse_args()
    log = record.Log(LOG, fresh=True)
    lower_levels(log, arguments.repeats, arguments.budget)
    members(log)
    estimates(log)
    whole_runs(log, max_cost=10_000)
    packed.pack(log.path)
