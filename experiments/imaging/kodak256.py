"""Kodak-256: total variation, smoothed and exact, learnt from 25 images, beside the numbers published for them.

    F(theta) = sum over images of ||xhat_i(theta) - clean_i||^2

25 images, grey, their central 256 x 256 pixels, noise of 0.1. F is 2 n times the package's f; so are its bounds. Reads
kodak/ in the folder that BILEVEL_DATA names, or else packaged photographs.
"""

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from experiments._harness import console, record, style
from experiments.imaging.kodak256_runs import EXACT, needs, solve

# (F, seconds on their machines). Dynamic DFO-LS: Ehrhardt, Roberts, arXiv 2006.12674; exact TV, 13 evaluations: De los
# Reyes, Villacis, arXiv 2107.08100.
PUBLISHED = {
    "smoothed TV, 3 parameters": (3199.866, 4281.0),
    "smoothed TV, 1 parameter": (3190.342, 4902.0),
    EXACT: (3223.478, None),
}
AIMS = {"smoothed TV, 3 parameters": 3185.7, "smoothed TV, 1 parameter": 3190.342, EXACT: 3193.0}


def scaled(run: record.Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F, its bound and seconds, step by step."""
    n = run.config["images"]
    return 2 * n * run.steps["value"], 2 * n * run.steps["value_error"], run.steps["seconds"]


def report(runs: dict[str, record.Run]) -> None:
    """The tables, from the log alone."""
    rows = []
    for name, aim in AIMS.items():
        (F, error, seconds), end = scaled(runs[name]), runs[name].end
        below = np.flatnonzero(F + error <= aim)
        first = f"{seconds[below[0]]:.0f}" if len(below) else "-"
        theirs, spent = PUBLISHED[name]
        rows.append((
            name, f"{F[-1]:.3f} +- {error[-1]:.1g}", f"{aim:.3f}", first, end["cost"], f"{end['seconds']:.0f}",
            f"{end['compile_seconds']:.0f}", f"{theirs:.3f}", "-" if spent is None else f"{spent:.0f}",
        ))  # fmt: skip
    head = (
        "learnt",
        "F, certified",
        "aim",
        "s, certified below",
        "cost",
        "s",
        "s, compiling",
        "F published",
        "s there",
    )
    print(console.table(head, rows) + "\n")
    run = runs[f"{EXACT}, curve"]
    rows = [
        (f"{F:.4f}", f"{e:.2g}", f"{s:.1f}", int(c)) for F, e, s, c in zip(*scaled(run), run.steps["cost"], strict=True)
    ]
    print(f"Exact TV at a weight of {np.exp(run.config['theta']):.5f}, from nothing:\n")
    print(console.table(("F", "certified to", "s", "cost"), rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """F and its bound against seconds: while learning, and at the learnt weight."""
    style.use()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    least = min(np.min(scaled(runs[name])[0]) for name in AIMS)
    for name, ink in zip(AIMS, ("#0072B2", "#8A8A8A", "#C1121F"), strict=True):
        F, error, seconds = scaled(runs[name])
        left.errorbar(
            np.maximum(seconds, 0.1), F - least + 1, error, color=ink, label=name, marker="o", ms=3, capsize=2
        )
    left.set(xscale="log", yscale="log", xlabel="seconds, without compiling", ylabel="F above the least of all, plus 1")
    left.legend()
    F, error, seconds = scaled(runs[f"{EXACT}, curve"])
    right.plot(seconds, error, color="#C1121F", marker="o", ms=3, label="certified error of F")
    right.plot(seconds[:-1], np.abs(F[:-1] - F[-1]), color="#8A8A8A", marker="o", ms=3, label="|F - the last F|")
    right.set(xscale="log", yscale="log", xlabel="seconds at one weight, exact TV")
    right.legend()
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("kodak256", "Total variation on Kodak-256.", solve, report, draw, needs=needs)
