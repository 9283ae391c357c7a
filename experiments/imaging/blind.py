"""Learning to denoise with and without clean images: squared error, Stein's estimate, pixels foretold from others.

Isotropic TV (the certified default) and the convex ridge (mini-batches alone) on the same patches of BSD400 with noise
of 25/255, tested on the central 128 x 128 pixels of BSD68. And, from the noisy test image alone: TV by either, image by
image, beside scikit-image's `calibrate_denoiser` of `denoise_tv_chambolle`. Reads bsd400/ and bsd68/ in the folder that
BILEVEL_DATA names, or else packaged photographs. `make blind`.
"""

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from experiments._harness import console, record, style
from experiments.imaging.blind_runs import ALONE, FROM, KINDS, needs, solve

INKS = dict(zip(FROM, ("#8A8A8A", "#0072B2", "#C1121F"), strict=True))


def found(runs: dict[str, record.Run], many: int) -> list[str]:
    """Kinds of which so many ways, the first ones, are finished."""
    return [kind for kind in KINDS if {f"{kind}, {name}" for name in list(FROM)[:many]} <= runs.keys()]


def report(runs: dict[str, record.Run]) -> None:
    """From the log alone."""
    rows = []
    for kind in found(runs, 1):
        best = np.mean(runs[f"{kind}, {next(iter(FROM))}"].end["psnr"])
        for name in [name for name in FROM if f"{kind}, {name}" in runs]:
            end = runs[f"{kind}, {name}"].end
            mean = np.mean(end["psnr"])
            rows.append((f"{kind}, {name}", f"{mean:.2f}", f"{mean - best:+.2f}", end["cost"], f"{end['seconds']:.0f}"))
    for name in [name for name in ALONE if f"each image alone, {name}" in runs]:
        end = runs[f"each image alone, {name}"].end
        mean = np.mean(end["psnr"])
        rows.append((f"each image alone, {name}", f"{mean:.2f}", "-", end["cost"] or "-", f"{end['seconds']:.0f}"))
    head = ("learnt from", "mean PSNR, dB", "beside clean images", "cost", "CPU s")
    print(f"noisy: {np.mean(runs['noisy'].end['psnr']):.2f} dB, {len(runs['noisy'].end['psnr'])} images\n")
    print(console.table(head, rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """What is lost without clean images, image by image."""
    style.use()
    figure, axes = plt.subplots(1, len(found(runs, 2)), figsize=(9, 3.6), sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], found(runs, 2), strict=True):
        best = np.asarray(runs[f"{kind}, {next(iter(FROM))}"].end["psnr"])
        for name, ink in list(INKS.items())[1:]:
            if f"{kind}, {name}" not in runs:
                continue
            axis.plot(best, np.asarray(runs[f"{kind}, {name}"].end["psnr"]) - best, ".", color=ink, label=name)
        axis.set(title=kind, xlabel="PSNR, learnt from clean images, dB")
        axis.axhline(0, color="#777777", lw=0.8)
    axes[0, 0].set(ylabel="difference without, dB")
    axes[0, 0].legend()
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("blind", "Denoisers learnt without clean images.", solve, report, draw, needs=needs)
