"""min over theta  CE_valid(What(theta)),   What(theta) = argmin over W  CE_train(W) + 1/2 sum e^theta W^2.

The paper's setting (section 4.4 of arXiv 2308.10098): MNIST at 12 x 12, 60 000 images to train, the 10 000 test images
to validate, one penalty for each of the 1 440 weights, by MAID, HOAG's three schedules, and certified quasi-Newton
descent. Nothing is left to test on there, so the same again with 50 000 to train, 10 000 to validate and the test
images to test; and there one penalty in all, which is what 1 440 must beat.
"""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

import bilevel
from bilevel import problems
from bilevel.problems import labelled
from bilevel.problems.families import Multinomial
from experiments._harness import console, record, style

jax.config.update("jax_enable_x64", True)

# All log penalties start here: some shrinkage, a classifier that works. At 0 the classes are hardly told apart.
THETA0 = -4.0
# All of them with the problem's preconditioner, without which penalties down to e^-16 would be paid for. HOAG has
# Newton-CG: over L-BFGS, on a tenth of the data, its rule found no step any more at a cost of 2 000.
METHODS = {
    "quasi-newton": bilevel.quasi_newton(),
    "quasi-newton, boxed": bilevel.quasi_newton(),
    "hoag geometric": bilevel.hoag(bilevel.Geometric(0.9), solver=bilevel.NewtonCG()),
    "hoag quadratic": bilevel.hoag(bilevel.Polynomial(2), solver=bilevel.NewtonCG()),
    "hoag cubic": bilevel.hoag(bilevel.Polynomial(3), solver=bilevel.NewtonCG()),
    "maid": bilevel.maid(solver=bilevel.LBFGS()),
    "maid, boxed": bilevel.maid(solver=bilevel.LBFGS()),
}
# Without a box MAID's penalties fall until its certificates are below rounding, and it stops there.
BOX = dict.fromkeys(("maid, boxed", "quasi-newton, boxed", "maid, third set"), (-12.0, 4.0))
BUDGET, SMOKE = 10_000, 400
LONG = 100_000  # for boxed MAID with the paper's split: what the last decade brings
HONEST, ONE = "maid, third set", "one penalty, third set"
DECADES = (1e2, 1e3, 1e4, 1e5)


