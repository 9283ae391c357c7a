"""w(lambda + e) ~ w + e r:  how near to the best response is the one that Self-Tuning Networks fit?

Three linear models whose best response is known, fitted with the package's own layers, losses and steps:

scalar    (w - 1)^2/2 + e^lambda w^2/2     STN comes to w = 1/(1 + m - m^2/(1 + 2m)), m = exp(lambda + sigma^2/2),
                                           Delta-STN to the best w = 1/(1 + e^lambda)
ridge     mean (w x - t)^2/2 + e^lambda |w|^2/2     dw/dlambda = -(A + e^lambda I)^-1 e^lambda w,  A = X^T X / n
network   y = sum_i gate_i(lambda) q_i <v_i, x>, mean (y - t)^2/2 + e^lambda |dy/dx|^2/2     the best one has
          gate_i = sigmoid(log d_i - lambda), q_i = <v_i, w_0>: A = sum_i d_i v_i v_i^T, w_0 least squares
          (arXiv 1903.03088, section 3.2)

Ridge and network learn scikit-learn's diabetes data, in the principal axes of 300 patients; 142 validate. Adam makes
the steps, its rate falling to zero along a cosine. "Minimum": of the expected losses (sums over Gauss-Hermite nodes,
one Newton step); more steps or smaller rates can come no nearer. Scales are fixed. Last, the condition number of the
Gauss-Newton matrix of (w, r) in the scalar model: max(sigma^2, sigma^-2) where the gates see e, that of
[[1, u], [u, u^2 + sigma^2]] where they see u + e.
"""

import itertools
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from tqdm import tqdm

from experiments._harness import console, record, style
from experiments.networks.exactness_fit import CURVE, METHODS
from experiments.networks.exactness_studies import CONDITION_SIGMAS, KINDS, RIDGE, SHOWN, SIGMAS, STUDIES, WHAT, U

STEPS = 50_000
DRAWN = -3.0  # log penalty of the errors drawn
COLOURS = {"STN": "#009E73", "Delta-STN": style.COLOURS["maid"]}


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every fit that is not in the log yet."""
    steps = 200 if smoke else STEPS
    runs = [(study, method) for study in STUDIES for method in METHODS if (study, method) != ("network", "Delta-STN")]
    for study, method in (bar := tqdm(runs, disable=None)):
        run = f"{study}, {method}"
        bar.set_description(run)
        if run not in log.finished():
            log.write("config", run, method=method, steps=steps, **record.environment())
            log.write("end", run, **STUDIES[study](method, steps))


def ends(runs: dict[str, record.Run], study: str) -> dict[str, dict[str, np.ndarray]]:
    """A study's results by method."""
    found = {method: runs[f"{study}, {method}"] for method in METHODS if f"{study}, {method}" in runs}
    return {method: {key: np.asarray(value) for key, value in run.end.items()} for method, run in found.items()}


