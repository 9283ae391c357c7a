"""What `bsd68` learns and tests: the images, both phases of learning, whole test images."""

import os
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from bilevel import problems
from bilevel.problems import _learning as learning
from bilevel.problems import data
from bilevel.problems.denoiser import WEIGHTS, Denoiser
from bilevel.problems.denoiser import record as certified_record
from experiments._harness import record

jax.config.update("jax_enable_x64", True)

SIGMA, SEED, EVERY = 25 / 255, 0, 25
# SHA-256 of all files of a folder in the order of their names, one behind the other: cat *.png | sha256sum
FOLDERS = {
    "bsd400": (400, "210c2ed3e3072767c7689455d36525e1a3e9244968967a9097364c40ad24474a"),
    "bsd68": (68, "141797011cfb0901713499be26b4c320b9facb0683f5cd88af3528a73c2a2c2e"),
}


class Kind(NamedTuple):
    """What is learnt, from how many mini-batches, and on how many patches and at what cost with certificates."""

    regulariser: problems.AbstractRegulariser
    steps: int
    patches: int
    max_cost: int


KINDS = {
    "tv-25": Kind(problems.TV(isotropic=True), 100, 400, 3000),
    "ridge-25": Kind(problems.Ridge(), 400, 64, 2000),
    "weak-25": Kind(problems.Ridge(weak=True), 1000, 64, 2000),
}


