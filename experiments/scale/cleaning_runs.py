"""The runs of `cleaning`: the default over `problems.Reweighted`, four methods that were made for this, two bounds.

All have the same data and start (every weight 1/2, w = 0); the default in float64, the others in float32. They are
judged by the model that their weights have, solved anew: a w that is not the lower level's minimum may have any loss.
That is not timed, and programs are compiled before the clock starts. The other methods' step sizes are those of a grid
with the least clean loss after an eighth of the time of a run.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import bilevel
from bilevel import problems
from experiments._harness import record
from experiments.scale import batches, bome, cleaning_data, f2sa, saba, stocbio
from experiments.scale.cleaning_data import Clock, Images

PENALTY, BATCH, LOOKS, EPS = 0.4, 50, 12, 1e-2  # a ridge of 0.2 without the half
INNER = dict.fromkeys(("SABA", "stocBiO", "F2SA"), (0.003, 0.01, 0.03)) | {"BOME": (0.03, 0.1, 0.3)}
OUTER = dict.fromkeys(("SABA", "stocBiO", "F2SA"), (100.0, 1e3, 1e4)) | {"BOME": (1e3, 1e4, 1e5)}
EXTRA = {"SABA": 0.0, "stocBiO": 0.0, "F2SA": 0.1, "BOME": 0.5}
METHODS = {"SABA": saba, "stocBiO": stocbio, "F2SA": f2sa, "BOME": bome}
OURS, NONE, TRUTH = "certified default", "all weights 1/2", "weights by the truth"


def in_batches(data: Images) -> batches.Batches:
    """Rows in the order they have, which is random; in float32, in which these methods are twice as fast."""

    def split(a):
        kind = np.float32 if a.dtype == np.float64 else a.dtype
        return jnp.asarray(a[: len(a) // BATCH * BATCH].reshape(-1, BATCH, *a.shape[1:]), kind)

    A, y, A_valid, y_valid = map(split, (data.A, data.y, data.A_valid, data.y_valid))
    return batches.Batches(A, y, A_valid, y_valid, jnp.asarray(PENALTY, A.dtype))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(step: Callable, data: batches.Batches, state: Any, key: jax.Array, rates: batches.Rates, first, last):
    """So many steps at once."""
    return jax.lax.fori_loop(first, last, lambda t, s: step(data, s, jax.random.fold_in(key, t), rates), state)


def judge(data: Images, problem: problems.Reweighted, theta: np.ndarray, w: np.ndarray) -> dict[str, float]:
    """Of the model of these weights; `own_error`: the test error of w."""
    theta, w = np.asarray(theta, np.float64).ravel(), np.asarray(w, np.float64)
    if not (np.isfinite(theta).all() and np.isfinite(w).all()):
        return dict.fromkeys(("valid_loss", "test_error", "precision", "recall", "own_error"), np.nan)
    x = bilevel.solve_lower(problem, theta, eps=EPS, x0=w, solver=bilevel.NewtonCG()).x
    own = cleaning_data.judge(data, theta, w)["test_error"]
    return cleaning_data.judge(data, theta, x) | {"own_error": own}


def race(
    log: record.Log, run: str, module: ModuleType, data: Images, problem: problems.Reweighted, split: batches.Batches,
    rates: tuple, budget: float, looks: int, **config: Any,
) -> None:  # fmt: skip
    """One run of `budget` processor seconds, judged so often."""
    log.write("config", run, rates=rates, budget=budget, **config, **record.environment())
    rates, key = batches.Rates(*(jnp.asarray(rate, split.A.dtype) for rate in rates)), jax.random.key(0)
    start = jax.jit(module.start)

    def move(state, first, last):
        return jax.block_until_ready(advance(module.step, split, state, key, rates, first, last))

    move(start(split, rates), 0, 1)
    clock = Clock()
    state, done, more, look = jax.block_until_ready(start(split, rates)), 0, 1, 0
    while True:
        before = clock.stop()["cpu_seconds"]
        clock.go()
        state = move(state, done, done + more)
        spent = clock.stop()
        done += more
        over = spent["cpu_seconds"] >= budget or not bool(jnp.isfinite(state.theta).all())
        if over or spent["cpu_seconds"] >= (look + 1) * budget / looks:
            judged = judge(data, problem, state.theta, state.w)
            log.write("judged", run, k=look, steps=done, **spent, **judged)
            look += 1
        if over:
            break
        each = (spent["cpu_seconds"] - before) / more
        more = max(1, min(4 * more, int((budget - spent["cpu_seconds"]) / each), int(budget / looks / each)))
        clock.go()
    theta = np.asarray(state.theta)
    log.write("end", run, steps=done, **spent, **judged, **cleaning_data.histogram(data, theta))


def ours(log: record.Log, run: str, data: Images, max_cost: float, **config: Any) -> None:
    """The default method without a word about tolerances or steps; the problem's construction is timed, too."""
    log.write("config", run, max_cost=max_cost, **config, **record.environment())
    make = partial(problems.Reweighted, data.A, data.y, data.A_valid, data.y_valid, penalty=PENALTY)
    theta0 = np.zeros(len(data.y), data.A.dtype)
    bilevel.solve(make(), theta0, max_steps=2, progress=False)
    clock, look = Clock(), 0

    def callback(state, info):
        nonlocal look
        spent = clock.stop()
        log.write("judged", run, k=look, steps=info.steps, cost=info.counts.cost, **spent,
                  **cleaning_data.judge(data, state.theta, state.point.lower.x))  # fmt: skip
        look += 1
        clock.go()

    solution = bilevel.solve(make(), theta0, max_cost=max_cost, callback=callback, progress=False)
    spent = clock.stop()
    judged = cleaning_data.judge(data, solution.theta, solution.x)
    log.write("judged", run, k=look, steps=solution.steps, cost=solution.cost, **spent, **judged)
    said = record.summary(solution)
    said = {key: value for key, value in said.items() if key not in ("seconds", "compile_seconds", "theta")}
    log.write("end", run, **said, **spent, **judged, **cleaning_data.histogram(data, solution.theta))


