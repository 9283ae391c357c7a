"""What the default holds: XLA's arguments + results + temporaries of its programs, and the peak of a whole process.

Programs are compiled, not run. The peak is that of `solve` on photographs in a process of its own, 144 and 288 of
96 x 96: what 144 more add to it, over the bytes of their noisy images.

`make bench`, or `python -m experiments.benchmarks.bench_memory`.
"""

import resource
import statistics
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

import bilevel
from bilevel import problems
from bilevel._inputs import make_box
from bilevel._outer import moves, programs
from bilevel.problems import data
from experiments._harness import console, record, style

jax.config.update("jax_enable_x64", True)

SIGMA, TOL, SIDE, TRIES = 0.1, 1e-2, 96, 3
PARTS = {"argument": "arguments", "output": "results", "temp": "temporaries"}


def photographs(count: int) -> problems.TotalVariation:
    clean = data.photographs(SIDE).pixels
    clean = np.concatenate([clean] * -(-count // len(clean)))[:count]
    return problems.TotalVariation(clean, data.add_noise(clean, SIGMA, seed=0))


def size(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))


def held(lowered) -> dict[str, int]:
    """Bytes of arguments, results and temporaries."""
    analysis = lowered.compile().compiled.memory_analysis()
    return {part: getattr(analysis, f"{part}_size_in_bytes") for part in PARTS}


def of_programs(log: record.Log, smoke: bool) -> None:
    """The programs over images, in sizes of x; the direction's at many hyperparameters in a box, in sizes of theta."""
    count = 2 if smoke else 1085  # 1e7 unknowns
    problem, theta = photographs(count), jnp.full(2, -3.0)
    x, log_name = problem.guess(theta), f"{count} of {SIDE} x {SIDE}"
    method = bilevel.quasi_newton().settle(problem, theta, x)
    state = jax.eval_shape(lambda x: method.predictor.init(theta, x), x)
    few, eps = np.asarray(99, np.int32), jnp.ones(())
    point = jax.eval_shape(
        lambda x: programs.value.evaluate(problem, method.solver, theta, x, eps, jnp.asarray(99), None, 0), x
    )
    point = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), point)  # one that was solved looks the same
    curvature = method.solver.curvature(x)
    lowered = {
        "lower level": programs.evaluate.lower(problem, method.solver, theta, x, eps, few, curvature, few),
        "hypergradient": programs.differentiate.lower(problem, theta, point.lower, x, eps, few, few),
        "correction": programs.correct.lower(problem, theta, point, x),
    }
    for name, program in lowered.items():
        log.write("config", f"{name}, {log_name}", **record.environment())
        log.write("end", f"{name}, {log_name}", unit="x", bytes=size(x), **held(program))
    # from step to step: x, rho, q, the solver's curvature and the predictor's points
    log.write("config", f"state, {log_name}", **record.environment())
    whole = size((point, state, x))
    log.write("end", f"state, {log_name}", unit="x", bytes=size(x), argument=whole, output=0, temp=0)
    many = jnp.zeros(1000 if smoke else 1_000_000)
    memory, name = method.direction.init(many), f"direction in a box, {many.size} hyperparameters"
    query = moves.query.lower(method.direction, memory, many, many, eps, make_box((-1.0, 1.0), many))
    log.write("config", name, pairs=len(memory.pairs.products), **record.environment())
    log.write("end", name, unit="100 pairs", bytes=200 * many.nbytes, **held(query))


def of_processes(log: record.Log, smoke: bool) -> None:
    """Peaks of whole processes; the median of a few tries, as they differ by a tenth."""
    counts = (2, 4) if smoke else (144, 288)
    peaks = []
    for count in counts:
        tries = [int(subprocess.check_output([sys.executable, "-m", __spec__.name, str(count)])) for _ in range(TRIES)]
        peaks.append(statistics.median(tries))
    name = f"process, {counts[1]} against {counts[0]}"
    added = (counts[1] - counts[0]) * SIDE**2 * 8
    log.write("config", name, tries=TRIES, **record.environment())
    log.write("end", name, unit="data", bytes=added, argument=0, output=0, temp=peaks[1] - peaks[0])


def peak(count: int) -> int:
    bilevel.solve(photographs(count), np.full(2, -3.0), tol=TOL, progress=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    of_programs(log, smoke)
    of_processes(log, smoke)


def report(runs: dict[str, record.Run]) -> None:
    rows = []
    for name, run in runs.items():
        end = run.end
        parts = [end[part] / end["bytes"] for part in PARTS]
        rows.append((name, end["unit"], *(f"{part:.2f}" for part in parts), f"{sum(parts):.2f}"))
    print(console.table(("what", "in sizes of", *PARTS.values(), "all"), rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """Bars of arguments, results and temporaries, in sizes of x."""
    style.use()
    shown = {name: run.end for name, run in runs.items() if run.end["unit"] == "x"}
    figure, ax = plt.subplots(figsize=(6, 2.4))
    left = np.zeros(len(shown))
    for part in PARTS:
        width = np.array([end[part] / end["bytes"] for end in shown.values()])
        ax.barh(list(shown), width, left=left, label=PARTS[part])
        left += width
    ax.set(xlabel="arrays like x")
    ax.legend()
    style.save(figure, figures.with_suffix(".png"))


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].isdecimal():
        print(peak(int(sys.argv[1])))
    else:
        console.main("bench_memory", __doc__.splitlines()[0], solve, report, draw)