class Euclidean(problems.LogisticRegression):
    """The same problem without its metric, for HOAG, whose tolerances are for the Euclidean norm of the gradient."""

    def constants(self, theta):
        known, largest = super().constants(theta), jnp.max(jnp.exp(theta))
        return bilevel.Constants(
            mu=known.mu, L=known.L, L_upper=self.valid.norm / 2, L_upper_theta=0.0, convex_upper=True,
            L_hessian=Multinomial.bend * self.train.longest * self.train.norm, L_cross=largest, rounding=known.rounding,
            rounding_cross=3 * jnp.sqrt(2 * math.log(self.classes) * largest), concordance=known.concordance,
        )  # fmt: skip

    def bounds(self, x, theta, q, radius):
        known, penalty = self.constants(theta), jnp.exp(theta)
        return bilevel.Bounds(
            J=jnp.max(penalty * jnp.abs(x)),
            M_H=Multinomial.bend * self.train.norm * jnp.sqrt(jnp.max(jnp.sum((self.A @ q) ** 2, axis=1))),
            M_J=jnp.max(penalty * jnp.abs(q)),
            L_J=known.L_cross,
        )


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished yet."""
    done = log.finished()
    train, test = labelled.split(labelled.digits(), (1200, 597), seed=0) if packaged else labelled.mnist()
    sizes = (900, 300) if packaged else (50_000, 10_000)
    splits = {"paper": (train, test, None), "third set": (*labelled.split(train, sizes, seed=0), test)}
    source = "digits" if packaged else "MNIST 12 x 12"
    learnt = {}
    for name, split in [*((name, "third set") for name in (ONE, HONEST)), *((name, "paper") for name in METHODS)]:
        if name in done:
            continue
        print(name, flush=True)
        train, valid, test = splits[split]
        problem = (Euclidean if "hoag" in name else problems.LogisticRegression)(*train, *valid)
        features, classes = problem.guess(None).shape
        theta0 = np.full(() if name == ONE else (features, classes), THETA0)

        def judge(theta, x, problem=problem, valid=valid, test=test):
            tested = {} if test is None else {"test_accuracy": problem.accuracy(x, *map(jnp.asarray, test))}
            return {"valid_accuracy": problem.accuracy(x, *map(jnp.asarray, valid)), **tested}

        config = {"source": source, "split": split, "train": len(train.labels), "valid": len(valid.labels),
                  "test": None if test is None else len(test.labels), "seed": 0}  # fmt: skip
        solution = record.solve(
            log, name, config | {"first": THETA0}, problem, theta0, METHODS.get(name, METHODS["maid"]), judge=judge,
            max_cost=SMOKE if smoke else LONG if name == "maid, boxed" else BUDGET, max_steps=100_000,
            tol=1e-2 if name == ONE else 0.0, bounds=BOX.get(name),
        )  # fmt: skip
        if name in ("maid, boxed", HONEST):
            learnt = {"theta": np.asarray(solution.theta, np.float32), "x": np.asarray(solution.x, np.float32)}
            np.savez_compressed(learnt_at(log.path.with_suffix(""), name), **learnt)


def learnt_at(beside: Path, name: str) -> Path:
    """Where the penalties and weights of a run are."""
    return beside.with_name(f"{beside.name}_{name.replace(',', '').replace(' ', '_')}.npz")


def value_at(run: record.Run, cost: float) -> float:
    """The least upper end of f's interval among the points accepted within that cost; nan beyond the run's end."""
    known = run.judged["cost"] <= cost
    if not known.any() or run.end["cost"] < 0.9 * cost:
        return np.nan
    return float(run.judged["high"][known].min())


def report(runs: dict[str, record.Run]) -> None:
    """The tables, from the log alone."""
    costs = DECADES
    rows = []
    for name in (m for m in METHODS if m in runs):
        run, end = runs[name], runs[name].end
        cells = [value_at(run, cost) for cost in costs]
        rows.append((name, *("-" if np.isnan(v) else f"{v:.4f}" for v in cells),
                     f"{end['value']:.4f} +- {end['value_error']:.0e}",
                     f"{100 * run.judged['valid_accuracy'][-1]:.2f} %", end["steps"],
                     f"{end['seconds']:.0f}"))  # fmt: skip
    header = ("validation loss at most", *(f"cost {c:g}" for c in costs), "at the end", "accuracy there", "steps", "s")
    print(console.table(header, rows), end="\n\n")
    rows = []
    for name in (n for n in (ONE, HONEST) if n in runs):
        run, end = runs[name], runs[name].end
        rows.append((name, f"{end['value']:.4f}", *(f"{100 * run.judged[k][-1]:.2f} %" for k in
                     ("valid_accuracy", "test_accuracy")), end["cost"], f"{end['seconds']:.0f}"))  # fmt: skip
    print(console.table(("with a set to test on", "validation loss", "accuracy", "on the test set", "cost", "s"), rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """Curves against cost; penalties and weights as images."""
    style.use()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4))
    for name in (m for m in METHODS if m in runs):
        run, colour, wide = runs[name], style.COLOURS[name], name == "maid"
        cost, value, error = (run.steps[key] for key in ("cost", "value", "value_error"))
        kwargs = dict(color=colour, lw=2.6 if wide else 1.6, zorder=3 if wide else 2)
        axes[0].plot(cost, value, label=name, **kwargs)
        axes[0].fill_between(cost, np.maximum(value - error, 1e-3), value + error, color=colour, alpha=0.15, lw=0)
        axes[1].plot(run.judged["cost"], 100 * run.judged["valid_accuracy"], **kwargs)
    for name, ls in ((HONEST, "--"), (ONE, ":")):
        if name in runs:
            judged = runs[name].judged
            colour = style.COLOURS["maid"] if name == HONEST else style.INK
            axes[1].plot(judged["cost"], 100 * judged["test_accuracy"], color=colour, ls=ls, label=f"{name}: tested")
    low = min(run.steps["value"].min() for run in runs.values())
    axes[0].set(xscale="log", yscale="log", ylim=(0.9 * low, 1.3), xlabel="cost: gradients and products",
                ylabel="validation loss", title="Validation loss, with its certified interval")  # fmt: skip
    axes[1].set(xscale="log", xlabel="cost: gradients and products", ylabel="accuracy, %",
                title="Accuracy on validation data, and on a test set")  # fmt: skip
    axes[0].legend()
    axes[1].legend(loc="lower right")
    style.save(figure, f"{figures}_methods.png")

    name = next((n for n in ("maid, boxed", HONEST) if n in runs), None)
    if name is None:
        return
    learnt = np.load(learnt_at(beside, name))
    side = round(learnt["x"].shape[0] ** 0.5)
    figure, axes = plt.subplots(2, 10, figsize=(11, 2.9))
    limit, top = np.abs(learnt["x"]).max() / 2, np.abs(learnt["theta"] - THETA0).max()
    for c in range(10):
        shown = axes[0, c].imshow(learnt["theta"][:, c].reshape(side, side), cmap="PuOr", vmin=THETA0 - top,
                                  vmax=THETA0 + top)  # fmt: skip
        weights = axes[1, c].imshow(learnt["x"][:, c].reshape(side, side), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes[0, c].set_title(f"{c}")
    for a in axes.ravel():
        a.set_xticks([]), a.set_yticks([]), a.grid(False)
    figure.colorbar(shown, ax=axes[0], label="log penalty", shrink=0.9)
    figure.colorbar(weights, ax=axes[1], label="weight", shrink=0.9)
    style.save(figure, f"{figures}_penalties.png")


if __name__ == "__main__":
    console.main("mnist", __doc__.splitlines()[0], solve, report, draw, needs=labelled.mnist)
