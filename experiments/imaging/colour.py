"""Colour: one root for all channels of a pixel, beside a root for each channel.

    h(x, theta) = 1/2 ||x - y||^2 + e^w sum over pixels of sqrt(|Dx|^2 + nu^2),   |Dx|^2 over all three channels, or one

Central 256 x 256 pixels of the Kodak photographs in colour, noise of 25/255; weight and smoothing learnt by the default
method on every other one, tested on the rest; the vectorial one is the package's `tv-colour-25`. Reads kodak/ in the
folder that BILEVEL_DATA names, or else packaged photographs. `make colour`.
"""

import os
from pathlib import Path

import jax
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image
from tqdm import tqdm

import bilevel
from bilevel import problems
from bilevel.problems import data
from bilevel.problems.denoiser import WEIGHTS, Denoiser
from experiments._harness import console, record, style

jax.config.update("jax_enable_x64", True)

SIGMA, KINDS = 25 / 255, ("channel by channel", "vectorial")
PACKAGED = ("astronaut", "chelsea", "coffee", "rocket")  # scikit-image's, in colour


def needs() -> None:
    """Raises FileNotFoundError where the Kodak images are missing, and says what to fetch."""
    data.kodak(8)


def images(packaged: bool, size: int) -> np.ndarray:
    """(n, size, size, 3), the central pixels."""
    if packaged:
        from skimage import data as pictures

        found = [getattr(pictures, name)() for name in PACKAGED]
    else:
        paths = sorted(Path(os.environ["BILEVEL_DATA"], "kodak").glob("kodim*.png"))
        found = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    corners = [[(side - size) // 2 for side in image.shape[:2]] for image in found]
    return np.stack([v[i : i + size, j : j + size] / 255 for v, (i, j) in zip(found, corners, strict=True)])


def planes(x: np.ndarray) -> np.ndarray:
    """Channels as grey images."""
    return np.concatenate(np.moveaxis(x, -1, 1))


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """What is not finished in the log; where the data are Kodak's, the denoiser for the package."""
    if missing := [kind for kind in KINDS if kind not in log.finished()]:
        learn(log, missing, packaged, smoke)
    if not packaged:
        keep(record.read(log.path)[f"{KINDS[1]}, learning"])


def learn(log: record.Log, kinds: list[str], packaged: bool, smoke: bool) -> None:
    """Learning and testing of each kind, and crops for the figure."""
    clean = images(packaged, 24 if smoke else 256)
    noisy = data.add_noise(clean, SIGMA, seed=0)
    train, test, R = slice(0, None, 2), slice(1, None, 2), problems.TV(isotropic=True)
    pictures = {"clean": clean[test], "noisy": noisy[test]}
    for kind in tqdm(kinds, disable=None):
        shaped = planes if kind == KINDS[0] else np.asarray
        problem = problems.Restoration(shaped(clean[train]), shaped(noisy[train]), R)
        config = {"source": "photographs" if packaged else "kodak", "sigma": SIGMA, "images": len(clean[train])}
        limits = dict(max_cost=50 if smoke else 3000, progress=False)
        found = record.solve(log, f"{kind}, learning", config, problem, R.start(), **limits)
        y = shaped(noisy[test])
        x = np.asarray(bilevel.solve_lower(problems.Restoration(None, y, R), found.theta, eps=1e-3 * y.size**0.5).x)
        if kind == KINDS[0]:
            x = np.moveaxis(x.reshape(len(clean[test]), 3, *x.shape[1:]), 1, -1)
        psnr = [-10 * np.log10(np.mean((a - b) ** 2)) for a, b in zip(x, clean[test], strict=True)]
        log.write("config", kind, **config, **record.environment())
        log.write("end", kind, psnr=psnr, noisy=float(-10 * np.log10(np.mean((noisy - clean)[test] ** 2))))
        pictures[kind] = x
    cut = {name: np.uint8(255 * v[:3, -72:, -72:].clip(0, 1)) for name, v in pictures.items()}
    path = log.path.with_suffix(".npz")
    old = dict(np.load(path)) if path.exists() else {}
    np.savez_compressed(path, **old | cut)


def keep(run: record.Run) -> None:
    """The vectorial denoiser, with the log of its run."""
    names = ("cost", "seconds", "value", "value_error", "gradient_norm", "gradient_error")
    history = {name: [v if np.isfinite(v) else None for v in run.steps[name].tolist()] for name in names}
    told = {name: run.end[name] for name in ("certified", "converged", "steps", "cost")}
    told |= {"images": run.config["images"], "history": history}
    theta = {name: np.float32(leaf) for name, leaf in run.end["theta"].items()}
    Denoiser(problems.TV(isotropic=True), theta, SIGMA, told, colour=True).save(WEIGHTS / "tv-colour-25.npz")


def report(runs: dict[str, record.Run]) -> None:
    rows = []
    for kind in KINDS:
        learning, end = runs[f"{kind}, learning"].end, runs[kind].end

        numbers = f"{np.mean(end['psnr']):.2f}", learning["cost"], f"{learning['seconds']:.0f}"
        rows.append((kind, *numbers, "yes" if learning["converged"] and learning["certified"] else "no"))
    print(f"noisy: {runs[KINDS[0]].end['noisy']:.2f} dB; {len(runs[KINDS[0]].end['psnr'])} test images\n")
    print(console.table(("total variation", "dB", "cost of learning", "s", "converged, certified"), rows))
    better = np.subtract(runs[KINDS[1]].end["psnr"], runs[KINDS[0]].end["psnr"])
    print(
        f"\nvectorial is ahead on {np.sum(better > 0)} of {len(better)}, by {better.min():.2f} to {better.max():.2f} dB"
    )


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    pictures = dict(np.load(beside.with_suffix(".npz")))
    names = ("clean", "noisy", *KINDS)
    figure, axes = plt.subplots(len(pictures["clean"]), 4, figsize=(8, 2 * len(pictures["clean"])), squeeze=False)
    for row, i in zip(axes, range(len(axes)), strict=True):
        for axis, name in zip(row, names, strict=True):
            axis.imshow(pictures[name][i])
            axis.set(xticks=[], yticks=[], title=name if i == 0 else "")
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("colour", "Vectorial total variation in colour.", solve, report, draw, needs=needs)
