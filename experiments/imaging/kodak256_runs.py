"""What `kodak256` learns: the images as they were published, smoothed total variation, and the exact one."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import bilevel
from bilevel import problems
from bilevel._outer.programs import Meter
from bilevel.problems import data
from experiments._harness import record

jax.config.update("jax_enable_x64", True)

SQUARES = 16353.72  # of the published noise, all images: what is read here is what was read there
TEN = float(np.log(10))
EXACT = "exact TV, weight"
# certified errors of F that the curve asks for, one after the other
ERRORS = (100.0, 30.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1)


def needs() -> None:
    """Raises FileNotFoundError where the Kodak images are missing, and says what to fetch."""
    data.kodak(8)


def images(packaged: bool, smoke: bool) -> tuple[np.ndarray, np.ndarray]:
    """Clean and noisy: grey, the central 256 x 256 pixels, and noise of 0.1 image by image from the one seed."""
    np.random.seed(0)  # noqa: NPY002, the published noise
    if packaged:
        clean = data.photographs(24 if smoke else 256).pixels
        return clean, clean + 0.1 * np.stack([np.random.randn(*x.shape) for x in clean])  # noqa: NPY002
    pairs = []
    for path in sorted(Path(os.environ["BILEVEL_DATA"], "kodak").glob("kodim*.png")):
        grey = np.asarray(Image.open(path).convert("RGB"), float) @ [0.299, 0.587, 0.114] / 255
        top, left = ((side - 256) // 2 for side in grey.shape)
        grey = grey[top : top + 256, left : left + 256]
        pairs.append((grey, grey + 0.1 * np.random.randn(256, 256)))  # noqa: NPY002
    clean, noisy = map(np.stack, zip(*pairs, strict=True))
    if abs(np.sum((noisy - clean) ** 2) - SQUARES) > 0.01:
        raise ValueError(f"these are not the published images: the noise's squares are {np.sum((noisy - clean) ** 2)}")
    return clean, noisy


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    (clean, noisy), done = images(packaged, smoke), log.finished()
    config = {"source": "photographs" if packaged else "kodak", "images": len(clean), "size": clean.shape[1]}
    exact = problems.ExactTotalVariation(clean, noisy, isotropic=True)
    if EXACT not in done:  # a tolerance of 10 on F
        method = bilevel.value_descent(value_tol=10 / (2 * len(clean)) if not smoke else None)
        record.solve(log, EXACT, config, exact, np.log(0.12), method, progress=False)
    if f"{EXACT}, curve" not in done:
        curve(log, exact, record.read(log.path)[EXACT].end["theta"], config)
    smoothed = problems.TotalVariation(clean, noisy, isotropic=True, elastic=True)
    # published: log10 of weight, smoothing and elastic weight in [-7, 7], [-7, 0], [-7, 0], from (0, -1, -1); a weight
    # here is half of e^theta. One parameter from -1, since at 0 and a smoothing of 1e-3 no first gradient is certified
    half, most = np.array([np.log(2), 0, 0]), 60 if smoke else 3000
    low, high = half + TEN * np.array([-7, -7, -7]), half + TEN * np.array([7, 0, 0])
    if "smoothed TV, 3 parameters" not in done:
        start = half + TEN * np.array([0, -1, -1])
        record.solve(log, "smoothed TV, 3 parameters", config, smoothed, start, bounds=(low, high), max_cost=most,
                     progress=False)  # fmt: skip
    if "smoothed TV, 1 parameter" not in done:
        start = half + TEN * np.array([-1, -3, -3])
        low[1:], high[1:] = start[1:], start[1:]
        record.solve(log, "smoothed TV, 1 parameter", config, smoothed, start, bounds=(low, high), max_cost=most,
                     progress=False)  # fmt: skip


def curve(log: record.Log, problem: problems.ExactTotalVariation, theta: float, config: dict) -> None:
    """The value at one theta, from nothing, known better and better."""
    run, n = f"{EXACT}, curve", len(problem.noisy)
    log.write("config", run, theta=theta, **config, **record.environment())
    problem, theta = jax.tree.map(jnp.asarray, (problem, theta))
    meter = Meter(problem, None, float("inf"))
    point = meter.solve(theta, problem.noisy, float("inf"))
    for k, error in enumerate(ERRORS):
        # to first order, and a tenth less: the error's own square comes to it
        point = meter.solve(theta, point.lower.x, 0.9 * error / (2 * n) / float(point.norm_g_x))
        jax.block_until_ready(point)
        numbers = {"value": float(point.value), "value_error": float(point.value_error), "seconds": meter.seconds}
        log.write("step", run, k=k, cost=meter.counts.cost, **numbers)
    log.write("end", run, cost=meter.counts.cost, **numbers)
