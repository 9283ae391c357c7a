"""A regulariser learnt from 2 000 patches: all of them from the first step on, or mini-batches first.

Convex ridge regularisers, 24 filters 5 x 5, on patches of BSD400. The certified default on all patches for half an hour
of a processor; uncertified mini-batches and then the same default, for a third of that; ISGD for a third, its first
step the best of a grid. `make sampled`.
"""

from pathlib import Path

import jax
import numpy as np
from matplotlib import pyplot as plt

from experiments._harness import console, record, style
from experiments.scale import sampled_runs as runs_of
from experiments.scale.sampled_runs import FULL, ISGD, SAMPLED, VALUE

jax.config.update("jax_enable_x64", True)

RATES = (0.1, 0.3, 1.0, 3.0)
INKS = {FULL: "#222222", SAMPLED: "#C1121F", ISGD: "#0072B2"}


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    here, done = runs_of.setting(packaged, smoke), log.finished()
    if SAMPLED not in done:
        runs_of.sampled(log, here)
    if VALUE not in done:
        runs_of.of_mini_batches(log, here)
    if FULL not in done:
        runs_of.full(log, here)
    for rate in RATES[:2] if smoke else RATES:
        if (name := f"grid, {rate:g}") not in done:
            runs_of.isgd(log, here, name, rate, here.budget / 45, 1)
    grid = {run.config["rate"]: run.end["f"] for name, run in record.ended(log).items() if name.startswith("grid")}
    if ISGD not in done:
        best = min(grid, key=lambda rate: np.inf if grid[rate] is None else grid[rate])
        runs_of.isgd(log, here, ISGD, best, here.budget / 3, 6)


def reached(run: record.Run, f: float, key: str) -> str:
    """The seconds until the curve was at f, or below."""
    there = np.flatnonzero(run.judged["f"] <= f)
    return f"{run.judged[key][there[0]]:.0f}" if len(there) else "-"


def report(runs: dict[str, record.Run]) -> None:
    rows, f = [], runs[FULL].judged["f"][-1]
    for name, told in ((FULL, FULL), (SAMPLED, VALUE), (ISGD, ISGD)):
        judged, end = runs[name].judged, runs[told].end
        last = np.argmax(judged["steps"])  # before a finish that took no step
        spent = (f"{judged[key][last]:.0f}" for key in ("cpu_seconds", "seconds"))
        certificate = f"{end['cpu_seconds']:.0f}" if told == VALUE else "-"
        value = f"{end['value']:.4f} +- {end['value_error']:.0e}"
        numbers = f"{judged['f'][last]:.4f}", f"{judged['steps'][last]:.0f}", *spent, certificate
        rows.append((name, value, *numbers, reached(runs[name], f, "cpu_seconds")))
    head = ("", "f of all patches", "of 256", "steps", "CPU s", "s", "their value: CPU s", f"CPU s to {f:.4f} of 256")
    print(console.table(head, rows), end="\n\n")
    end = runs[SAMPLED].end
    seconds, cost = end["cpu_seconds"] - end["mini_batch_cpu_seconds"], end["cost"]
    print(f"after the mini-batches: {seconds:.0f} CPU s of the default, cost {cost}, {end['steps']} steps")
    print(f"f = {end['value']:.4f} +- {end['value_error']:.0e}: {end['result']}")
    grid = [(f"{run.config['rate']:g}", str(run.end["steps"]), f"{run.end['f'] or np.nan:.4f}")
            for name, run in runs.items() if name.startswith("grid")]  # fmt: skip
    print("\n" + console.table(("ISGD, first step", "steps", "f of 256"), grid))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    figure, ax = plt.subplots(figsize=(6, 3.6))
    for name, ink in INKS.items():
        judged = runs[name].judged
        ax.plot(np.maximum(judged["cpu_seconds"], 1), judged["f"], ".-", ms=4, color=ink, label=name)
    ax.axvline(runs[SAMPLED].end["mini_batch_cpu_seconds"], color=INKS[SAMPLED], ls=":", lw=1)
    ax.set(xlabel="processor seconds", ylabel="f on 256 patches", xscale="log")
    ax.legend()
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("sampled", __doc__.splitlines()[0], solve, report, draw, needs=runs_of.needs)
