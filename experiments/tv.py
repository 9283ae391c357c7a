"""min over theta  1/n sum 1/2 ||xhat_i(theta) - clean_i||^2,   xhat_i(theta) = argmin of the total-variation energy.

The paper's setting (section 4.2 of arXiv 2308.10098): 25 Kodak images, grey, 96 x 96, noise 0.1, from theta = (-5, -5).
Reads kodak/ in the folder that BILEVEL_DATA names: `make tv BILEVEL_DATA=folder`. `--packaged` takes the photographs
inside scikit-image and scikit-learn instead, `--resume` keeps the runs already in the log, `--draw` only draws.

Solves: the optimum, by BFGS on hypergradients to eps = 1e-9; maid() with defaults; maid() for 16 pairs of first
accuracy and first step; fixed accuracies and HOAG's schedules on the same budget; maid() from bad starts.
"""

import argparse
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import scipy.optimize
import style
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from tqdm import tqdm

import bilevel
import problems
from problems import data

jax.config.update("jax_enable_x64", True)

THETA0, TOL, BUDGET = (-5.0, -5.0), 1e-3, 15_000
WITHIN = {0.02: 3000, 0.002: 15_000}  # maid(): how close to the optimal value, and the cost it may take
ACCURACIES, STEPS, SIXTEEN_BUDGET = (1e2, 1.0, 1e-2, 1e-4), (1e-4, 1e-2, 1.0, 100.0), 3500
BAD_STARTS, BAD_BUDGET = ((0.0, 0.0), (-10.0, -3.0), (2.0, -8.0)), 60_000
JUDGED = 30  # at most so many points of a run without certificates are solved again to judge them
OTHERS = {
    "fixed 1e-1": bilevel.fixed_accuracy(1e-1),
    "fixed 1e-3": bilevel.fixed_accuracy(1e-3),
    "fixed 1e-5": bilevel.fixed_accuracy(1e-5),
    "hoag geometric": bilevel.hoag(bilevel.Geometric(0.9)),
    "hoag quadratic": bilevel.hoag(bilevel.Polynomial(2)),
    "hoag cubic": bilevel.hoag(bilevel.Polynomial(3)),
}


def plan() -> list[SimpleNamespace]:
    """Every run: its name, method, start and options."""

    def run(name, method, max_cost, theta0=THETA0, judge=False, **settings):
        return SimpleNamespace(
            name=name, method=method, theta0=theta0, max_cost=max_cost, judge=judge, settings=settings
        )

    runs = [run("maid", bilevel.maid(), 60_000)]
    runs += [
        run(sixteen(eps, step), bilevel.maid(eps, eps, step), SIXTEEN_BUDGET, eps0=eps, step0=step)
        for eps, step in itertools.product(ACCURACIES, STEPS)
    ]
    runs += [run(name, method, BUDGET, judge=True) for name, method in OTHERS.items()]
    return runs + [run(bad(theta0), bilevel.maid(), BAD_BUDGET, theta0) for theta0 in BAD_STARTS]


def sixteen(eps: float, step: float) -> str:
    return f"maid, eps0 = delta0 = {eps:g}, step {step:g}"


def bad(theta0: tuple[float, float]) -> str:
    return "maid from ({:g}, {:g})".format(*theta0)


