"""BSD68 at other noise: TV and the convex ridge learnt for 15/255 and 50/255; and BM3D, run here, at 25/255.

Learnt as in `bsd68`, from 400 patches 64 x 64 of BSD400: TV by mini-batches and the certified default, the ridge by
mini-batches alone. BM3D (the package `bm3d`, whose licence is for non-commercial use) is told the standard deviation
and nothing else, and gets the noise of `bsd68`. Reads bsd400/ and bsd68/ in the folder that BILEVEL_DATA names, or else
packaged photographs. `make bsd68_levels`.
"""

import itertools
import time
from pathlib import Path

import jax
import numpy as np
from matplotlib import pyplot as plt
from tqdm import tqdm

from bilevel.problems import Denoiser, data
from bilevel.problems import _learning as learning
from experiments._harness import console, record, style
from experiments.imaging.bsd68_runs import KINDS, SEED, SIGMA, images, needs

jax.config.update("jax_enable_x64", True)

LEVELS, LEARNT, PART = (15, 50), {"TV": "tv-25", "ridge": "ridge-25"}, 17
PUBLISHED = {15: 31.07, 25: 28.57, 50: 25.62}  # BM3D's, on these images and other noise: arXiv 1608.03981


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    train, test = images(packaged, smoke)

    def noisy(sigma):
        rng = np.random.default_rng(SEED + 68)
        return [(x + sigma * rng.standard_normal(x.shape)).astype(np.float32) for x in test]

    for kind, level in itertools.product(LEARNT, LEVELS):
        run = f"{kind}, {level}"
        if run not in log.finished():
            began = time.perf_counter()
            denoiser, seconds = learnt(kind, train, level / 255, smoke), time.perf_counter() - began
            judge(log, run, denoiser.denoise, test, noisy(level / 255), learning=seconds, **(denoiser.run or {}))
    for k in range(0, len(test), PART):  # in parts: it takes long, and what is interrupted goes on with the next
        if f"BM3D, 25, {k}" not in log.finished():
            part = slice(k, k + PART)
            judge(log, f"BM3D, 25, {k}", block_matching, test[part], noisy(SIGMA)[part])


def learnt(kind: str, train: list[np.ndarray], sigma: float, smoke: bool) -> Denoiser:
    """Both phases of TV, mini-batches of the ridge."""
    R, steps, few, most = KINDS[LEARNT[kind]]
    size, count = (16, 16) if smoke else (64, 400)
    given = learning.examples(train, sigma, size=size, count=count, seed=SEED)
    theta, steps = R.start(dtype=np.float32), 2 if smoke else steps
    made = learning.mini_batches(given, R, theta, steps=steps, seed=SEED)
    *_, last = tqdm(made, total=steps, desc=f"{kind}, {sigma:.3f}", disable=None)
    if kind == "ridge":
        return Denoiser(R, last.theta, sigma)
    found = learning.certified(given, R, last.theta, count=min(few, count), max_cost=60 if smoke else most)
    known = {"certified": bool(found.certified), "value": found.value, "value_error": found.value_error}
    return Denoiser(R, found.theta, sigma, known | {"converged": found.converged})


def block_matching(noisy: np.ndarray) -> np.ndarray:
    """BM3D as it comes, both of its stages."""
    from bm3d import bm3d

    return bm3d(noisy.astype(float), SIGMA)


def judge(log: record.Log, run: str, denoise, clean: list, noisy: list, **known) -> None:
    """PSNR of every test image."""
    began = time.perf_counter()
    found = [denoise(y) for y in tqdm(noisy, desc=run, disable=None)]
    seconds = time.perf_counter() - began
    log.write("config", run, **record.environment())
    psnr = [[float(data.psnr(x, v)) for x, v in zip(found, clean, strict=True)]]
    psnr += [[float(data.psnr(y, v)) for y, v in zip(noisy, clean, strict=True)]]
    log.write("end", run, psnr=psnr[0], noisy=psnr[1], seconds=seconds, **known)


def report(runs: dict[str, record.Run]) -> None:
    """The table, from the log alone."""
    rows = []
    for name in dict.fromkeys(run.rpartition(", ")[0] if run.count(", ") == 2 else run for run in runs):
        ends = [run.end for part, run in runs.items() if part == name or part.startswith(f"{name}, ")]
        (kind, level), psnr, noisy = (
            name.split(", "),
            *(np.concatenate([e[k] for e in ends]) for k in ("psnr", "noisy")),
        )
        spent = f"{ends[0]['learning']:.0f}" if kind in LEARNT else "-"
        shown = (f"{np.mean(noisy):.2f}", f"{np.mean(psnr):.2f}", f"{PUBLISHED[int(level)]:.2f}", len(psnr), spent)
        rows.append((f"{level}/255, {kind}", *shown, f"{sum(end['seconds'] for end in ends):.0f}"))
    head = ("mean PSNR, dB", "noisy", "denoised", "BM3D (published)", "images", "s, learning", "s, testing")
    print(console.table(head, sorted(rows)))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """What the ridge gains over total variation, image by image."""
    style.use()
    levels = [level for level in LEVELS if {f"{kind}, {level}" for kind in LEARNT} <= runs.keys()]
    figure, axes = plt.subplots(1, max(1, len(levels)), figsize=(8, 3.4), sharey=True, squeeze=False)
    for axis, level in zip(axes[0], levels, strict=False):
        base, ridge = (np.asarray(runs[f"{kind}, {level}"].end["psnr"]) for kind in LEARNT)
        axis.plot(base, ridge - base, ".", color="#0072B2")
        axis.axhline(0, color="#777777", lw=0.8)
        axis.set(title=f"noise of {level}/255", xlabel="PSNR of total variation, dB")
    axes[0, 0].set(ylabel="the ridge above it, dB")
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("bsd68_levels", "BSD68 at other noise, and BM3D.", solve, report, draw, needs=needs)
