"""f(theta_k) in [value_k - value_error_k, value_k + value_error_k]: one line of a log, one point of a figure.

What the experiments share: the log they write and read, and how their figures look. A log is a file of JSON lines; per
run a line "config" (with versions and machine), one line "step" per outer step, and a line "end" once it is finished.
"""

import io
import json
import math
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import bilevel
from bilevel.meter import Counts

matplotlib.use("Agg")  # draws without a screen

HERE = Path(__file__).parent
MAX_FIGURE = 300_000  # bytes

# One colour per method, the same in every figure (Okabe and Ito: told apart by colour-blind readers too).
COLOURS = {
    "maid": "#0072B2",
    "fixed 1e-1": "#B5B5B5",
    "fixed 1e-3": "#8A8A8A",
    "fixed 1e-5": "#5C5C5C",
    "hoag geometric": "#009E73",
    "hoag quadratic": "#E69F00",
    "hoag cubic": "#CC79A7",
    "GradientDescent": "#8A8A8A",
    "Nesterov": "#0072B2",
    "LBFGS": "#D55E00",
    "NewtonCG": "#009E73",
}
INK, BOUND, GOOD = "#222222", "#E69F00", "#009E73"


def use() -> None:
    """Set matplotlib's defaults."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10.5,
            "axes.labelsize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#777777",
            "axes.labelcolor": INK,
            "xtick.color": "#555555",
            "ytick.color": "#555555",
            "text.color": INK,
            "axes.grid": True,
            "grid.color": "#E6E6E6",
            "grid.linewidth": 0.8,
            "axes.axisbelow": True,
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "image.cmap": "gray",
        }
    )


def save(figure: plt.Figure, path: str | os.PathLike) -> Path:
    """Write a PNG below 300 kB: 256 colours, and fewer dots per inch where that is not enough."""
    path, dpi = Path(path), plt.rcParams["savefig.dpi"]
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        raw, small = io.BytesIO(), io.BytesIO()
        figure.savefig(raw, dpi=dpi, format="png")
        image = Image.open(raw).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        image.save(small, format="PNG", optimize=True)
        if small.tell() < MAX_FIGURE:
            break
        dpi *= 0.9
    plt.close(figure)
    path.write_bytes(small.getvalue())
    return path


def picture(axes: plt.Axes, image: np.ndarray, title: str) -> None:
    """A grey image in [0, 1] without axes."""
    axes.imshow(image, vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()


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


class Log:
    """A file of JSON lines. `fresh=True` starts it again; otherwise new lines are added at its end."""

    def __init__(self, path: str | os.PathLike, *, fresh: bool = False):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            self.path.unlink(missing_ok=True)

    def write(self, kind: str, run: str, **values: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "run": run, **_plain(values)}, allow_nan=False) + "\n")


class Run(NamedTuple):
    """One run as read from a log: its settings, its steps as a dict of arrays, and its last line (None: unfinished)."""

    config: dict[str, Any]
    steps: dict[str, np.ndarray]
    end: dict[str, Any] | None


def read(path: str | os.PathLike) -> dict[str, Run]:
    """The runs of a log by name; where a name comes twice the later one counts. A last line cut short is left out."""
    lines: dict[str, tuple[dict, list, list]] = {}
    for text in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        kind, run = line.pop("kind"), line.pop("run")
        if kind == "config":
            lines[run] = line, [], []
        elif run in lines:
            lines[run][1 if kind == "step" else 2].append(line)
    return {
        run: Run(config, {key: _array([s[key] for s in steps]) for key in (steps or [{}])[0]}, (end or [None])[0])
        for run, (config, steps, end) in lines.items()
    }


def logged_solve(
    log: Log,
    run: str,
    config: dict[str, Any],
    problem: bilevel.AbstractProblem,
    theta0: np.ndarray,
    method: bilevel.Method,
    callback: Callable | None = None,
    extra: Callable[[bilevel.Solution, list[np.ndarray]], dict[str, Any]] | None = None,
    **options: Any,
) -> bilevel.Solution:
    """`bilevel.solve`, written to a log: theta_k, its numbers and its cost in line k. theta is a short vector here.

    `extra(solution, thetas)` is called afterwards for more to write into the last line.
    """
    thetas = []

    def remember(state, info):
        thetas.append(np.asarray(info.theta))
        if callback is not None:
            callback(state, info)

    solution = bilevel.solve(problem, theta0, method, callback=remember, **options)
    limits = {name: options[name] for name in ("tol", "max_cost", "max_steps") if name in options}
    log.write("config", run, theta0=np.asarray(theta0), **limits, **config, **environment())
    for k in range(len(thetas)):
        row = {name: column[k] for name, column in solution.history.items()}
        # values are compared to their last digits, the rest is not: logs stay small
        short = {name: float(f"{v:.4g}") for name, v in row.items() if name not in ("value", *Counts._fields, "cost")}
        log.write("step", run, k=k, theta=thetas[k], **row | short)
    log.write("end", run, **summary(solution), **(extra(solution, thetas) if extra else {}))
    return solution


def summary(solution: bilevel.Solution) -> dict[str, Any]:
    """A solution's numbers for a log's last line."""
    counts = solution.state.counts
    return {
        "theta": np.asarray(solution.theta),
        "value": solution.value,
        "value_error": solution.value_error,
        "gradient_norm": solution.gradient_norm,
        "gradient_error": solution.gradient_error,
        "tol": solution.state.tol,
        "certified": solution.certified,
        "converged": solution.converged,
        "result": str(bilevel.RESULTS[solution.result]),
        "steps": solution.state.steps,
        "cost": counts.cost,
        **counts._asdict(),
        "seconds": solution.state.seconds,
        "compile_seconds": solution.compile_seconds,
    }


def table(header: tuple[str, ...], rows: list[tuple]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    cells = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in (lines[0], "-" * len(lines[0]), *lines[1:]))


class CompileClock:
    """Seconds this process has spent in JAX's tracing, lowering and compiling since the clock was made."""

    def __init__(self):
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self.seconds += duration


def _array(values: list) -> np.ndarray:
    return np.array([math.nan if v is None else v for v in values] if not isinstance(values[0], list) else values)


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