def solve(source: str, log: style.Log) -> None:
    """Every run that is not in the log yet."""
    train, _ = data.denoising_set(source, sigma=0.1, seed=0)
    problem = problems.TotalVariation(train.clean, train.noisy)
    config = {"source": source, "images": len(train.names), "size": problem.noisy.shape[-1], "sigma": 0.1, "seed": 0}
    done = {name: run.config.get("max_cost") for name, run in style.read(log.path).items() if run.end is not None}
    todo = [run for run in plan() if done.get(run.name) != run.max_cost]
    bar = tqdm(total=sum(run.max_cost for run in todo), unit="products", disable=None)
    if "optimum" not in done:
        bar.set_description("optimum")
        optimum(problem, log, config)
    for run in todo:
        bar.set_description(run.name)
        spent = bar.n

        def show(state, info, spent=spent):
            bar.update(spent + state.counts.cost - bar.n)
            bar.set_postfix_str(f"value {info.value:.5g}, |z| {info.gradient_norm:.1e}", refresh=False)

        style.logged_solve(
            log, run.name, config | run.settings, problem, np.array(run.theta0), run.method, callback=show,
            extra=(lambda solution, thetas: judge(problem, solution, thetas)) if run.judge else None,
            max_cost=run.max_cost, tol=TOL, progress=False, max_steps=100_000,
        )  # fmt: skip
        bar.update(spent + run.max_cost - bar.n)
    bar.close()

    if "optimum" not in done:
        theta = style.read(log.path)["optimum"].end["theta"]
        shown = np.linspace(0, len(train.names) - 1, 4).astype(int)
        images = {"clean": train.clean, "noisy": train.noisy}
        for name, at in (("initial", THETA0), ("learnt", theta)):
            images[name] = np.asarray(problem.denoise(np.array(at), train.noisy).x)
        psnr = {f"psnr_{name}": data.psnr(x, train.clean) for name, x in images.items() if name != "clean"}
        pictures = {name: (255 * x[shown].clip(0, 1)).round().astype(np.uint8) for name, x in images.items()}
        np.savez_compressed(log.path.with_suffix(".npz"), **pictures, **psnr, shown=shown)


def optimum(problem: problems.TotalVariation, log: style.Log, config: dict) -> None:
    """The reference: BFGS over theta on hypergradients with eps = delta = 1e-9, and the certificate at its end."""
    warm: dict = {"x0": None, "q0": None}
    cost = 0

    def f(theta):
        nonlocal cost
        hg = bilevel.hypergradient(problem, theta, eps=1e-9, delta=1e-9, **warm)
        warm.update(x0=hg.x, q0=hg.q)
        cost += hg.counts.cost
        return float(hg.value), np.asarray(hg.gradient)

    found = scipy.optimize.minimize(f, np.array([-2.0, -4.5]), jac=True, method="BFGS", options={"gtol": 1e-8})
    hg = bilevel.hypergradient(problem, found.x, eps=1e-9, delta=1e-9, **warm)
    log.write("config", "optimum", method="BFGS", eps=1e-9, delta=1e-9, **config, **style.environment())
    log.write(
        "end", "optimum", theta=found.x, value=hg.value, value_error=hg.value_error,
        gradient_norm=np.linalg.norm(hg.gradient), gradient_error=hg.gradient_error, certified=hg.certified,
        inverse_hessian=found.hess_inv, evaluations=found.nfev, cost=cost, result=str(bilevel.RESULTS[hg.result]),
    )  # fmt: skip


def judge(problem: problems.TotalVariation, solution: bilevel.Solution, thetas: list[np.ndarray]) -> dict:
    """f at some theta_k of a run whose own values are too inexact to judge it by; solved to eps = 1e-5, not counted."""
    n = len(solution.history["cost"])
    which = np.unique(np.geomspace(1, n, JUDGED).round().astype(int)) - 1
    values, x = [], problem.noisy
    for k in which:
        x = bilevel.solve_lower(problem, thetas[k], eps=1e-5, x0=x).x
        values.append(float(problem.upper(x, thetas[k])))
    return {"judged": which, "judged_value": values}


def excess(run: style.Run, best: float) -> tuple[np.ndarray, np.ndarray]:
    """Cost, and how far above the optimal value: the certified upper end, or the value solved again where there is."""
    if run.end.get("judged"):
        which = np.array(run.end["judged"])
        return run.steps["cost"][which], np.array(run.end["judged_value"]) - best
    return run.steps["cost"], run.steps["value"] + run.steps["value_error"] - best


def cost_to(run: style.Run, best: float, within: float) -> float:
    """The cost at which the run first came within so much of the optimal value; infinite if it never did."""
    cost, above = excess(run, best)
    reached = np.flatnonzero(above <= within)
    return float(cost[reached[0]]) if len(reached) else np.inf


