"""The same calls on every backend that JAX has here, in float64 and float32: seconds, and whether certificates hold.

The first steps of the certified default on total variation (400 images of BSD400), Fields of Experts (16 crops) and
logistic regression (MNIST, 1 440 penalties), epochs of a CNN with nine hyperparameters on Fashion-MNIST, and bytes a
second of total variation's kernels beside those of a copy. Each run is a process of its own on one backend. What each
certifies is then judged in float64 on a CPU: |value - f(theta)| <= value_error, or the program ends with an error.
`make devices`.
"""

import json
import subprocess
import sys

import jax
import numpy as np
from matplotlib import pyplot as plt
from tqdm import tqdm

from bilevel.problems import labelled
from experiments._harness import console, record, style
from experiments.scale import devices_runs as runs
from experiments.scale.growth_runs import bsd400

jax.config.update("jax_platforms", "cpu")  # of this process: it only judges

STEPS = {"total variation": 6, "fields of experts": 6, "logistic": 10}
DTYPES = ("float64", "float32")
EPOCHS = 6
KERNELS = ("gradient", "Hessian product", "step", "copy")


def needs() -> None:
    bsd400(), labelled.mnist(), labelled.fashion_mnist()


def backends() -> list[str]:
    """The CPU, and what JAX takes by itself."""
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    told = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1]
    return list(dict.fromkeys([told, "cpu"]))


def in_a_process(backend: str, **arguments) -> dict:
    command = [sys.executable, "-m", runs.__name__, backend, json.dumps(arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def cases(backend: str, packaged: bool, smoke: bool) -> dict[str, dict]:
    """By name, what is passed."""
    kinds = [{"case": "kernels"} | ({"shape": (9, 96, 96)} if smoke else {})]
    kinds += [{"case": case, "steps": 2 if smoke else steps} for case, steps in STEPS.items()]
    made = [kind | {"dtype": dtype} for kind in kinds for dtype in DTYPES]
    made.append({"case": "tune", "dtype": "float32", "epochs": 3 if smoke else EPOCHS})
    return {f"{one['case']}, {one['dtype']}, {backend}": one | {"packaged": packaged} for one in made}


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Accelerators first; judged last, which any machine can do for another's log."""
    made = {name: (b, arguments) for b in backends() for name, arguments in cases(b, packaged, smoke).items()}
    for name, (backend, arguments) in tqdm(made.items(), disable=None):
        if name not in log.finished():
            found = in_a_process(backend, **arguments)
            log.write("config", name, backend=backend, **arguments)
            if "at" in found:  # theta, a leaf after the other
                np.savez_compressed(log.path.with_suffix(".npz"), **kept(log), **{name: np.array(found.pop("at"))})
            log.write("end", name, **found)
    for name, run in tqdm(record.ended(log).items(), disable=None):
        if "certified" in run.end and f"{name}, judged" not in log.finished():
            judge(log, name, run, packaged)


def kept(log: record.Log) -> dict[str, np.ndarray]:
    """The thetas of runs in the log."""
    path, done = log.path.with_suffix(".npz"), log.finished()
    return {name: v for name, v in np.load(path).items() if name in done} if path.exists() else {}


def judge(log: record.Log, name: str, run: record.Run, packaged: bool) -> None:
    log.write("config", f"{name}, judged", **record.environment())
    truth = in_a_process("cpu", judge=True, packaged=packaged, case=run.config["case"], theta=kept(log)[name].tolist())
    log.write("end", f"{name}, judged", **truth)
    if run.end["certified"] and ratio(run.end, truth) > 1:
        raise RuntimeError(f"{name}: {run.end['value']} +- {run.end['value_error']} is certified, f is {truth}")


def ratio(end: dict, truth: dict) -> float:
    """How far off the value was, over what was certified: at most 1."""
    return abs(end["value"] - truth["value"]) / (end["value_error"] + truth["value_error"])


def rows(found: dict[str, record.Run], case: str) -> list[tuple[str, dict[str, dict]]]:
    """By dtype, the last lines by backend, with the judge's."""
    parts = [(name.split(", "), run.end) for name, run in found.items() if not name.endswith(", judged")]
    truth = {name.removesuffix(", judged"): run.end for name, run in found.items() if name.endswith(", judged")}
    mine = {
        (dtype, backend): end | {"judged": truth.get(f"{of}, {dtype}, {backend}")}
        for (of, dtype, backend), end in parts
        if of == case
    }
    backends = sorted({backend for _, backend in mine})
    return [
        (dtype, {b: mine[dtype, b] for b in backends if (dtype, b) in mine})
        for dtype in DTYPES
        if any((dtype, b) in mine for b in backends)
    ]


def report(found: dict[str, record.Run]) -> None:
    """A row for each case and dtype, a column for each backend."""
    names = sorted({run.config["backend"] for run in found.values() if "backend" in run.config})
    lines = []
    for case in (*STEPS, "tune"):
        for dtype, ends in rows(found, case):
            own = [ends.get(name) for name in names]
            shown = [f"{end[kind]:.2f}" if end else "-" for kind in ("cold", "warm") for end in own]
            others = [end for name, end in ends.items() if name != "cpu"]
            times = "/".join(f"{ends['cpu']['warm'] / end['warm']:.0f}" for end in others) or "-"
            judged = [end for end in own if end and end["judged"]]
            checked = [(f"{end['cost']:.0f}", f"{ratio(end, end['judged']):.1g}") for end in judged]
            numbers = ["/".join(column) for column in zip(*checked, strict=True)] or ["-", "-"]
            lines.append((f"{case}, {dtype}", *shown, times, *numbers))
    seconds = [f"{kind}, {name}" for kind in ("first", "again") for name in names]
    print(console.table(("seconds", *seconds, "times", "cost", "off/certified"), lines))
    of = [kernel for kernel in KERNELS if kernel != "copy"]
    lines = [
        (f"{dtype}, {name}", *(f"{end['rates'][kernel] / 1e9:.0f}" for kernel in (*of, "copy")))
        for dtype, ends in rows(found, "kernels")
        for name, end in ends.items()
    ]
    print("\n" + console.table(("GB/s of total variation's kernels", *of, "copy"), lines))


def draw(found: dict[str, record.Run], beside, figures) -> None:
    style.use()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), width_ratios=(3, 2))
    inks = {"cpu": "#0072B2", "float64": 1.0, "float32": 0.5}
    for axis, cases in ((left, (*STEPS, "tune")), (right, ("kernels",))):
        labels, at = [], 0
        for case in cases:
            for dtype, ends in rows(found, case):
                parts = ["warm"] if axis is left else KERNELS
                for part in parts:
                    for k, (backend, end) in enumerate(ends.items()):
                        height = end["warm"] if axis is left else end["rates"][part] / 1e9
                        ink = inks.get(backend, "#C1121F")
                        axis.bar(at + 0.4 * k, height, 0.4, color=ink, alpha=inks[dtype], label=f"{backend}, {dtype}")
                    labels.append((at + 0.2, f"{case if axis is left else part}\n{dtype}"))
                    at += 1
        axis.set_yscale("log")
        axis.set_xticks(*zip(*labels, strict=True), fontsize=6, rotation=40, ha="right")
    left.set(ylabel="seconds, compiled", title="a run of the same steps or epochs")
    right.set(ylabel="GB/s", title="kernels of total variation")
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    left.legend(handles.values(), handles.keys(), fontsize=6.5)
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("devices", __doc__.splitlines()[0], solve, report, draw, needs=needs)