class Setting(NamedTuple):
    """Patches to learn from, whole images to test on, and six crops of them for the curve over time."""

    given: learning.Examples
    clean: list[np.ndarray]
    noisy: list[np.ndarray]
    config: dict
    smoke: bool

    def crops(self) -> tuple[np.ndarray, np.ndarray]:
        side = min(128, *(n for image in self.clean for n in image.shape))
        chosen = range(0, len(self.clean), max(1, len(self.clean) // 6))
        return tuple(np.stack([images[k][:side, :side] for k in chosen]) for images in (self.clean, self.noisy))


def needs() -> None:
    """Raises FileNotFoundError where BSD400 or BSD68 are missing, and says what to fetch."""
    root = os.environ.get("BILEVEL_DATA")
    for name, (count, digest) in FOLDERS.items():
        found = len(list(Path(root, name).glob("*.png"))) if root else 0
        if found != count:
            where = f"{found} of them in {Path(root, name)}" if root else "BILEVEL_DATA is not set"
            raise FileNotFoundError(
                f"{name}, {count} grey PNG images, is not here ({where}). Fetch it from github.com/cszn/DnCNN "
                f"(Train400 and BSD68 of its training and test data; SHA-256 of the files one behind the other "
                f"{digest}), and set BILEVEL_DATA to the folder that holds {', '.join(FOLDERS)}."
            )


def images(packaged: bool, smoke: bool) -> list[list[np.ndarray]]:
    """Whole images to learn from, and to test on."""
    if packaged:
        size = 64 if smoke else 256
        train, test = data.denoising_set("photographs", sigma=SIGMA, size=size, held_out=2)
        return [list(part.clean.astype(np.float32)) for part in (train, test)]
    folders = [sorted(Path(os.environ["BILEVEL_DATA"], name).glob("*.png")) for name in FOLDERS]
    return [[np.asarray(Image.open(p), np.float32) / 255 for p in paths] for paths in folders]


def setting(packaged: bool, smoke: bool) -> Setting:
    train, test = images(packaged, smoke)
    rng = np.random.default_rng(SEED + 68)
    noisy = [(x + SIGMA * rng.standard_normal(x.shape)).astype(np.float32) for x in test]
    given = learning.examples(train, SIGMA, size=16 if smoke else 64, count=16 if smoke else 400, seed=SEED)
    config = {"source": "photographs" if packaged else "bsd400", "test_images": len(test), "sigma": SIGMA, "seed": SEED}
    return Setting(given, test, noisy, config, smoke)


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every denoiser that is not finished in the log; where the data are the field's own, for the package too."""
    here, done = setting(packaged, smoke), log.finished()
    for name in (bar := tqdm([name for name in KINDS if name not in done], disable=None)):
        bar.set_description(name)
        denoiser = learn(log, name, here)
        test(log, name, denoiser, here)
        if not packaged:
            denoiser.save(WEIGHTS / f"{name}.npz")
            print(name, log.path, flush=True)
    if "noisy" not in done:
        log.write("config", "noisy", **here.config)
        log.write("end", "noisy", psnr=[float(data.psnr(y, x)) for x, y in zip(here.clean, here.noisy, strict=True)])


def learn(log: record.Log, name: str, here: Setting) -> Denoiser:
    """Both phases."""
    regulariser, steps, few, max_cost = Kind(KINDS[name][0], 2, 4, 100) if here.smoke else KINDS[name]
    kept = log.checkpoints / f"{log.path.stem}, {name}.npz"  # between the phases
    if f"{name}, mini-batches" not in log.finished():
        kept.parent.mkdir(exist_ok=True)
        mini_batches(log, name, Denoiser(regulariser, regulariser.start(dtype=np.float32)), steps, here).save(kept)
    learnt, quick = kept.with_name(f"{kept.stem}, learnt.npz"), Denoiser.load(kept)
    if f"{name}, certified" in log.finished() and learnt.exists():  # interrupted while it was tested
        return Denoiser.load(learnt)
    problem = learning.Weighed(here.given.of(slice(few), float), regulariser)
    start = jax.tree.map(lambda leaf: np.asarray(leaf, float), quick.theta)
    found = record.solve(
        log, f"{name}, certified", here.config | {"patches": few}, problem, start, max_cost=max_cost, progress=False
    )
    denoiser = Denoiser(regulariser, found.theta, SIGMA, quick.run | certified_record(found))
    denoiser.save(learnt)
    return denoiser


def mini_batches(log: record.Log, name: str, start: Denoiser, steps: int, here: Setting) -> Denoiser:
    """The first phase; seconds without those of judging."""
    run, (clean, noisy), theta = f"{name}, mini-batches", here.crops(), start.theta
    log.write("config", run, patches=len(here.given.clean), steps=steps, **here.config, **record.environment())

    def psnr(theta):
        return float(np.mean(data.psnr(start._replace(theta=theta).denoise(noisy, 0), clean)))

    log.write("step", run, k=0, value=None, cost=0, seconds=0.0, psnr=psnr(theta))
    spent, began = 0.0, time.perf_counter()
    for k, step in enumerate(learning.mini_batches(here.given, *start[:2], steps=steps, seed=SEED), 1):
        theta = step.theta
        if k % EVERY == 0 or k == steps:
            spent += time.perf_counter() - began
            log.write("step", run, k=k, value=step.value, cost=step.cost, seconds=spent, psnr=psnr(theta))
            began = time.perf_counter()
    log.write("end", run, seconds=spent, cost=step.cost, steps=steps)
    told = {"patches": len(here.given.clean), "mini_batches": steps, "seconds_of_mini_batches": spent}
    return start._replace(theta=theta, sigma=SIGMA, run=told)


def test(log: record.Log, name: str, denoiser: Denoiser, here: Setting) -> None:
    """PSNR of every test image, and crops of the first few for the figure."""
    began = time.perf_counter()
    images = [denoiser.denoise(y) for y in tqdm(here.noisy, desc=name, disable=None)]
    seconds = time.perf_counter() - began
    known = problems.Restoration(None, here.noisy[0][None], denoiser.regulariser).constants(
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), denoiser.theta)
    )
    psnr = [float(data.psnr(x, clean)) for x, clean in zip(images, here.clean, strict=True)]
    log.write("config", name, **here.config, **record.environment())
    log.write("end", name, psnr=psnr, seconds=seconds, mu=float(known.mu), L=float(known.L))
    side = min(96, *here.clean[0].shape)
    kept = range(0, len(images), max(1, len(images) // 3))
    pictures = {"clean": here.clean, "noisy": here.noisy, name: images}
    path = log.path.with_suffix(".npz")
    old = dict(np.load(path)) if path.exists() else {}
    new = {key: np.stack([np.uint8(255 * v[k][-side:, :side].clip(0, 1)) for k in kept]) for key, v in pictures.items()}
    np.savez_compressed(path, **old | new)