def report(runs: dict[str, style.Run]) -> None:
    """The tables, from the log alone."""
    best = runs["optimum"].end
    f = best["value"]
    print(f"Optimum at ({best['theta'][0]:.5f}, {best['theta'][1]:.5f}): {f:.8f} +- {best['value_error']:.0e}, norm of "
          f"the gradient {best['gradient_norm']:.0e} +- {best['gradient_error']:.0e}\n")  # fmt: skip

    def ends(name):
        end = runs[name].end
        known = end["gradient_norm"] is not None  # not where the budget ended before it was
        interval = f"{end['gradient_norm']:.1e} +- {end['gradient_error']:.0e}" if known else "unknown"
        return f"{end['value'] - f:.1e}", interval, end["cost"], end["steps"], f"{end['seconds']:.0f}"

    shown = ("maid", *OTHERS)
    header = ("from (-5, -5)", *(f"cost to {w}" for w in WITHIN), "above at end", "gradient at end", "cost", "steps",
              "s", f"tol {TOL:g}")  # fmt: skip
    rows = [
        (name, *(f"{cost_to(runs[name], f, w):.0f}" for w in WITHIN), *ends(name),
         "met" if runs[name].end["converged"] else "no") for name in shown
    ]  # fmt: skip
    print(style.table(header, rows))
    print(f"targets for maid: {', '.join(f'{w} within a cost of {cost}' for w, cost in WITHIN.items())}\n")

    rows = [
        (f"eps0 = delta0 = {eps:g}", *(f"{cost_to(runs[sixteen(eps, step)], f, 0.02):.0f}" for step in STEPS))
        for eps in ACCURACIES
    ]
    print(style.table(("cost to 0.02", *(f"step {step:g}" for step in STEPS)), rows))
    costs = [cost_to(runs[sixteen(eps, step)], f, 0.02) for eps in ACCURACIES for step in STEPS]
    print(f"target: each within {SIXTEEN_BUDGET}; {sum(np.isfinite(costs))} of 16 are, worst {max(costs):.0f}\n")

    rows = []
    for theta0 in BAD_STARTS:
        end = runs[bad(theta0)].end
        theta = "({:.4f}, {:.4f})".format(*end["theta"])
        rows.append((bad(theta0), theta, f"{cost_to(runs[bad(theta0)], f, 0.02):.0f}", *ends(bad(theta0))))
    print(style.table(("bad starts", "theta", "cost to 0.02", *header[3:8]), rows))
    for theta0 in BAD_STARTS:
        print(f"{bad(theta0)}: {runs[bad(theta0)].end['result']}")


