"""The total-variation problem of the paper, the optimum, and the runs of `tv` beside it."""

from functools import partial
from typing import NamedTuple

import dfols
import jax
import numpy as np
import scipy.optimize
from tqdm import tqdm

import bilevel
from bilevel import problems
from bilevel.problems import data
from experiments._harness import counted, record

jax.config.update("jax_enable_x64", True)

THETA0, TOL, BUDGET, LONG = (-5.0, -5.0), 1e-3, 15_000, 60_000
FIXED = {"fixed 1e-1": 1e-1, "fixed 1e-3": 1e-3, "fixed 1e-5": 1e-5}
HOAG = {
    "hoag geometric": bilevel.hoag(bilevel.Geometric(0.9)),
    "hoag quadratic": bilevel.hoag(bilevel.Polynomial(2)),
    "hoag cubic": bilevel.hoag(bilevel.Polynomial(3)),
}
ELSEWHERE = ("DFO-LS", "Nelder-Mead", "L-BFGS-B", "L-BFGS-B, jaxopt")
BOX = (-7.0, 0.0)  # for the derivative-free ones; without it DFO-LS leaps to where the condition number is 1e6
ACCURATE = 1e-5  # the one fixed accuracy of Nelder-Mead and L-BFGS-B
JUDGE = 1e-7  # how accurately a theta is judged


def plan() -> dict[str, tuple[bilevel.Method, int]]:
    """This package's methods, and what each may cost."""
    return {
        "maid": (bilevel.maid(), LONG),
        **{name: (bilevel.fixed_accuracy(eps), BUDGET) for name, eps in FIXED.items()},
        **{name: (method, BUDGET) for name, method in HOAG.items()},
    }


class Setting(NamedTuple):
    """The images with their problem, what the log says of them, and the most that a run may cost."""

    train: data.Pairs
    problem: problems.TotalVariation
    config: dict
    most: int

    def judge(self, theta, x):
        lower = bilevel.solve_lower(self.problem, theta, eps=JUDGE, x0=x)
        return {"value": float(self.problem.upper(lower.x, theta))}

    def run(self, log: record.Log, name: str, method: bilevel.Method, max_cost: int, theta0=THETA0) -> None:
        record.solve(
            log, name, self.config, self.problem, np.array(theta0), method, judge=self.judge,
            max_cost=min(max_cost, self.most), tol=TOL, max_steps=100_000, progress=False,
        )  # fmt: skip


def setting(packaged: bool, smoke: bool) -> Setting:
    source, size = "photographs" if packaged else "kodak", 24 if smoke else 96
    train, _ = data.denoising_set(source, sigma=0.1, seed=0, size=size)
    config = {"source": source, "images": len(train.names), "size": size, "sigma": 0.1, "seed": 0}
    return Setting(train, problems.TotalVariation(train.clean, train.noisy), config, 300 if smoke else LONG)


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    train, problem, config, most = here = setting(packaged, smoke)
    done = log.finished()
    for name, (method, max_cost) in (bar := tqdm([i for i in plan().items() if i[0] not in done], disable=None)):
        bar.set_description(name)
        here.run(log, name, method, max_cost)
    if "optimum" not in done:
        optimum(problem, log, config)
    for name in (bar := tqdm([name for name in ELSEWHERE if name not in done], disable=None)):
        bar.set_description(name)
        if not smoke:
            jax.clear_caches()  # so that each pays for what it compiles
        elsewhere(name, problem, log, config, here.judge, min(BUDGET, most))

    best = record.read(log.path)["optimum"].end["theta"]
    images = {"clean": train.clean, "noisy": train.noisy}
    for name, theta in (("initial", THETA0), ("learnt", best)):
        images[name] = np.asarray(problem.denoise(np.array(theta), train.noisy).x)
    psnr = {name: data.psnr(x, train.clean) for name, x in images.items() if name != "clean"}
    log.write("config", "psnr")
    log.write("end", "psnr", **{name: p.mean() for name, p in psnr.items()})
    shown = np.linspace(0, len(train.names) - 1, 4).astype(int)
    pictures = {name: (255 * x[shown].clip(0, 1)).round().astype(np.uint8) for name, x in images.items()}
    psnr = {f"psnr_{name}": p[shown] for name, p in psnr.items()}
    np.savez_compressed(log.path.with_suffix(".npz"), **pictures, **psnr)


def optimum(problem: problems.TotalVariation, log: record.Log, config: dict) -> None:
    """The reference: BFGS over theta on hypergradients with eps = delta = 1e-9, and the certificate at its end."""
    f, cost = counted.Gradient(problem, 1e-9), 0

    def told(theta):
        nonlocal cost
        answer = f(theta)
        cost += answer.cost
        return answer.told

    found = scipy.optimize.minimize(told, np.array([-2.0, -4.5]), jac=True, method="BFGS", options={"gtol": 1e-8})
    hg = bilevel.hypergradient(problem, found.x, eps=f.eps, delta=f.eps, **f.warm)
    log.write("config", "optimum", method="BFGS", eps=f.eps, delta=f.eps, **config, **record.environment())
    log.write(
        "end", "optimum", theta=found.x, value=hg.value, value_error=hg.value_error,
        gradient_norm=np.linalg.norm(hg.gradient), gradient_error=hg.gradient_error, certified=hg.certified,
        evaluations=found.nfev, cost=cost, result=str(bilevel.RESULTS[hg.result]),
    )  # fmt: skip


def elsewhere(name: str, problem: problems.TotalVariation, log: record.Log, config: dict, judge, max_cost: int) -> None:
    """An optimiser from elsewhere. Its settings are the best we found in a few trials."""
    theta0, box, minimise = np.array(THETA0), np.full((2, 2), BOX), scipy.optimize.minimize
    match name:
        case "DFO-LS":
            # Dynamic accuracy: eps follows the trust-region radius, which the package tells to whoever decides how
            # many samples to average. What it evaluated loosely it keeps; the method in the literature asks again.
            answer, settings = counted.Residuals(problem, 1.0), {"eps": "0.1 min(radius, 1/2)^2"}

            def one_sample(radius, *_):
                answer.eps = 0.1 * min(radius, 0.5) ** 2
                return 1

            def optimise(f):
                return dfols.solve(f, theta0, bounds=tuple(box.T), nsamples=one_sample, rhoend=1e-4, do_logging=False)

        case "Nelder-Mead":
            answer, settings = counted.Value(problem, ACCURATE), {"eps": ACCURATE}
            optimise = partial(minimise, x0=theta0, method=name, bounds=box, options={"xatol": 1e-4, "fatol": 1e-7})
        case _:
            jaxopt = name != "L-BFGS-B"
            answer = counted.Implicit(problem, theta0, ACCURATE) if jaxopt else counted.Gradient(problem, ACCURATE)
            settings = {"eps": ACCURATE}
            optimise = partial(minimise, x0=theta0, jac=True, method="L-BFGS-B", options={"ftol": 0, "gtol": TOL})
    counted.run(log, name, config | settings, answer, optimise, judge=judge, max_cost=max_cost)
