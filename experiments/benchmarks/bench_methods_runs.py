"""The methods that the benchmark compares, and their runs."""

from dataclasses import replace

import jax
from tqdm import tqdm

import bilevel
from experiments._harness import counted, record
from experiments.benchmarks import bench_cases
from experiments.benchmarks.bench_cases import SOLVER
from experiments.benchmarks.bench_watch import one

jax.config.update("jax_enable_x64", True)

DEFAULT = "quasi-newton"
METHODS = {
    DEFAULT: bilevel.quasi_newton(solver=SOLVER),
    "maid": bilevel.maid(solver=SOLVER),
    "fixed 1e-4": bilevel.fixed_accuracy(1e-4, solver=SOLVER),
    "hoag geometric": bilevel.hoag(bilevel.Geometric(0.9), solver=SOLVER),
    "L-BFGS-B": lambda case: counted.Gradient(case.problem, 1e-5, SOLVER),
    "L-BFGS-B, jaxopt": lambda case: counted.Implicit(case.problem, case.theta0, 1e-8),
}
PARTS = {
    "over Nesterov": bilevel.quasi_newton(solver=bilevel.Nesterov()),
    "over Newton-CG": bilevel.quasi_newton(solver=bilevel.NewtonCG()),
    "no prediction": replace(bilevel.quasi_newton(), predictor=bilevel.Previous()),
    "-z certified (C < 1)": replace(bilevel.quasi_newton(), accuracy=bilevel.Balanced(C=0.99)),
    "C = 1": replace(bilevel.quasi_newton(), accuracy=bilevel.Balanced(C=1.0)),
    "C = 30": replace(bilevel.quasi_newton(), accuracy=bilevel.Balanced(C=30.0)),
    "C = 300": replace(bilevel.quasi_newton(), accuracy=bilevel.Balanced(C=300.0)),
    "ten pairs": replace(bilevel.quasi_newton(), direction=bilevel.QuasiNewton(pairs=10)),
    "one pair": replace(bilevel.quasi_newton(), direction=bilevel.QuasiNewton(pairs=1)),
}
LONG, CERTIFIED, SIXTEEN = ("FoE", "MNIST"), "TV, certified", "TV, sixteen"
SHOWN = ("TV", "digits 640, 1e-2", *LONG)  # the curves of their first draws are logged, for the figure
FIRST = [(eps, step) for eps in (1e2, 1.0, 1e-2, 1e-4) for step in (1e-4, 1e-2, 1.0, 100.0)]
REPEATED = ("TV", "digits")  # the same problem again, rather than other draws
SMOKE = {"max_cost": 100, "max_seconds": 30.0}


def tasks(log: record.Log, packaged: bool, smoke: bool, full: bool):
    """(run, kind, name, method, draw, make): whole methods first, on the problems of minutes before those of hours."""
    rows = bench_cases.cases(log, packaged, smoke)

    def applies(kind, name):
        if kind == SIXTEEN or (kind in LONG and not full):
            return False
        if kind == CERTIFIED:
            return isinstance(METHODS[name], bilevel.AbstractMethod)
        return "jaxopt" not in name or (kind not in LONG and (not smoke or kind.startswith("digits")))

    chosen = [(kind, METHODS, rows[kind][0]) for kind in sorted(rows, key=lambda kind: kind in LONG)]
    if full:
        cheap = ("quadratic",) if smoke else ("quadratic", "crossover", "TV")
        parts = [kind for kind in rows if kind.startswith(cheap)]
        chosen += [(kind, PARTS, 1 if kind == "TV" else rows[kind][0]) for kind in parts]  # TV's costs repeat exactly
    for kind, methods, draws in chosen:
        for name, method in methods.items():
            if applies(kind, name) if name in METHODS else kind != SIXTEEN:
                yield from ((f"{name}, {kind}, {d}", kind, name, method, d, rows[kind][1]) for d in range(draws))
    for d, (eps, step) in enumerate(FIRST[: rows[SIXTEEN][0] if full else 0]):
        yield f"{DEFAULT}, {SIXTEEN}, {d}", SIXTEEN, DEFAULT, bilevel.quasi_newton(eps, eps, step), d, rows[SIXTEEN][1]


def solve(log: record.Log, packaged: bool, smoke: bool, full: bool = False) -> None:
    """Every run that is not in the log yet."""
    done = log.finished()
    every = [task for task in tasks(log, packaged, smoke, full) if task[0] not in done]
    for run, kind, name, method, draw, make in (bar := tqdm(every, disable=None)):
        bar.set_description(run)
        if draw > 0 and kind.startswith(REPEATED) and kind != SIXTEEN and not arrived(log, f"{name}, {kind}, 0"):
            continue  # it would not arrive at another try either
        case = make(draw)
        if smoke:
            case = case._replace(**SMOKE)
        elif draw == 0 or kind.startswith(REPEATED):
            jax.clear_caches()
        one(log, run, kind, name, method, case, curve=draw == 0 and kind in SHOWN)


def arrived(log: record.Log, run: str) -> bool:
    """Whether the target was reached in a run of the log."""
    return bool(record.read(log.path)[run].end["reached"])
