"""How near total variation comes to the speed of memory:  percent = (arrays * t_copy / 2) / t_kernel.

t_copy is NumPy's time to copy one stack, in the same round: one array read and one written. It goes round five stacks,
so that the cache holds it no better than it holds the kernel's own arrays. A kernel cannot move fewer arrays than it
reads and writes, and that, at NumPy's rate, is its floor:

    gradient         x <- x - grad_x h(x) / L      3 arrays: x, noisy; x
    Hessian product  v <- v - d2h/dx2 v / L        3 arrays: x, v; v
    step             one turn of `bilevel.Nesterov` inside `descend`, the gradient, ||rho|| and the test
                     of the certificate included   5 arrays: x, its predecessor, noisy; both again

Every kernel repeats inside one compiled loop, as in the solvers, and a turn is the difference between a long loop and a
short one over the difference of their turns: no dispatch is timed, nor the first touch of memory that a call allocates
(at 20 x 512 x 512 as long as three or four steps). What does not change from turn to turn (for the Hessian product, as
in conjugate gradients, all that depends on x alone) is computed once.
`plain` is the same energy under `jax.grad`, without the hand-written rules of `problems.TotalVariation`. Random images.
Numbers are medians over the rounds; "(best)" compares the fastest rounds, for a machine that others use as well.

Logistic regression at MNIST's size (60 000 x 144, 10 classes) is bound by arithmetic: the floor of its gradient and of
its Hessian product is two products of the features with ten columns at the rate of NumPy's product of square matrices.
Reading the features once, at NumPy's copy rate, is less. `plain` is the definition under `jax.grad`.
`make bench`, or `python -m experiments.benchmarks.bench_kernels`.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import bilevel
from bilevel._lower.descend import descend
from bilevel._problem import hessian_product, lower_gradient
from bilevel.problems import LogisticRegression, TotalVariation

jax.config.update("jax_enable_x64", True)

THETA = (-2.1, -4.6)  # about the optimum of the paper's experiment
# shape: turns of the short loop and of the long one, and rounds
SIZES = {(25, 96, 96): (10, 50, 25), (20, 512, 512): (2, 6, 7)}
ARRAYS = {"gradient": 3, "Hessian product": 3, "step": 5}
ROWS, FEATURES, CLASSES, LOGISTIC_TURNS, LOGISTIC_ROUNDS = 60_000, 144, 10, 10, 7


class Plain(TotalVariation):
    """The energy as one writes it, differentiated by JAX."""

    def lower(self, x, theta):
        w, nu = jnp.exp(theta[0]) / 2, jnp.exp(theta[1])
        dx, dy = x[:, :, 1:] - x[:, :, :-1], x[:, 1:] - x[:, :-1]
        roots = jnp.sum(jnp.sqrt(dx**2 + nu**2)) + jnp.sum(jnp.sqrt(dy**2 + nu**2))
        return jnp.sum((x - self.noisy) ** 2) / 2 + w * roots


class PlainLogistic(LogisticRegression):
    """The cross-entropy as one writes it, differentiated by JAX."""

    def lower(self, x, theta):
        scores = self.A @ x
        chosen = jnp.take_along_axis(scores, self.y[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(scores, axis=1) - chosen) + jnp.sum(jnp.exp(theta) * x**2) / 2


def kernels():
    """name -> f(problem, theta, x, turns)."""

    def gradient(problem, theta, x, turns):
        L = problem.constants(theta).L
        return lax.fori_loop(0, turns, lambda _, x: x - lower_gradient(problem, x, theta) / L, x)

    def product(problem, theta, x, turns):
        L = problem.constants(theta).L
        return lax.fori_loop(0, turns, lambda _, v: v - hessian_product(problem, x, theta, v) / L, x)

    def step(problem, theta, x, turns):
        # an accuracy that is not reached in so few steps; the gradient at the start is the first of the turns
        found = descend(problem, bilevel.Nesterov(), theta, x, jnp.asarray(1e-6, x.dtype), turns)
        return found.x, found.lower_gradients

    return {"gradient": gradient, "Hessian product": product, "step": step}


def copies(stacks, turns):
    for turn in range(turns):
        np.copyto(stacks[(turn + 1) % 5], stacks[turn % 5])


def compiled(kernel, *args):
    """The executable, and the seconds to trace and to compile it."""
    start = time.perf_counter()
    program = jax.jit(kernel).lower(*args).compile()
    return program, time.perf_counter() - start


def measure(shape, short, long, rounds, dtype):
    """Rows of the table, from medians over rounds in which copies and kernels take turns."""
    rng = np.random.default_rng(0)
    noisy, x = (rng.uniform(size=shape).astype(dtype) for _ in range(2))
    args = (jnp.asarray(THETA, dtype), jnp.asarray(x))
    stacks = [x + k for k in range(5)]
    counts = {turns: jnp.asarray(turns, jnp.int32) for turns in (short, long)}
    runs, compile_seconds = {("copy", ""): lambda turns: copies(stacks, turns)}, {}
    for kind, problem in (("fast", TotalVariation(None, noisy)), ("plain", Plain(None, noisy))):
        for name, kernel in kernels().items():
            if (name, kind) == ("step", "plain"):
                continue
            program, compile_seconds[name, kind] = compiled(kernel, problem, *args, counts[long])
            out = jax.block_until_ready(program(problem, *args, counts[long]))
            if name == "step" and out[1] != long:
                raise RuntimeError(f"{out[1]} gradients instead of {long}: what is timed is not {long} steps")
            runs[name, kind] = lambda turns, f=program, problem=problem: f(problem, *args, counts[turns])
    seconds = {key: {short: [], long: []} for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            for turns, times in seconds[key].items():
                start = time.perf_counter()
                jax.block_until_ready(run(turns))
                times.append(time.perf_counter() - start)

    def turn(summary):
        """key -> seconds a turn."""
        return {key: float(summary(t[long]) - summary(t[short])) / (long - short) for key, t in seconds.items()}

    median, best = turn(np.median), turn(min)
    for name, arrays in ARRAYS.items():
        fast, plain, floor = median[name, "fast"], median.get((name, "plain")), arrays * median["copy", ""] / 2
        yield {
            "kernel": name,
            "shape": list(shape),
            "dtype": np.dtype(dtype).name,
            "rounds": rounds,
            "run_us": 1e6 * fast,
            "mpixel_per_s": x.size / fast / 1e6,
            "floor_mpixel_per_s": x.size / floor / 1e6,
            "percent_of_floor": 100 * floor / fast,
            "best_percent_of_floor": 50 * arrays * best["copy", ""] / best[name, "fast"],
            "plain_mpixel_per_s": None if plain is None else x.size / plain / 1e6,
            "times_plain": None if plain is None else plain / fast,
            "compile_s": compile_seconds[name, "fast"],
            "plain_compile_s": compile_seconds.get((name, "plain")),
        }


def measure_logistic(dtype):
    """Milliseconds of logistic regression's kernels, as in `measure`."""
    rng = np.random.default_rng(0)
    A, labels = rng.uniform(size=(ROWS, FEATURES)).astype(dtype), np.arange(ROWS) % CLASSES
    args = (jnp.full((FEATURES, CLASSES), -4, dtype), jnp.asarray(rng.standard_normal((FEATURES, CLASSES)), dtype),
            jnp.asarray(LOGISTIC_TURNS, jnp.int32))  # fmt: skip
    square, copy = rng.standard_normal((1000, 1000)).astype(dtype), np.empty_like(A)
    runs = {"product": lambda: square @ square, "copy": lambda: np.copyto(copy, A)}
    for kind, problem in (("fast", LogisticRegression(A, labels, A, labels)),
                          ("plain", PlainLogistic(A, labels, A, labels))):  # fmt: skip
        for name in ("gradient", "Hessian product"):
            program, _ = compiled(kernels()[name], problem, *args)
            runs[name, kind] = lambda program=program, problem=problem: program(problem, *args)
    seconds = {key: [] for key in runs}
    for turn in range(LOGISTIC_ROUNDS + 1):
        for key, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn:  # the first touches the memory
                seconds[key].append(time.perf_counter() - start)
    ms = {key: 1e3 * float(np.median(times)) / (LOGISTIC_TURNS if isinstance(key, tuple) else 1)
          for key, times in seconds.items()}  # fmt: skip
    floor = ms["product"] * 4 * ROWS * FEATURES * CLASSES / (2 * len(square) ** 3)
    for name in ("gradient", "Hessian product"):
        yield {
            "kernel": f"logistic {name}", "shape": [ROWS, FEATURES, CLASSES], "dtype": np.dtype(dtype).name,
            "run_ms": ms[name, "fast"], "plain_ms": ms[name, "plain"], "floor_ms": floor, "read_ms": ms["copy"] / 2,
        }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "logs" / "bench_kernels.jsonl")
    options = parser.parse_args()
    columns = {
        "run_us": "run us", "mpixel_per_s": "Mpixel/s", "floor_mpixel_per_s": "floor", "percent_of_floor": "% of floor",
        "best_percent_of_floor": "(best)",
        "plain_mpixel_per_s": "plain", "times_plain": "x plain", "compile_s": "compile s", "plain_compile_s": "plain s",
    }  # fmt: skip
    digits = {"times_plain": 1, "compile_s": 2, "plain_compile_s": 2}
    about = {
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": jax.devices()[0].device_kind,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with open(options.out, "w", encoding="utf-8") as log:
        print(json.dumps(about), file=log)
        print(f"{'kernel':16s}{'shape':>14s}{'dtype':>9s}" + "".join(f"{title:>12s}" for title in columns.values()))
        for shape, loops in SIZES.items():
            for dtype in (np.float32, np.float64):
                for row in measure(shape, *loops, dtype):
                    print(json.dumps(row), file=log)
                    size = " x ".join(map(str, shape))
                    numbers = ("" if row[k] is None else f"{row[k]:.{digits.get(k, 0)}f}" for k in columns)
                    print(f"{row['kernel']:16s}{size:>14s}{row['dtype']:>9s}" + "".join(f"{v:>12s}" for v in numbers))
        for dtype in (np.float32, np.float64):
            for row in measure_logistic(dtype):
                print(json.dumps(row), file=log)
                numbers = ", ".join(f"{row[k + '_ms']:.1f} ms {k}" for k in ("run", "plain", "floor", "read"))
                print(f"{row['kernel']:26s}{row['dtype']:>9s}  {numbers}")


if __name__ == "__main__":
    main()
