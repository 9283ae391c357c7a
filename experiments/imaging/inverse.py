"""Restoration behind four operators, with regularisers learnt for each: blur, holes, masked Fourier, tomography.

    min over theta  1/n sum 1/2 ||xhat_i(theta) - clean_i||^2,   xhat_i = argmin 1/2 ||A x - y_i||^2 + R(x, theta)

Noise of 0.01. Isotropic TV, and on small crops the convex ridge: as learnt on denoising, with its weight by a grid of
twenty or by the certified default; and learnt for the operator by the certified default. Blur and holes: crops of
BSD400 to learn from, of BSD68 to test on. The other two: slices of one head's average scan, at least 3 apart. Reads
bsd400/, bsd68/ and mri/ in the folder that BILEVEL_DATA names, or else packaged photographs. `make inverse`.
"""

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from experiments._harness import console, record, style
from experiments.imaging.inverse_data import TASKS, needs
from experiments.imaging.inverse_runs import KINDS, WAYS, solve

NEAR, ABOVE = 0.02, 0.1  # dB


def families(runs: dict[str, record.Run]) -> list[str]:
    """Tasks and kinds that are finished."""
    pairs = [(task, kind) for task in TASKS for kind in KINDS]
    return [f"{t}, {k}" for t, k in pairs if {t, *(f"{t}, {k}, {way}" for way in WAYS)} <= runs.keys()]


def numbers(runs: dict[str, record.Run], name: str) -> tuple[float, int, float]:
    """Mean PSNR, cost and CPU seconds of learning; of a learnt ridge those of its weight, where it starts, too."""
    family, way = name.rsplit(", ", 1)
    spent = [name] if way != "learnt" or "ridge" not in name else [f"{family}, weight", name]
    cost = sum(runs[f"{one}, solving"].end["cost"] for one in spent)
    clocks = [runs.get(f"{one}, seconds", runs[f"{one}, solving"]).end for one in spent]
    # of the process's seconds, compiling has the share that it has of those on the wall
    cpu = sum(c["cpu_seconds"] * (1 - c["compile_seconds"] / c["wall_seconds"]) for c in clocks)
    return float(np.mean(runs[name].end["psnr"])), cost, cpu


def report(runs: dict[str, record.Run]) -> None:
    """The tables, from the log alone."""
    rows, lost = [], []
    for family in families(runs):
        found = {way: numbers(runs, f"{family}, {way}") for way in WAYS}
        seen = runs[family.split(", ")[0]].end["psnr"]
        shown = [f"{found[way][0]:.2f}" for way in WAYS] + ["/".join(str(found[way][1]) for way in WAYS)]
        shown.append("/".join(f"{found[way][2]:.0f}" for way in WAYS))
        told = [runs[f"{family}, {way}, solving"].end for way in WAYS[1:]]
        shown.append("/".join("yes" if end["converged"] else "no" for end in told))
        rows.append((family, "-" if "tomography" in family else f"{np.mean(seen):.2f}", *shown))
        for way in WAYS[1:]:
            gain, seconds = found[way][0] - found["grid"][0], found[way][2] / found["grid"][2]
            if not (gain >= ABOVE or (gain >= -NEAR and seconds < 1)):
                lost.append(f"{family}, {way}: {gain:+.2f} dB beside the grid, in {seconds:.1f} times its seconds")
    head = ("mean PSNR, dB", "data", *WAYS, "cost", "CPU s", "converged")
    print(console.table(head, rows) + "\n")
    print(
        "cost and CPU seconds (all cores, compiling apart) of learning: grid/weight/learnt; converged: weight/learnt\n"
    )
    print(f"Neither {ABOVE} dB above the grid nor within {NEAR} dB of it in fewer seconds:")
    print("\n".join(lost or ["none"]))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """Truth, data, total variation by its grid, and the best that was learnt."""
    style.use()
    found = dict(np.load(beside.with_suffix(".npz")))
    tasks = [task for task in TASKS if task in runs]
    figure, axes = plt.subplots(len(tasks), 4, figsize=(9, 2.45 * len(tasks)))
    for row, task in zip(axes, tasks, strict=True):
        learnt = [f"{family}, {way}" for family in families(runs) if family.startswith(task) for way in WAYS[1:]]
        best = max(learnt, key=lambda name: np.mean(runs[name].end["psnr"]))
        names = {f"{task}, truth": task, f"{task}, data": "data", f"{task}, TV, grid": "TV, grid"}
        for axis, (name, title) in zip(row, (names | {best: best.split(", ", 1)[1]}).items(), strict=True):
            quality = f", {np.mean(runs[name].end['psnr']):.2f} dB" if name in runs else ""
            style.picture(axis, found[name] / 255, title + quality)
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("inverse", "Regularisers learnt for an operator.", solve, report, draw, needs=needs)
