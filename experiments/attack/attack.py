"""true <= bound (1 + 16 u) + the reference's own error: the certificates under attack, in every draw.

Random draws of every problem with constants vouched for, in float32 and float64, by every lower-level solver, at
accuracies from 10 to below what the dtype has, from cold and warm starts, in units from 1e-22 to 1e6, in float64 from
1e-170 to 1e60; and whole descents, in boxes and without. The truth comes from NumPy's 80-bit floats, by formulas and
code of its own (terms.py, references.py); what is compared with it stands in checks.py, the draws
in families.py. A violation ends the program with an error, after its tables and figure.
"""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib import pyplot as plt

from experiments._harness import console, record, style
from experiments.attack.checks import attack
from experiments.attack.families import everything
from experiments.attack.findings import EDGES, QUANTITIES

jax.config.update("jax_enable_x64", True)

KEPT = 8  # families whose programs a process keeps: they are mapped memory, of which a process may have so much
SHOWN = ("x", "value", "corrected", "gradient")
attacked = 0  # by this process


def attack_named(everything: Callable, name: str, count: int) -> dict[str, Any]:
    global attacked
    attacked += 1
    if attacked % KEPT == 0:
        jax.clear_caches()
    return attack(everything()[name], count)


def solve(log: record.Log, packaged: bool, smoke: bool, everything: Callable = everything) -> None:
    """Every family of `everything()` that is not in the log, on all cores."""
    families = everything()
    left = [name for k, name in enumerate(families) if name not in log.finished() and (not smoke or k % 12 == 0)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with concurrent.futures.ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        counts = {name: 4 if smoke else families[name].count for name in left}
        running = {pool.submit(attack_named, everything, name, counts[name]): name for name in left}
        for k, future in enumerate(concurrent.futures.as_completed(running)):
            name, found = running[future], future.result()
            log.write("config", name, dtype=families[name].dtype.__name__, **record.environment())
            log.write("end", name, **found)
            wrong = sum(q["violations"] for q in found["quantities"].values())
            print(f"{k + 1}/{len(left)} {name}: {found['draws']} draws, {wrong} violations", flush=True)


def grouped(runs: dict[str, record.Run], everything: Callable) -> dict[str, list[dict[str, Any]]]:
    """The families whose names agree up to the colon, together."""
    groups: dict[str, list] = {}
    for name in everything():
        if name in runs:
            groups.setdefault(name.split(":")[0], []).append(runs[name].end)
    return groups


def total(ends: list[dict[str, Any]], quantity: str, field: str) -> int:
    return sum(end["quantities"][quantity][field] for end in ends if quantity in end["quantities"])


def row(name: str, ends: list[dict[str, Any]]) -> tuple:
    cells = []
    for quantity in SHOWN:
        worst = [end["quantities"][quantity]["worst"] or 0 for end in ends if quantity in end["quantities"]]
        wrong = total(ends, quantity, "violations")
        cells.append((f"{max(worst):.3g}" if worst else "-") + f" ({wrong})" * (wrong > 0))
    for quantity in ("converged", "rise"):
        cells.append(f"{total(ends, quantity, 'violations')} of {total(ends, quantity, 'count')}")
    counts = {field: sum(end[field] for end in ends) for field in ("draws", "estimated", "estimated_held", "blunt")}
    held = f"{counts['estimated_held']} of {counts['estimated']}" if counts["estimated"] else "-"
    return name, counts["draws"], *cells, held, counts["blunt"]


def report(runs: dict[str, record.Run], everything: Callable = everything) -> None:
    groups = grouped(runs, everything)
    rows = [row(name, ends) for name, ends in groups.items()]
    rows.append(row("all", [end for ends in groups.values() for end in ends]))
    header = ("largest true/bound (violations)", "draws", *SHOWN, "wrong converged", "rises", "estimates held", "blunt")
    print(console.table(header, rows))
    print("blunt: comparisons in which the reference's own error is more than half the bound\n")
    results: dict[str, int] = {}
    for ends in groups.values():
        for end in ends:
            for text, count in end["results"].items():
                results[text] = results.get(text, 0) + count
    print(console.table(("result", "how often"), sorted(results.items(), key=lambda item: -item[1])))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path, everything: Callable = everything) -> None:
    """Of each group and quantity the histogram of log10(bound / true), dark where most draws are."""
    style.use()
    groups = grouped(runs, everything)
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(12, 0.19 * len(groups) + 1.2), sharey=True)
    for a, quantity in zip(axes, SHOWN, strict=True):
        rows = np.zeros((len(groups), len(EDGES) - 1))
        for row, ends in zip(rows, groups.values(), strict=True):
            for end in ends:
                row += end["quantities"].get(quantity, {}).get("histogram", np.zeros_like(row))
        share = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
        a.pcolormesh(EDGES, np.arange(len(groups) + 1), share, cmap="Blues", vmax=0.4)
        a.axvline(0, color=style.COLOURS["quasi-newton"], lw=1)
        a.set(title=quantity, xlabel="log10(bound / true)", yticks=np.arange(len(groups)) + 0.5)
        a.grid(False)
    axes[0].set_yticklabels(list(groups), fontsize=7)
    axes[0].invert_yaxis()
    style.save(figure, figures.with_suffix(".png"))
    violations = sum(total(ends, q, "violations") for ends in groups.values() for q in QUANTITIES)
    if violations:
        raise SystemExit(f"{violations} violations: the log names draws of each family under `examples`")


if __name__ == "__main__":
    console.main("attack", "The certificates against references in 80-bit floats.", solve, report, draw)
