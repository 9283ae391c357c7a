"""Denoisers learnt from BSD400, tested on the 68 whole images of BSD68: isotropic TV, ridge, weakly convex ridge.

    min over theta  1/n sum 1/2 ||xhat_i(theta) - clean_i||^2,   xhat_i = argmin 1/2 ||x - noisy_i||^2 + R(x, theta)

n = 400 patches 64 x 64, noise of 25/255: Adam on mini-batches, then the certified default on 64 of the patches. Reads
bsd400/ and bsd68/ in the folder that BILEVEL_DATA names, or else packaged photographs.
"""

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from experiments._harness import console, record, style
from experiments.imaging.bsd68_runs import KINDS, needs, solve

# On these images and this noise level, though not on the same noise; from arXiv 2211.12461 and arXiv 2308.10542.
PUBLISHED = {"CRR-NN, convex": 28.10, "BM3D": 28.57, "WCRR-NN, weakly convex": 28.68}
AIMS = {"tv-25": 27.45, "ridge-25": 28.10, "weak-25": 28.60}
INKS = dict(zip(KINDS, ("#8A8A8A", "#0072B2", "#C1121F"), strict=True))


def report(runs: dict[str, record.Run]) -> None:
    """The tables, from the log alone."""
    rows = [("noisy", f"{np.mean(runs['noisy'].end['psnr']):.2f}", *["-"] * 6)]
    for name, aim in AIMS.items():
        quick, sure, end = (runs[f"{name}{part}"] for part in (", mini-batches", ", certified", ""))
        numbers = (end.end["mu"], end.end["L"], quick.end["seconds"], sure.end["seconds"], end.end["seconds"])
        shown = [f"{v:.{d}f}" for v, d in zip(numbers, (3, 0, 0, 0, 0), strict=True)]
        rows.append((name, f"{np.mean(end.end['psnr']):.2f}", f"{aim:.2f}", *shown))
    rows += [(f"{name} (published)", f"{value:.2f}", *["-"] * 6) for name, value in PUBLISHED.items()]
    head = ("mean PSNR, dB", "PSNR", "aim", "mu, proven", "L", "s, mini-batches", "s, certified", "s, testing")
    print(console.table(head, rows) + "\n")
    rows = []
    for name in KINDS:
        run = runs[f"{name}, certified"]
        value, error = run.steps["value"], run.steps["value_error"]
        ends = [f"{value[k]:.4f} +- {error[k]:.0e}" for k in (0, -1)]
        known = run.end["gradient_norm"] is not None  # the budget may end a run before the last gradient is known
        slope = f"{run.end['gradient_norm']:.1e} +- {run.end['gradient_error']:.0e}" if known else "-"
        rows.append((name, *ends, slope, run.end["steps"], f"{run.end['cost']:.0f}", run.end["certified"]))
    head = ("certified part", "f at its start", "f at its end", "gradient", "steps", "cost", "certified")
    print(console.table(head, rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """PSNR of crops of the test images against seconds of learning, and crops."""
    style.use()
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, ink in INKS.items():
        steps = runs[f"{name}, mini-batches"].steps
        axes.plot(steps["seconds"], steps["psnr"], color=ink, label=name, marker="o", ms=3)
    axes.set(xlabel="seconds of mini-batches, compiling included", ylabel="PSNR of six crops, dB")
    axes.legend()
    style.save(figure, f"{figures}_seconds.png")
    pictures = dict(np.load(beside.with_suffix(".npz")))
    names = ("noisy", *KINDS, "clean")
    figure, axes = plt.subplots(len(pictures["clean"]), len(names), figsize=(10.5, 2.3 * len(pictures["clean"])))
    for i, row in enumerate(axes):
        for a, name in zip(row, names, strict=True):
            error = pictures[name][i] / 255 - pictures["clean"][i] / 255
            quality = "" if name == "clean" else f"{-10 * np.log10(np.mean(error**2)):.1f} dB"
            style.picture(a, pictures[name][i] / 255, f"{name}\n{quality}" if i == 0 else quality)
    style.save(figure, f"{figures}_pictures.png")


if __name__ == "__main__":
    console.main("bsd68", "Learnt denoisers on BSD68.", solve, report, draw, needs=needs)
