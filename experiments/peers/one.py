"""min over w  f(w) = 1/n sum 1/2 ||xhat_i(w) - clean_i||^2,   xhat_i(w) the total-variation denoising of noisy_i.

One hyperparameter, honestly: what does a scalar search over the weight cost, and what does it reach? On one packaged
photograph of 96 x 96 and on eight of 256 x 256, noise 0.1, another held out: SciPy's bounded search over scikit-image's
`denoise_tv_chambolle`, the same search over this package's solver with the smoothing fixed at 0.01, and two that learn
weight and smoothing: SciPy's L-BFGS-B over `bilevel.hypergradient`, and maid(). Each pays anew for what it compiles.
"""

import math
from functools import partial
from pathlib import Path

import jax
import numpy as np
import scipy.optimize
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter
from skimage.restoration import denoise_tv_chambolle
from tqdm import tqdm

import bilevel
from bilevel import problems
from bilevel.problems import data
from experiments._harness import console, counted, record, style

jax.config.update("jax_enable_x64", True)

METHODS = ("scalar search, scikit-image", "scalar search, our solver", "L-BFGS-B", "maid")
CASES = {"one of 96 x 96": (1, 96, 0.1), "eight of 256 x 256": (8, 256, 1.0)}  # photographs, size, tol on the gradient
HELD_OUT, SIGMA, SEED = "chelsea", 0.1, 0
THETA0, SMOOTHING = (-5.0, -5.0), math.log(0.01)
LOG_WEIGHTS = {METHODS[0]: (-5.0, 0.0), METHODS[1]: (-5.0, 1.0)}  # ours is halved in the energy
XATOL, EPS = 1e-2, 1e-2  # of the log weight; of x and of the adjoint, where the accuracy is fixed
CLOSE = 0.01  # dB


class Chambolle:
    """f at a log weight by scikit-image, image by image, at its default accuracy."""

    def __init__(self, pairs: data.Pairs):
        self.pairs = pairs

    def denoise(self, log_weight: float, noisy: np.ndarray) -> np.ndarray:
        return denoise_tv_chambolle(noisy, weight=math.exp(log_weight), channel_axis=0)

    def __call__(self, log_weight: float) -> counted.Answer:
        x = self.denoise(log_weight, self.pairs.noisy)
        value = float(np.sum((x - self.pairs.clean) ** 2)) / (2 * len(x))
        return counted.Answer(value, value, math.nan, x)


def name(method: str, case: str) -> str:
    return f"{method}, {case}"


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    for case, (n, size, tol) in CASES.items():
        size = 32 if smoke else size
        everything, held_out = data.denoising_set("photographs", sigma=SIGMA, seed=SEED, held_out=[HELD_OUT], size=size)
        train = data.Pairs(*(part[:n] for part in everything))
        problem = problems.TotalVariation(train.clean, train.noisy)
        chambolle, ours = Chambolle(train), counted.Value(problem, EPS)
        config = {"case": case, "images": train.names, "size": size, "sigma": SIGMA, "seed": SEED, "held_out": HELD_OUT}

        def judge(denoise, theta, x, train=train, held_out=held_out):
            other = np.asarray(denoise(theta, held_out.noisy))
            psnr = {"train": data.psnr(x, train.clean), "held_out": data.psnr(other, held_out.clean)}
            return {key: value.mean() for key, value in psnr.items()}

        def both(log_weight):
            return np.array([log_weight, SMOOTHING])

        def our_denoise(theta, noisy, problem=problem):
            return problem.denoise(theta if np.size(theta) == 2 else both(theta), noisy).x

        for method in (bar := tqdm([m for m in METHODS if name(m, case) not in log.finished()], disable=None)):
            bar.set_description(name(method, case))
            if not smoke:
                jax.clear_caches()  # so that each method pays for what it compiles
            key, theta0 = name(method, case), np.array(THETA0)
            if method == "maid":
                record.solve(
                    log, key, config, problem, theta0, bilevel.maid(), judge=partial(judge, our_denoise), tol=tol,
                    max_cost=200 if smoke else 10_000, progress=False,
                )  # fmt: skip
                continue
            answer, denoise = {
                METHODS[0]: (chambolle, chambolle.denoise),
                METHODS[1]: (lambda log_weight, ours=ours: ours(both(log_weight)), our_denoise),
                METHODS[2]: (counted.Gradient(problem, EPS), our_denoise),
            }[method]
            if method == "L-BFGS-B":
                optimise = partial(
                    scipy.optimize.minimize, x0=theta0, jac=True, method=method, options={"gtol": tol, "ftol": 0}
                )
            else:
                search, options = scipy.optimize.minimize_scalar, {"xatol": XATOL}
                optimise = partial(search, method="bounded", bounds=LOG_WEIGHTS[method], options=options)
            counted.run(log, key, config, answer, optimise, judge=partial(judge, denoise), max_cost=10_000)


def report(runs: dict[str, record.Run]) -> None:
    for case in CASES:
        group, rows = {m: runs[name(m, case)] for m in METHODS if name(m, case) in runs}, []
        highest = max(run.judged["train"][-1] for run in group.values())
        for method, run in group.items():
            train, when = run.judged["train"], counted.seconds(run)

            def to(target, train=train, when=when):
                reached = np.flatnonzero(train >= target - CLOSE)
                return f"{when[reached[0]]:.2f}" if len(reached) else "never"

            weight, smoothing = (*np.exp(np.atleast_1d(run.end["theta"])), math.exp(SMOOTHING))[:2]
            rows.append((
                method, f"{weight:.3f}", "-" if method == METHODS[0] else f"{smoothing:.4f}",
                f"{train[-1]:.3f}", f"{run.judged['held_out'][-1]:.3f}", to(train[-1]), to(highest),
                f"{run.end['seconds']:.2f}", f"{run.end['compile_seconds']:.2f}",
                "-" if run.end["cost"] is None else f"{run.end['cost']:.0f}",
            ))  # fmt: skip
        header = (
            "weight",
            "smoothing",
            "dB",
            "dB held out",
            "s to its own end",
            "s to the best",
            "s",
            "s compiling",
            "cost",
        )
        print(console.table((case, *header), rows) + "\n")
    print(f"s to ...: within {CLOSE} dB on the training photographs, compilation included")


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    figure, axes = plt.subplots(1, len(CASES), figsize=(9.6, 3.8))
    for a, case in zip(axes, CASES, strict=True):
        for method in METHODS:
            run, colour = runs[name(method, case)], style.COLOURS[method]
            a.step(
                counted.seconds(run), run.judged["train"], where="post", color=colour, label=method, marker=".", ms=7
            )
        a.set(xscale="log", xlabel="seconds, compilation included", title=case)
        a.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set(ylabel="PSNR of the training photographs, dB")
    axes[0].legend(loc="lower left")
    style.save(figure, figures.with_name(f"{figures.name}_seconds.png"))


if __name__ == "__main__":
    console.main("one", "One hyperparameter: scalar search against maid().", solve, report, draw)
