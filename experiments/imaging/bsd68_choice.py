"""How `bsd68` learns, chosen without its test images: on every tenth image of BSD400, from patches of the others.

    g = 1/n sum over patches of w_i/2 ||xhat_i - clean_i||^2,      w_i = 1, or one over the error that TV makes there

and Adam's first rate. Isotropic TV and the convex ridge, mini-batches alone; judged by mean PSNR.
"""

import itertools
import time
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from tqdm import tqdm

from bilevel.problems import _learning as learning
from bilevel.problems import data
from bilevel.problems.denoiser import Denoiser
from experiments._harness import console, record, style
from experiments.imaging.bsd68_runs import KINDS, SEED, SIGMA, images, needs

WEIGHTS, RATES, EVERY = ("evenly", "by error"), (0.03, 0.05), 100


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    train, _ = images(packaged, smoke)
    left = train[::10]
    rng = np.random.default_rng(SEED + 400)
    noisy = [(x + SIGMA * rng.standard_normal(x.shape)).astype(np.float32) for x in left]
    learnt = [image for k, image in enumerate(train) if k % 10]
    by_error = learning.examples(learnt, SIGMA, size=16 if smoke else 64, count=16 if smoke else 400, seed=SEED)
    given = {"by error": by_error, "evenly": by_error._replace(weights=np.ones_like(by_error.weights))}
    for name, weights, rate in itertools.product(("tv-25", "ridge-25"), WEIGHTS, RATES):
        run = f"{name}, {weights}, {rate}"
        if run not in log.finished():
            one(log, run, name, given[weights], rate, 2 if smoke else KINDS[name].steps, (left, noisy))


def one(log, run, name, given, rate, steps, judges) -> None:
    """Mini-batches, and the mean PSNR of the images left out every so often; seconds without those of judging."""
    regulariser = KINDS[name].regulariser
    log.write("config", run, rate=rate, left_out=len(judges[0]), patches=len(given.clean), **record.environment())
    theta, spent, began = regulariser.start(dtype=np.float32), 0.0, time.perf_counter()
    made = learning.mini_batches(given, regulariser, theta, steps=steps, seed=SEED, rate=rate)
    for k, step in enumerate(tqdm(made, total=steps, desc=run, disable=None), 1):
        if k % EVERY == 0 or k == steps:
            spent += time.perf_counter() - began
            psnr = judged(Denoiser(regulariser, step.theta), *judges)
            log.write("step", run, k=k, value=step.value, cost=step.cost, seconds=spent, psnr=psnr)
            began = time.perf_counter()
    log.write("end", run, seconds=spent, cost=step.cost, steps=steps, psnr=psnr)


def judged(denoiser: Denoiser, clean: list[np.ndarray], noisy: list[np.ndarray]) -> float:
    return float(np.mean([data.psnr(denoiser.denoise(y), x) for x, y in zip(clean, noisy, strict=True)]))


def report(runs: dict[str, record.Run]) -> None:
    rows = [(*name.split(", "), f"{run.end['psnr']:.3f}", f"{run.end['seconds']:.0f}") for name, run in runs.items()]
    print(console.table(("denoiser", "patches weighed", "rate", "images left out, dB", "s"), rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for name, run in runs.items():
        kind, weights, rate = name.split(", ")
        panel = axes[int(kind == "ridge-25")]
        ink, line = "#0072B2" if weights == "evenly" else "#C1121F", "-" if rate == "0.03" else "--"
        panel.plot(run.steps["k"], run.steps["psnr"], line, color=ink, marker="o", ms=3, label=f"{weights}, {rate}")
        panel.set(title=kind, xlabel="mini-batches", ylabel="mean PSNR of images left out, dB")
    axes[0].legend(title="weighed, rate")
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("bsd68_choice", "How bsd68 learns, chosen without its test images.", solve, report, draw, needs=needs)
