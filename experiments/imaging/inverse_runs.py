"""What `inverse` learns: for each task and kind of regulariser, a weight by grid, a weight learnt, and everything.

grid     e^s R(x, theta of denoising), s the best of twenty for the squared error of the images to learn from
weight   the same, s by the certified default
learnt   R(x, theta), all of theta by the certified default
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

import bilevel
from bilevel import problems
from bilevel.problems import data
from experiments._harness import record
from experiments.imaging.inverse_data import TASKS, Level, Setting, setting
from experiments.imaging.scaled import Scaled

jax.config.update("jax_enable_x64", True)

WAYS = ("grid", "weight", "learnt")
KINDS = {"TV": "tv-25", "ridge": "ridge-25"}  # learnt on denoising
SCALES, START, ELASTIC = np.linspace(-6.5, -0.5, 20), -3.0, -8.0
MODEST = {"weight": -5.0, "smoothing": -4.0, "elastic": ELASTIC}  # where learning total variation starts
MOST = {"TV, weight": 6000, "TV, learnt": 8000, "ridge, weight": 3000, "ridge, learnt": 8000}
TOL = 2e-6  # of the gradient, a pixel of an image: a log weight off by one is then worth 0.02 dB at 30 dB
ACCURACY = 3e-3  # root mean square, of every image that is shown or judged: the bound, which is far above the error


class Learnt(NamedTuple):
    regulariser: problems.AbstractRegulariser
    theta: dict[str, np.ndarray]


class Clock:
    """Seconds: this process's, all cores together; the clock's on the wall, and of those JAX's compiling."""

    def __init__(self):
        self.compiling, self.cpu, self.wall = record.CompileClock(), time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        return {"cpu_seconds": cpu, "wall_seconds": wall, "compile_seconds": self.compiling.seconds}


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    for task in TASKS:
        here = setting(task, packaged, smoke)
        for kind in KINDS if here.few else ("TV",):
            for way in WAYS:
                name = f"{task}, {kind}, {way}"
                if name not in log.finished():
                    level = here.learn if kind == "TV" else here.few
                    test(log, name, one(log, task, kind, way, level, smoke), here.test)
        if task not in log.finished():
            pictures(log, truth(task, here))
            log.write("config", task, source="photographs" if packaged else "bsd or mri", **record.environment())
            shown = [float(data.psnr(x, y)) for x, y in zip(seen(task, here.test), here.test.clean, strict=True)]
            log.write("end", task, psnr=shown, learn=here.learn.clean.shape, test=here.test.clean.shape)


def one(log: record.Log, task: str, kind: str, way: str, level: Level, smoke: bool) -> Learnt:
    """One of the three ways."""
    name, before = f"{task}, {kind}, {way}", problems.pretrained(KINDS[kind])
    theta = jax.tree.map(lambda leaf: np.asarray(leaf, float), before.theta)
    scaled = Scaled(before.regulariser, jax.device_put(theta))
    if way == "grid":
        return by_grid(log, name, scaled, level, SCALES[:: 7 if smoke else 1])
    R, start, box = scaled, {"scale": START, "elastic": ELASTIC}, None
    if way == "weight":
        box = {"scale": -10.0, "elastic": ELASTIC}, {"scale": 3.0, "elastic": ELASTIC}
    else:
        R, start, box = before.regulariser, MODEST, (-12.0, 2.0)
        if kind == "ridge":  # goes on from its weight
            scale = record.read(log.path)[f"{task}, {kind}, weight, solving"].end["theta"]["scale"]
            start, box = theta | {"weights": theta["weights"] + scale, "elastic": ELASTIC}, None
    clock, problem = Clock(), level.problem(R)
    start = jax.tree.map(lambda leaf: np.asarray(leaf, float), start)
    limits = {"max_cost": 60 if smoke else MOST[f"{kind}, {way}"], "tol": TOL * level.clean[0].size}
    found = record.solve(log, f"{name}, solving", {}, problem, start, bounds=box, progress=False, **limits)
    log.write("config", f"{name}, seconds")
    log.write("end", f"{name}, seconds", **clock.read())
    return Learnt(R, jax.tree.map(np.asarray, found.theta))


def by_grid(log: record.Log, name: str, scaled: Scaled, level: Level, scales: np.ndarray) -> Learnt:
    """The scale whose images are nearest to the clean ones; each solve goes on from the last."""
    clock, problem, cost, x = Clock(), level.problem(scaled), 0, None
    log.write("config", f"{name}, solving", scales=list(scales))
    values = []
    for scale in tqdm(scales, desc=name, disable=None):
        theta = {"scale": scale, "elastic": ELASTIC}
        found = bilevel.solve_lower(problem, theta, eps=ACCURACY * level.clean.size**0.5, x0=x)
        x, cost = found.x, cost + spent(found)
        values.append(float(np.sum((np.asarray(x) - level.clean) ** 2) / (2 * len(x))))
    best = float(scales[int(np.argmin(values))])
    log.write("end", f"{name}, solving", values=values, best=best, cost=cost, **clock.read())
    return Learnt(scaled, {"scale": best, "elastic": ELASTIC})


def spent(found: Any) -> int:
    return int(found.lower_gradients) + int(found.hessian_products)


def test(log: record.Log, name: str, found: Learnt, level: Level) -> None:
    """PSNR of every test image, and a picture."""
    problem = problems.Restoration(None, level.data, found.regulariser, level.operator, elastic=True)
    clock, theta = Clock(), jax.tree.map(lambda leaf: np.asarray(leaf, float), found.theta)
    x = bilevel.solve_lower(problem, theta, eps=ACCURACY * level.clean.size**0.5)
    images = np.asarray(x.x)
    log.write("config", name)
    log.write("end", name, psnr=list(map(float, data.psnr(images, level.clean))), cost=spent(x), **clock.read())
    pictures(log, {name: images[len(images) // 2]})


def seen(task: str, level: Level) -> np.ndarray:
    """The data as images: A^T y, in tomography brought to the size of images, and 0 where nothing was measured."""
    problem = problems.Restoration(None, level.data, problems.TV(), level.operator, elastic=True)
    x = np.asarray(level.operator.adjoint(problem.data)) if task != "deblurring" else level.data
    return x / np.max(x) if task == "tomography" else x


def truth(task: str, here: Setting) -> dict[str, np.ndarray]:
    k = len(here.test.clean) // 2
    return {f"{task}, truth": here.test.clean[k], f"{task}, data": seen(task, here.test)[k]}


def pictures(log: record.Log, new: dict[str, np.ndarray]) -> None:
    """The middle of each, kept beside the log."""
    path = log.path.with_suffix(".npz")
    old = dict(np.load(path)) if path.exists() else {}
    for name, image in new.items():
        i, j = (max(0, (side - 96) // 2) for side in image.shape)
        old[name] = np.uint8(255 * image[i : i + 96, j : j + 96].clip(0, 1))
    np.savez_compressed(path, **old)