def bound(log: record.Log, run: str, data: Images, theta: np.ndarray, **config: Any) -> None:
    """The model of weights that nobody learnt."""
    log.write("config", run, **config, **record.environment())
    problem = problems.Reweighted(data.A, data.y, data.A_valid, data.y_valid, penalty=PENALTY)
    theta, clock = theta.astype(data.A.dtype), Clock()
    solved = bilevel.solve_lower(problem, theta, eps=1e-3)
    log.write("end", run, **clock.stop(), **cleaning_data.judge(data, theta, solved.x))


def every(log: record.Log, sizes: tuple, packaged: bool, budget: float, max_cost: float, grid: int) -> None:
    """All runs on one set that are not in the log; `grid`: how many of each kind of step it has."""
    data, kind, done = cleaning_data.images(sizes, packaged, 0), f"{sizes[0]}", log.finished()
    config = {"sizes": sizes, "packaged": packaged, "batch": BATCH, "penalty": PENALTY}
    for name, theta in ((NONE, np.zeros(sizes[0])), (TRUTH, np.where(data.wrong, -30.0, 30.0))):
        if (run := f"{kind}, {name}") not in done:
            bound(log, run, data, theta, **config)
    if (run := f"{kind}, {OURS}") not in done:
        ours(log, run, data, max_cost, **config)
    split = in_batches(data)
    problem = problems.Reweighted(data.A, data.y, data.A_valid, data.y_valid, penalty=PENALTY)
    for name, method in METHODS.items():
        losses = {}
        pairs = [(a, b) for a in INNER[name][-grid:] for b in OUTER[name][:grid]]
        for pair in tqdm(pairs, desc=f"{kind}, {name}", disable=None):
            run, rates = f"{kind}, grid, {name}, {pair[0]:g}, {pair[1]:g}", (*pair, EXTRA[name])
            if run not in done:
                race(log, run, method, data, problem, split, rates, budget / 8, 1, method=name, **config)
            losses[pair] = record.read(log.path)[run].end["valid_loss"]
        best = min(losses, key=lambda pair: np.nan_to_num(losses[pair] or np.inf, nan=np.inf))
        if (run := f"{kind}, {name}") not in done:
            rates = (*best, EXTRA[name])
            race(log, run, method, data, problem, split, rates, budget, LOOKS, method=name, **config)
