"""PSNR against seconds of learning: the certified default, HOAG, self-tuning, Adam over the same hypergradients.

    min over theta  1/n sum 1/2 ||xhat_i(theta) - clean_i||^2,   xhat_i = argmin 1/2 ||x - noisy_i||^2 + R(x, theta)

n = 16 patches 64 x 64 of BSD400, noise of 25/255, R isotropic TV or the convex ridge, float64, full batches. Judged by
mean PSNR of the central 96 x 96 pixels of every 25th image of BSD400, from which no patch is taken. `make bsd68_time`.
"""

from pathlib import Path

import jax
import numpy as np
import optax
from matplotlib import pyplot as plt
from tqdm import tqdm

import bilevel
from bilevel import problems
from bilevel.problems import data
from experiments._harness import console, record, style
from experiments.imaging.bsd68_runs import SEED, SIGMA, images, needs

jax.config.update("jax_enable_x64", True)

COUNT, SIZE, SIDE, EVERY, RATE = 16, 64, 96, 25, 0.05
EPS, DELTA = 4e-3, 6e-3  # Adam's accuracies, those of mini-batches in `bsd68`: see `bilevel.problems._learning`
KINDS = {"TV": (problems.TV(isotropic=True), 2000), "ridge": (problems.Ridge(), 5000)}  # and what a run may cost
INKS = {"certified default": "#C1121F", "HOAG": "#0072B2", "self-tuning": "#009E73", "Adam": "#8A8A8A"}


def methods(size: int) -> dict[str, bilevel.AbstractMethod]:
    """`size`: how many numbers x has."""
    accuracy = bilevel.Fixed(EPS * size**0.5, DELTA * size**0.5 / COUNT)
    adam = bilevel.Optax(optax.adam(RATE))
    return {
        "certified default": bilevel.quasi_newton(),
        "HOAG": bilevel.hoag(bilevel.Geometric(0.9)),
        "self-tuning": bilevel.self_tuning(optax.adam(RATE)),
        "Adam": bilevel.Method(accuracy, bilevel.Always(), adam, None, bilevel.Previous()),
    }


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    train, _ = images(packaged, smoke)
    every, size, rng = 2 if packaged else EVERY, 16 if smoke else SIZE, np.random.default_rng(SEED)
    left, learnt = train[::every], [image for k, image in enumerate(train) if k % every]
    clean = np.stack([cut(learnt[k % len(learnt)], size, rng) for k in range(COUNT)]).astype(float)
    judges = np.stack([cut(image, min(SIDE, size)) for image in left])
    noisy, seen = (data.add_noise(x, SIGMA, seed=SEED + k) for k, x in enumerate((clean, judges)))
    for kind, (R, most) in KINDS.items():
        problem = problems.Restoration(clean, noisy, R)

        def psnr(theta, x, R=R):
            found = problems.Denoiser(R, theta).denoise(seen, 0)
            return {"psnr": float(np.mean(data.psnr(found, judges)))}

        for name, method in tqdm(methods(noisy.size).items(), desc=kind, disable=None):
            run = f"{kind}, {name}"
            if run not in log.finished():
                config = {"patches": clean.shape, "judges": judges.shape}
                record.solve(log, run, config, problem, R.start(), method, judge=psnr, max_cost=60 if smoke else most,
                             tol=1e-12, progress=False)  # fmt: skip


def cut(image: np.ndarray, size: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """A patch anywhere, or the middle."""
    free = [side - size for side in image.shape]
    i, j = (n // 2 for n in free) if rng is None else (rng.integers(n + 1) for n in free)
    return image[i : i + size, j : j + size]


def curve(run: record.Run) -> tuple[np.ndarray, np.ndarray]:
    """Seconds, compiling left out, and PSNR; where judged."""
    return np.interp(run.judged["cost"], run.steps["cost"], run.steps["seconds"]), run.judged["psnr"]


def report(runs: dict[str, record.Run]) -> None:
    rows = []
    for name, run in runs.items():
        seconds, psnr = curve(run)
        goal = max(curve(other)[1][-1] for n, other in runs.items() if n.split(", ")[0] == name.split(", ")[0])
        near = [f"{v:.1f}" for v, quality in zip(seconds, psnr, strict=True) if quality >= goal - 0.05]
        end, ups = run.end, int(np.sum(np.diff(run.steps["value"]) > 0))
        shown = (f"{psnr[0]:.2f}", f"{psnr[-1]:.2f}", (near or ["never"])[0], f"{end['value']:.4f}")
        rows.append((name, *shown, end["steps"], ups, end["cost"], f"{seconds[-1]:.0f}"))
    head = ("", "dB, start", "dB, end", "s to best - 0.05", "f, end", "steps", "of them up", "cost", "s")
    print(console.table(head, rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    figure, axes = plt.subplots(1, len(KINDS), figsize=(9, 3.6))
    for axis, kind in zip(axes, KINDS, strict=True):
        for name, ink in INKS.items():
            if f"{kind}, {name}" in runs:
                seconds, psnr = curve(runs[f"{kind}, {name}"])
                axis.plot(np.maximum(seconds, 0.05), psnr, color=ink, label=name, marker="o", ms=3)
        axis.set(title=kind, xscale="log", xlabel="seconds of learning, compiling left out")
    axes[0].set(ylabel="PSNR of images left out, dB")
    axes[-1].legend()
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("bsd68_time", "PSNR against seconds of learning.", solve, report, draw, needs=needs)