def report(runs: dict[str, record.Run]) -> None:
    print(f"after {next(iter(runs.values())).config['steps']} training steps\n")
    kinds = ("closed form", "minimum", "steps")
    rows = [(method, *(f"{end[kind]:.6f}" for kind in kinds)) for method, end in ends(runs, "scalar").items()]
    print(console.table(("scalar: w", *kinds), rows) + "\n")

    for what in WHAT:
        rows = []
        for (i, u), (j, sigma) in itertools.product(enumerate(RIDGE), enumerate(SIGMAS)):
            errors = (end[f"{what}, {kind}"][i, j] for end in ends(runs, "ridge").values() for kind in KINDS)
            rows.append((f"{u:g}, {sigma:g}", *(f"{100 * error:.2g}" for error in errors)))
        header = (f"{method}: {KINDS[0]}" if kind == KINDS[0] else kind for method in METHODS for kind in KINDS)
        print(console.table((f"ridge, error of {what} in %, at log penalty, sigma", *header), rows) + "\n")

    end = ends(runs, "network")["STN"]
    errors = np.abs(end["steps"] - end["truth"]).max(axis=0)
    rows = [("largest error of a gate", *(f"{error:.0e}" for error in errors))]
    print(console.table(("network: d", *(f"{d:.2g}" for d in end["d"])), rows) + "\n")

    found, rows = ends(runs, "condition"), []
    for i, sigma in enumerate(CONDITION_SIGMAS):
        for k in range(0, len(U), 6):
            numbers = (f"{end[kind][i, k]:.5g}" for end in found.values() for kind in ("predicted", "measured"))
            rows.append((f"{U[k]:g}, {sigma:g}", *numbers))
    print(console.table(("condition: u, sigma", "u + e: predicted", "measured", "e: predicted", "measured"), rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 4.2))
    left, right = axes
    for method, end in reversed((fits := ends(runs, "ridge")).items()):
        for i, u in enumerate(RIDGE):
            near = np.abs(CURVE - u) <= 2
            label = f"{method}'s response about $\\lambda$" if i == 0 else None
            look = {"color": COLOURS[method], "ls": ":" if method == "STN" else "-", "lw": 2.4}
            left.plot(CURVE[near], end[f"tangents, {KINDS[1]}"][i][near], label=label, **look)
    truth = fits["STN"]["truth"]
    left.plot(CURVE, truth, color=style.INK, lw=1.2, ls="--", label="the best response")
    left.plot(RIDGE, np.interp(RIDGE, CURVE, truth), "o", color=style.INK, ms=5)
    spread = np.ptp(truth)
    left.set(title=f"ridge, sigma = {SHOWN:g}", ylim=(truth.min() - 0.1 * spread, truth.max() + 0.1 * spread))
    left.set(xlabel="log penalty", ylabel="validation loss")
    left.legend()
    end = ends(runs, "network")["STN"]
    for i, k in enumerate(shown := range(0, len(end["d"]), 3)):
        colour = plt.cm.viridis(i / len(shown))
        right.plot(CURVE, end["truth"][:, k], color=colour, lw=1.2, label=f"d = {end['d'][k]:.2g}")
        right.plot(CURVE[::2], end["steps"][::2, k], "o", color=colour, ms=4)
    right.set(title="linear network; dots: fitted by STN, all at once", xlabel="log penalty", ylabel="gate")
    right.legend()
    style.save(figure, figures.with_name(f"{figures.name}_curves.png"))

    figure, axes = plt.subplots(1, 3, figsize=(12.6, 4.2))
    for a, what, title in zip(axes, WHAT[1:], ("response Jacobian", "hypergradient"), strict=False):
        for method, end in fits.items():
            for kind, look in zip(
                KINDS, ({"ls": "-"}, {"ls": "", "marker": "o"}, {"ls": "", "marker": "x"}), strict=True
            ):
                errors = end[f"{what}, {kind}"][RIDGE.index(DRAWN)]
                a.plot(SIGMAS, errors, color=COLOURS[method], label=f"{method}, {kind}", **look)
        a.axhline(0.01, color=style.INK, lw=1, ls=":")
        a.text(SIGMAS[0], 0.012, "1 %", fontsize=9)
        a.set(xscale="log", yscale="log", xlabel="sigma", title=f"error of the {title}, $\\lambda$ = {DRAWN:g}")
    axes[0].legend(loc="lower right")
    for method, end in ends(runs, "condition").items():
        for i, sigma in enumerate(CONDITION_SIGMAS):
            style_of = {"ls": "-" if i == 0 else "--", "color": COLOURS[method]}
            axes[2].plot(U, end["predicted"][i], **style_of, label=f"{method}, sigma = {sigma:g}")
            axes[2].plot(U[::2], end["measured"][i][::2], "o", color=COLOURS[method], ms=4)
    axes[2].set(yscale="log", xlabel="u", title="condition number; dots: measured", ylim=(1, 1e8))
    axes[2].legend(loc="upper center", ncols=2)
    style.save(figure, figures.with_name(f"{figures.name}_errors.png"))


if __name__ == "__main__":
    console.main("exactness", "True against fitted best responses.", solve, report, draw)
