"""CPU seconds of `solve` with the solver that it chooses and with each one named, to one tolerance, on photographs.

What a step moves through memory decides here, so the cost and the seconds of a solver say different things. Each solver
runs twice in this process; the second run, which compiles nothing, counts.

`make bench`, or `python -m experiments.benchmarks.bench_default`.
"""

import resource
import time
from pathlib import Path

import jax
import numpy as np
from matplotlib import pyplot as plt

import bilevel
from bilevel import problems
from bilevel.problems import data
from experiments._harness import console, record, style

jax.config.update("jax_enable_x64", True)

TOL, SIGMA = 1e-2, 0.1
SOLVERS = {"chosen": None, "L-BFGS": bilevel.LBFGS(), "Nesterov": bilevel.Nesterov()}
SIZES = {"36 of 96 x 96": (36, 96), "9 of 384 x 384": (9, 384)}


def total_variation(count: int, size: int) -> problems.TotalVariation:
    """The packaged photographs, repeated with other noise."""
    clean = data.photographs(size).pixels
    clean = np.concatenate([clean] * -(-count // len(clean)))[:count]
    return problems.TotalVariation(clean, data.add_noise(clean, SIGMA, seed=0))


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every size with every solver that is not in the log."""
    for name, (count, size) in SIZES.items():
        for label, solver in SOLVERS.items():
            run = f"{name}, {label}"
            if run in log.finished():
                continue
            problem = total_variation(2 if smoke else count, 24 if smoke else size)
            log.write("config", run, tol=TOL, **record.environment())
            for _ in range(2):
                method, began = bilevel.quasi_newton(solver=solver), time.process_time()
                solution = bilevel.solve(problem, np.full(2, -3.0), method, tol=TOL, progress=False)
                spent = time.process_time() - began
            log.write(
                "end", run, cpu=spent, cost=solution.cost, steps=solution.steps, value=solution.value,
                result=str(bilevel.RESULTS[solution.result]), solver=type(solution.method.solver).__name__,
                peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
            )  # fmt: skip
            print(f"{run}: {spent:.2f} s, cost {solution.cost}", flush=True)
            jax.clear_caches()


def report(runs: dict[str, record.Run]) -> None:
    rows = []
    for name in SIZES:
        ends = {label: runs[f"{name}, {label}"].end for label in SOLVERS if f"{name}, {label}" in runs}
        fastest = min(end["cpu"] for end in ends.values())
        for label, end in ends.items():
            ratio = f"{end['cpu'] / fastest:.2f}"
            rows.append((name, label, end["solver"], f"{end['cpu']:.2f}", ratio, end["cost"], f"{end['value']:.6f}"))
    print(console.table(("photographs", "solver", "is", "CPU s", "ratio to the fastest", "cost", "value"), rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """Bars of the CPU seconds."""
    style.use()
    figure, axes = plt.subplots(1, len(SIZES), figsize=(8, 2.6))
    for a, name in zip(axes, SIZES, strict=True):
        labels = [label for label in SOLVERS if f"{name}, {label}" in runs]
        a.barh(labels, [runs[f"{name}, {label}"].end["cpu"] for label in labels])
        a.set(title=name, xlabel="CPU seconds")
    style.save(figure, figures.with_suffix(".png"))


if __name__ == "__main__":
    console.main("bench_default", "Seconds of the default by its lower-level solver.", solve, report, draw)
