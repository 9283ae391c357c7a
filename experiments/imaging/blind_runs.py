"""What `blind` learns: TV and ridge from three upper levels, TV for each test image alone, and scikit-image's way."""

import time
from typing import NamedTuple

import jax
import numpy as np
from skimage.restoration import calibrate_denoiser, denoise_tv_chambolle
from tqdm import tqdm

import bilevel
from bilevel import problems
from bilevel.problems import _learning as learning
from bilevel.problems import data
from bilevel.problems.denoiser import Denoiser
from experiments._harness import record
from experiments.imaging.bsd68_runs import SEED, SIGMA, images
from experiments.imaging.bsd68_runs import needs as needs

jax.config.update("jax_enable_x64", True)

# the upper levels; Stein's step of a third of sigma, so that single precision does for the ridge
FROM = {
    "clean images": lambda clean, noisy, R: problems.Restoration(clean, noisy, R),
    "SURE": lambda clean, noisy, R: problems.Sure(noisy, SIGMA, R, step=SIGMA / 3),
    "pixels left out": lambda clean, noisy, R: problems.JInvariant(noisy, R, masks=1),
}
KINDS = {"TV": problems.TV(isotropic=True), "ridge": problems.Ridge()}
ALONE = ("SURE", "pixels left out", "calibrate_denoiser")
SIDE, COUNT, STEPS = 128, 1200, 150  # of the crops that are tested; patches; mini-batches
MOST = 10_000  # what an image alone may cost: far above what most need to converge
WEIGHTS = np.geomspace(0.03, 0.5, 10)  # of denoise_tv_chambolle


class Setting(NamedTuple):
    """Patches to learn from, whose clean ones are for "clean images" alone, and images to test on."""

    patches: np.ndarray
    noisy_patches: np.ndarray
    clean: list[np.ndarray]
    noisy: list[np.ndarray]
    config: dict
    smoke: bool


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    here, done = setting(packaged, smoke), log.finished()
    if "noisy" not in done:
        log.write("config", "noisy", **here.config, **record.environment())
        log.write("end", "noisy", psnr=[float(data.psnr(y, x)) for x, y in zip(here.clean, here.noisy, strict=True)])
    for name in FROM:
        if f"TV, {name}" not in done:
            one(log, f"TV, {name}", here, by_default(log, name, here))
    for name in ALONE:
        if f"each image alone, {name}" not in done:
            alone(log, name, here)
    for name in FROM:
        if f"ridge, {name}" not in done:
            one(log, f"ridge, {name}", here, by_mini_batches(name, here))


def setting(packaged: bool, smoke: bool) -> Setting:
    """Patches of all images in turn, 64 x 64; the central pixels of the test images, with the noise of `bsd68`."""
    train, test = images(packaged, smoke)
    rng = np.random.default_rng(SEED + 68)
    noisy = [(x + SIGMA * rng.standard_normal(x.shape)).astype(np.float32) for x in test]
    tested = [[central(x, SIDE) for x in found] for found in (test, noisy)]
    rng, size = np.random.default_rng(SEED), 16 if smoke else 64
    chosen = [train[k % len(train)] for k in range(16 if smoke else COUNT)]
    corners = [[rng.integers(side - size + 1) for side in x.shape] for x in chosen]
    clean = np.stack([x[i : i + size, j : j + size] for x, (i, j) in zip(chosen, corners, strict=True)])
    config = {"source": "photographs" if packaged else "bsd400", "sigma": SIGMA, "seed": SEED, "side": SIDE}
    return Setting(clean, data.add_noise(clean, SIGMA, seed=SEED), *tested, config, smoke)


def central(image: np.ndarray, size: int) -> np.ndarray:
    i, j = (max(0, (side - size) // 2) for side in image.shape)
    return image[i : i + size, j : j + size]


def by_default(log: record.Log, name: str, here: Setting) -> tuple[Denoiser, int, float]:
    """Learnt by the certified default on 64 patches, its cost and seconds."""
    R, few, began = KINDS["TV"], slice(4 if here.smoke else 64), time.process_time()
    problem = FROM[name](here.patches[few].astype(float), here.noisy_patches[few].astype(float), R)
    found = record.solve(log, f"TV, {name}, learning", here.config | {"patches": few.stop}, problem, R.start(),
                         max_cost=60 if here.smoke else 3000, progress=False)  # fmt: skip
    return Denoiser(R, found.theta, SIGMA), found.cost, time.process_time() - began


def by_mini_batches(name: str, here: Setting) -> tuple[Denoiser, int, float]:
    """The same by Adam alone, on all patches."""
    R, rng, began = KINDS["ridge"], np.random.default_rng(SEED), time.process_time()
    chosen = learning.groups(len(here.patches), rng)
    batches = [FROM[name](here.patches[group], here.noisy_patches[group], R) for group in chosen]
    # the adjoint's right side is sigma^2/step per pixel with SURE, so that x enters the gradient with more weight
    accuracy = learning.Accuracy(1e-3 if name == "SURE" else 4e-3, 6e-3)
    steps, theta = 2 if here.smoke else STEPS, R.start(dtype=np.float32)
    made = learning.adam(batches, theta, accuracy, steps=steps, rng=rng)
    *_, last = tqdm(made, total=steps, desc=f"ridge, {name}", disable=None)
    return Denoiser(R, last.theta, SIGMA), last.cost, time.process_time() - began


def one(log: record.Log, run: str, here: Setting, learnt: tuple[Denoiser, int, float]) -> None:
    """PSNR of every test image."""
    denoiser, cost, seconds = learnt
    images = [denoiser.denoise(y) for y in tqdm(here.noisy, desc=run, disable=None)]
    psnr = [float(data.psnr(x, clean)) for x, clean in zip(images, here.clean, strict=True)]
    log.write("config", run, **here.config, **record.environment())
    log.write("end", run, psnr=psnr, cost=cost, seconds=seconds)


def alone(log: record.Log, name: str, here: Setting) -> None:
    """Each noisy test image by itself: nothing else is known, but sigma to SURE."""
    way = {"SURE": by_itself, "pixels left out": by_itself, "calibrate_denoiser": by_scikit_image}[name]
    psnr, costs, began = [], [], time.process_time()
    for clean, noisy in zip(here.clean, tqdm(here.noisy, desc=f"alone, {name}", disable=None), strict=True):
        x, cost = way(noisy, name, 60 if here.smoke else MOST)
        psnr.append(float(data.psnr(x, clean)))
        costs.append(cost)
    log.write("config", f"each image alone, {name}", **here.config)
    seconds = time.process_time() - began
    log.write("end", f"each image alone, {name}", psnr=psnr, cost=sum(costs), seconds=seconds)


def by_itself(noisy: np.ndarray, name: str, max_cost: int) -> tuple[np.ndarray, int]:
    """Weight and smoothing of TV by the certified default, and what they make of the image."""
    problem = FROM[name](None, noisy[None].astype(float), KINDS["TV"])
    found = bilevel.solve(problem, KINDS["TV"].start(), max_cost=max_cost, progress=False)
    return Denoiser(KINDS["TV"], found.theta, SIGMA).denoise(noisy), found.cost


def by_scikit_image(noisy: np.ndarray, name: str, max_cost: int) -> tuple[np.ndarray, int]:
    """The best of ten weights, each judged by the pixels of one mask, as is its default; then the image as it is."""
    noisy = noisy.astype(float)
    _, (tried, losses) = calibrate_denoiser(noisy, denoise_tv_chambolle, {"weight": WEIGHTS}, extra_output=True)
    return denoise_tv_chambolle(noisy, **tried[int(np.argmin(losses))]), 0
