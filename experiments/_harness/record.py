"""f(theta_k) in [value_k - value_error_k, value_k + value_error_k]: one line of a log, one point of a figure.

The log that every experiment writes and reads: a file of JSON lines. Per run a line "config" (with versions and
machine), one line "step" per outer step, perhaps lines "judged" (see `solve`), and a line "end" once it is finished.
When an experiment ends, `packed` makes its log small.
"""

import json
import math
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

import bilevel
from bilevel._outer.method import Info
from experiments._harness import packed

SHORT = 8  # thetas of at most so many numbers are written in every step
PER_DECADE = 8  # a run is judged at most so often while its cost grows tenfold


class Log:
    """A file of JSON lines. `fresh=True` starts it again; otherwise new lines are added at its end."""

    def __init__(self, path: str | os.PathLike, *, fresh: bool = False):
        self.path = Path(path)
        self.checkpoints = self.path.parent.parent / "checkpoints"  # of runs that are not finished
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            self.path.unlink(missing_ok=True)
            for left in self.checkpoints.glob(f"{self.path.stem}, *.npz"):
                left.unlink()

    def write(self, kind: str, run: str, **values: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            line = {"kind": kind, "run": run, **_plain(values)}
            file.write(json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n")

    def finished(self) -> set[str]:
        """The names of the runs that have a last line."""
        return set(ended(self))


class Run(NamedTuple):
    """One run as read from a log: its settings, its steps and judgements as dicts of arrays, and its last line (None:
    unfinished)."""

    config: dict[str, Any]
    steps: dict[str, np.ndarray]
    judged: dict[str, np.ndarray]
    end: dict[str, Any] | None


def read(path: str | os.PathLike) -> dict[str, Run]:
    """The runs of a log by name, as `packed.read` has them."""
    return {
        run: Run(lines.config, _columns(lines.step), _columns(lines.judged), next(iter(lines.end.values()), None))
        for run, lines in packed.read(path).items()
    }


def solve(
    log: Log,
    run: str,
    config: dict[str, Any],
    problem: bilevel.AbstractProblem,
    theta0: PyTree,
    method: bilevel.AbstractMethod | None = None,
    *,
    judge: Callable[[PyTree, PyTree], dict[str, Any]] | None = None,
    **options: Any,
) -> bilevel.Solution:
    """`bilevel.solve`, written to a log as it goes; a run that was interrupted goes on where its checkpoint stands.

    `judge(theta, x)`, not counted, measures what the method itself does not know (accuracy on a test set, the exact
    value) whenever the cost has grown by 10^(1/8) since the last time, and at the end. `low` and `high` beside it are
    the ends of the interval in which f lies, as the method knew it when it accepted theta.
    """
    log.checkpoints.mkdir(exist_ok=True)
    checkpoint = log.checkpoints / f"{log.path.stem}, {run}.npz"
    if not checkpoint.exists():
        limits = {name: options[name] for name in ("tol", "max_cost", "max_steps", "bounds") if name in options}
        log.write("config", run, **_small(theta0, "theta0"), **limits, **config, **environment())
    next_judgement = 0.0

    def judged(state):
        nonlocal next_judgement
        cost, point = state.counts.cost, state.point
        if judge is not None and cost >= next_judgement:
            next_judgement = max(cost, 1) * 10 ** (1 / PER_DECADE)
            ends = {"low": float(point.value - point.below), "high": float(point.value + point.value_error)}
            log.write("judged", run, k=state.steps, cost=cost, **ends, **judge(state.theta, point.lower.x))

    def callback(state, info):
        log.write("step", run, **_row(info))
        judged(state)

    solution = bilevel.solve(
        problem, theta0, method, callback=callback, checkpoint=checkpoint, resume="auto", keep_state=True, **options
    )
    if solution.result == bilevel.RESULTS.interrupted:  # the experiment, too; --resume goes on from the checkpoint
        raise KeyboardInterrupt
    state, next_judgement = solution.state, 0.0
    last = {name: column[-1].item() for name, column in solution.history.items()}  # unseen where the budget ended it
    log.write("step", run, k=state.steps, **{n: v for n, v in last.items() if n != "x"}, **_small(solution.theta))
    judged(state)
    log.write("end", run, **summary(solution))
    checkpoint.unlink()
    return solution


def ended(log: Log) -> dict[str, Run]:
    """The finished runs of a log."""
    return {name: run for name, run in read(log.path).items() if run.end is not None}


def _row(info: Info) -> dict[str, Any]:
    """A step's numbers: values and counts to their last digit, the others to four, so that logs stay small."""
    names = ("value_error", "gradient_norm", "gradient_error", "eps", "delta", "step", "seconds")
    row = {"k": info.steps, "value": info.value, **{name: float(f"{getattr(info, name):.4g}") for name in names}}
    row |= info.counts._asdict() | {"cost": info.counts.cost}
    return row | _small(info.theta)


def summary(solution: bilevel.Solution) -> dict[str, Any]:
    """A solution's numbers for a log's last line."""
    counts = solution.counts
    return _small(solution.theta) | {
        "value": solution.value,
        "value_error": solution.value_error,
        "gradient_norm": solution.gradient_norm,
        "gradient_error": solution.gradient_error,
        "tol": solution.tol,
        "certified": solution.certified,
        "converged": solution.converged,
        "result": str(bilevel.RESULTS[solution.result]),
        "steps": solution.steps,
        "cost": counts.cost,
        **counts._asdict(),
        "seconds": solution.seconds,
        "compile_seconds": solution.compile_seconds,
    }


def environment() -> dict[str, Any]:
    """What a number may depend on: versions, cores, platform; nothing that names a machine or a place on it."""
    versions = {"python": platform.python_version()}
    for name in ("bilevel", "jax", "jaxlib", "equinox", "optax", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.machine()}"
    return {"versions": versions, "cores": cores, "platform": system, "device": jax.devices()[0].device_kind}


class CompileClock:
    """Seconds this process has spent in JAX's tracing, lowering and compiling since the clock was made."""

    def __init__(self):
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self.seconds += duration


def _columns(rows: dict[int, dict[str, Any]]) -> dict[str, np.ndarray]:
    rows = [rows[k] for k in sorted(rows)]
    return {key: _array([row[key] for row in rows]) for key in (rows or [{}])[0]}


def _array(values: list) -> np.ndarray:
    return np.array([math.nan if v is None else v for v in values] if not isinstance(values[0], list) else values)


def _small(theta: PyTree, name: str = "theta") -> dict[str, PyTree]:
    return {name: theta} if sum(np.size(leaf) for leaf in jax.tree.leaves(theta)) <= SHORT else {}


def _plain(value: Any) -> Any:
    """What JSON can hold; nan and infinite become null."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, np.ndarray | jax.Array):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, list | tuple | Iterator):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
