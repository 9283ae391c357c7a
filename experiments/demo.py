"""min over theta  1/n sum 1/2 ||xhat_i - clean_i||^2,   xhat_i the total-variation denoising of noisy_i with theta.

Learns theta = (log weight, log smoothing) from eight photographs, by the default method to its default tolerance, and
shows what that does to one that nobody trained on. The photographs come with scikit-image and scikit-learn.

`make demo`, or `python -m experiments.demo`, writes into `experiments/demo`, which git ignores; `make demo-figure`, or
`--record`, into the log and the figure that the README shows. `--draw` makes the figure again from the log.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

import bilevel
from bilevel import problems
from bilevel.problems import data
from experiments._harness import console, packed, record, style

jax.config.update("jax_enable_x64", True)

SIZE, SIGMA, SEED, HELD_OUT = 256, 0.1, 0, "chelsea"
THETA0 = (-5.0, -5.0)
METHOD = "quasi-newton"  # the default


def log_in(place: Path) -> record.Log:
    return record.Log(place / "logs" / "demo.jsonl")


def solve(place: Path) -> None:
    """Learn, print the table, write the log and the pictures beside it."""
    clock, start = record.CompileClock(), time.perf_counter()
    train, held_out = data.denoising_set("photographs", sigma=SIGMA, seed=SEED, held_out=[HELD_OUT], size=SIZE)
    print(f"Learning from {', '.join(train.names)}; {HELD_OUT} is held out. {SIZE} x {SIZE} pixels, noise {SIGMA}.")
    problem = problems.TotalVariation(train.clean, train.noisy)
    config = {"method": METHOD, "train": train.names, "held_out": HELD_OUT, "size": SIZE, "sigma": SIGMA, "seed": SEED}
    log = record.Log(log_in(place).path, fresh=True)
    solution = record.solve(log, METHOD, config, problem, np.array(THETA0))

    # All nine photographs with the parameters before and after: one program, compiled once.
    noisy, clean = (np.concatenate([getattr(s, name) for s in (train, held_out)]) for name in ("noisy", "clean"))
    images = {"noisy": noisy}
    for name, theta in (("initial", np.array(THETA0)), ("learnt", solution.theta)):
        images[name] = np.asarray(problem.denoise(theta, noisy).x)
    psnr = {name: data.psnr(x, clean) for name, x in images.items()}
    n = len(train.names)
    quality = {name: {"train": np.mean(p[:n]), "held_out": np.mean(p[n:])} for name, p in psnr.items()}
    log.write("config", "psnr")
    log.write("end", "psnr", **quality)
    packed.pack(log.path)
    style.save_pictures(log.path.with_suffix(".png"), {name: x[-1:] for name, x in (images | {"clean": clean}).items()})

    s, counts = solution, solution.counts
    print()
    print(
        console.table(
            ("mean PSNR", "noisy", "initial theta", "learnt theta"),
            [
                (where, *(f"{quality[name][key]:.2f} dB" for name in ("noisy", "initial", "learnt")))
                for key, where in (("train", f"{n} training photographs"), ("held_out", f"held out: {HELD_OUT}"))
            ],
        )
    )
    print()
    kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts._asdict().items() if count)
    facts = [
        ("log weight, log smoothing", f"({s.theta[0]:.4f}, {s.theta[1]:.4f}), from ({THETA0[0]:g}, {THETA0[1]:g})"),
        ("upper-level value", f"{s.value:.6f} +- {s.value_error:.1e}, from {s.history['value'][0]:.4f}"),
        ("norm of the gradient", f"{s.gradient_norm:.2e} +- {s.gradient_error:.1e}, tolerance {s.tol:.1e}"),
        ("certified", "yes: every bound is proven" if s.certified else "no: some bounds rest on estimates"),
        ("cost", f"{counts.cost}: {kinds}"),
        ("outer steps", s.steps),
        ("seconds", f"{s.history['seconds'][-1]:.1f} learning, {clock.seconds:.1f} compiling everything here"),
        ("result", bilevel.RESULTS[s.result]),
    ]
    width = max(len(name) for name, _ in facts)
    print("\n".join(f"{name.ljust(width)}  {fact}" for name, fact in facts))
    figure, log = (path.relative_to(console.EXPERIMENTS.parent) for path in (draw(place), log.path))
    print(f"\nThe photograph nobody trained on: {figure}; what was measured: {log}.")
    print(f"{time.perf_counter() - start:.0f} s in all.")


def draw(place: Path) -> Path:
    """The figure, from the log and the pictures beside it."""
    log = log_in(place)
    run = next((run for run in record.ended(log).values() if "method" in run.config), None)
    if run is None:
        raise SystemExit(f"{log.path.relative_to(console.EXPERIMENTS.parent)} holds no run; run without --draw first.")
    images = {name: sheet[0] for name, sheet in style.load_pictures(log.path.with_suffix(".png")).items()}
    steps, end = run.steps, run.end
    style.use()
    figure = plt.figure(figsize=(11, 6.4))
    top, bottom = figure.subfigures(2, height_ratios=[1.15, 1])
    titles = {
        "noisy": "noisy",
        "initial": "initial $\\theta$ = ({:g}, {:g})".format(*run.config["theta0"]),
        "learnt": "learnt $\\theta$ = ({:.2f}, {:.2f})".format(*end["theta"]),
        "clean": "clean, never trained on",
    }
    for axes, (name, title) in zip(top.subplots(1, 4), titles.items(), strict=True):
        psnr = "" if name == "clean" else f"{data.psnr(images[name], images['clean']):.1f} dB"
        style.picture(axes, images[name], f"{title}\n{psnr}")
    axes = dict(zip(("value", "gradient"), bottom.subplots(1, 2), strict=True))
    cost, colour = steps["cost"], style.COLOURS[run.config["method"]]

    above = steps["value"][:-1] - end["value"]
    error = steps["value_error"][:-1] + end["value_error"]
    a = axes["value"]
    a.fill_between(cost[:-1], np.maximum(above - error, above / 100), above + error, color=colour, alpha=0.2, lw=0)
    a.plot(cost[:-1], above, "o-", color=colour, ms=4, label="above the last value, with its interval")
    a.plot(cost, steps["value_error"], "s:", color=style.BOUND, ms=4, lw=1.4, label="certified error of the value")
    a.set(title="Upper level: how far to go, and how well it is known", ylabel="$f(\\theta_k) - f(\\theta_K)$")
    a.legend(loc="lower left", bbox_to_anchor=(0, 0.1))
    label = f"from {steps['value'][0]:.1f} down to {end['value']:.4f} $\\pm$ {end['value_error']:.0e}"
    a.text(0.03, 0.05, label, transform=a.transAxes)

    a = axes["gradient"]
    z, omega = steps["gradient_norm"], steps["gradient_error"]
    a.fill_between(cost, np.maximum(z - omega, z / 100), z + omega, color=colour, alpha=0.2, lw=0)
    a.plot(cost, z, "o-", color=colour, ms=4, label="computed, with its certified interval")
    a.axhline(end["tol"], color=style.GOOD, ls="--", lw=1.4, label="tolerance")
    a.set(title="Gradient: its norm lies in the band, certainly", ylabel="$\\|\\nabla f(\\theta_k)\\|$")
    a.legend(loc="lower left")
    for a in axes.values():
        a.set(xscale="log", yscale="log", xlabel="cost: gradients and products of the lower level")
        a.yaxis.set_minor_formatter(NullFormatter())
    return style.save(figure, place / "figures" / "demo.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Learn a total-variation denoiser from eight photographs.")
    parser.add_argument("--record", action="store_true", help="write the log and the figure that are committed")
    parser.add_argument("--draw", action="store_true", help="only draw the figure, from the log")
    options = parser.parse_args()
    (draw if options.draw else solve)(console.EXPERIMENTS if options.record else console.EXPERIMENTS / "demo")