def draw(runs: dict[str, style.Run], name: str) -> None:
    """The figures, from the log and the pictures beside it."""
    style.use()
    f = runs["optimum"].end["value"]
    cost_label = "cost: gradients and products of the lower level"

    figure, a = plt.subplots(figsize=(8.6, 4.8))
    for method in ("maid", *OTHERS):
        cost, above = excess(runs[method], f)
        wide = method == "maid"
        a.plot(cost, np.maximum(above, 1e-9), color=style.COLOURS[method], label=method, lw=2.6 if wide else 1.6,
               zorder=3 if wide else 2)  # fmt: skip
    a.plot(list(WITHIN.values()), list(WITHIN), "v", color=style.INK, ms=7, ls="", zorder=4, label="maid at the latest")
    a.set(xscale="log", yscale="log", xlabel=cost_label, ylabel="value above the optimum", xlim=(30, None),
          title="Total variation, from $\\theta$ = (-5, -5)")  # fmt: skip
    a.legend(loc="upper left", bbox_to_anchor=(1, 1))
    style.save(figure, style.HERE / "figures" / f"{name}_methods.png")

    # the 16 runs: colour says the first accuracy, line style the first step
    shades = dict(zip(ACCURACIES, plt.get_cmap("viridis")([0.05, 0.35, 0.6, 0.85]), strict=True))
    dashes = dict(zip(STEPS, (":", "-.", "--", "-"), strict=True))
    keys = [Line2D([], [], color=c, label=f"eps0 = delta0 = {eps:g}") for eps, c in shades.items()]
    keys += [Line2D([], [], color=style.INK, ls=ls, label=f"step {step:g}") for step, ls in dashes.items()]
    pairs = [(runs[sixteen(eps, step)], shades[eps], dashes[step]) for eps in ACCURACIES for step in STEPS]

    figure, a = plt.subplots(figsize=(8.6, 4.8))
    for run, colour, ls in pairs:
        a.plot(*excess(run, f), color=colour, ls=ls, lw=1.5)
    a.axhline(0.02, color=style.INK, lw=0.8)
    a.axvline(SIXTEEN_BUDGET, color=style.INK, lw=0.8)
    a.set(xscale="log", yscale="log", xlabel=cost_label, ylabel="value above the optimum", xlim=(50, None),
          title="maid(): sixteen first accuracies and steps, one end")  # fmt: skip
    a.legend(handles=keys, loc="upper left", bbox_to_anchor=(1, 1))
    style.save(figure, style.HERE / "figures" / f"{name}_sixteen.png")

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharex=True, sharey=True)
    for a, key, title in zip(axes, ("eps", "delta"), ("$\\epsilon$: lower level", "$\\delta$: adjoint"), strict=True):
        for run, colour, ls in pairs:
            a.plot(run.steps["cost"], run.steps[key], color=colour, ls=ls, lw=1.4)
        a.set(xscale="log", yscale="log", xlabel=cost_label, title=f"{title}, as reached")
    axes[1].legend(handles=keys, loc="upper left", bbox_to_anchor=(1, 1))
    style.save(figure, style.HERE / "figures" / f"{name}_accuracies.png")

    pictures = dict(np.load(style.HERE / "logs" / f"{name}.npz"))
    shown = pictures["shown"]
    figure, axes = plt.subplots(len(shown), 4, figsize=(8.4, 8.9))
    labels = {
        "noisy": "noisy",
        "initial": "$\\theta$ = ({:g}, {:g})".format(*THETA0),
        "learnt": "optimum ({:.2f}, {:.2f})".format(*runs["optimum"].end["theta"]),
        "clean": "clean",
    }
    for i, row in enumerate(axes):
        for a, (key, label) in zip(row, labels.items(), strict=True):
            quality = "" if key == "clean" else f"{pictures[f'psnr_{key}'][shown[i]]:.1f} dB"
            style.picture(a, pictures[key][i] / 255, f"{label}\n{quality}" if i == 0 else quality)
    style.save(figure, style.HERE / "figures" / f"{name}_pictures.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="The paper's total-variation experiment.")
    parser.add_argument("--packaged", action="store_true", help="learn from the photographs of scikit-image and -learn")
    parser.add_argument("--resume", action="store_true", help="keep the runs that are in the log")
    parser.add_argument("--draw", action="store_true", help="tables and figures from the log, without solving")
    arguments = parser.parse_args()
    name = "tv_packaged" if arguments.packaged else "tv"
    log = style.Log(style.HERE / "logs" / f"{name}.jsonl", fresh=not (arguments.resume or arguments.draw))
    if not arguments.draw:
        try:
            solve("photographs" if arguments.packaged else "kodak", log)
        except FileNotFoundError as error:
            message = f"{error}\nOr learn from the packaged photographs: python experiments/tv.py --packaged"
            raise SystemExit(message) from None
    runs = {key: run for key, run in style.read(log.path).items() if run.end is not None}
    if missing := [run.name for run in plan() if run.name not in runs]:
        raise SystemExit(f"Not in the log yet: {', '.join(missing)}. Run without --draw, with --resume.")
    report(runs)
    draw(runs, name)
    print(f"\nFigures: experiments/figures/{name}_{{methods,sixteen,accuracies,pictures}}.png")


if __name__ == "__main__":
    main()
