"""Does self-tuning find optima that are known, from starts far below and above, and which of its parts does it need?

Four linear models (`optima_cases.py`), four starts each, three seeds, 8 000 steps, `stn.delta_stn()` as it is, and with
one part changed at a time:

antithetic pairs     the response is fitted under e and -e on half of the batch; else under e on all of it
bounds of sigma      sigma stays within twice and half of its start; else softplus(rho), bounded by nothing
relative entropy     tau |L_valid| log sigma: a hundred times more or less is what tau log sigma becomes where the loss
                     is measured in other units
3 x the rate         of u, which is RMSProp's 1e-2
"""

import itertools
from pathlib import Path

import numpy as np
import optax
from matplotlib import pyplot as plt
from tqdm import tqdm

from bilevel import stn
from experiments._harness import console, record, style
from experiments.networks import optima_cases as cases

SEEDS, STEPS = (0, 1, 2), 8000


VARIANTS = {
    "Delta-STN": (stn.delta_stn(), stn.Space),
    "neither": (stn.delta_stn(antithetic=False), cases.Unbounded),
    "no pairs": (stn.delta_stn(antithetic=False), stn.Space),
    "no bounds": (stn.delta_stn(), cases.Unbounded),
    "entropy / 100": (stn.delta_stn(entropy=1e-5), stn.Space),
    "100 entropy": (stn.delta_stn(entropy=1e-1), stn.Space),
    "3 x the rate": (stn.delta_stn(hyper=optax.rmsprop(3e-2)), stn.Space),
}


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every case and variant that is not in the log yet."""
    steps, variants = (200, ("Delta-STN",)) if smoke else (STEPS, VARIANTS)
    for variant, name in (bar := tqdm(list(itertools.product(variants, cases.STARTS)), disable=None)):
        run = f"{variant}, {name}"
        bar.set_description(run)
        if run not in log.finished():
            method, kind = VARIANTS[variant]
            log.write("config", run, variant=variant, case=name, steps=steps, **record.environment())
            found = cases.runs(name, SEEDS[:1] if smoke else SEEDS, method, steps, kind=kind)
            log.write("end", run, **{key: [one[key] for one in found] for key in found[0]})


def report(runs: dict[str, record.Run]) -> None:
    print(f"after {next(iter(runs.values())).config['steps']} steps: how many of the runs\n")
    rows = []
    for run in runs.values():
        end = {key: np.array(value) for key, value in run.end.items()}
        n = len(end["loss"])
        counts = [np.sum(end[key] <= limit) for key, limit in (("ratio", 1.25), ("loss", 1.01), ("jacobian", 0.2))]
        worst = (f"{end[key].max():.3g}" for key in ("ratio", "loss", "jacobian"))
        rows.append((f"{run.config['variant']}, {run.config['case']}", *(f"{count}/{n}" for count in counts), *worst))
    header = ("", "value within 1.25 x", "loss within 1 %", "response within 20 %")
    print(console.table((*header, "worst factor", "worst loss", "worst response"), rows))


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    figure, axes = plt.subplots(1, len(cases.STARTS), figsize=(12.6, 3.6), sharey=True)
    for a, name in zip(axes, cases.STARTS, strict=True):
        group = [run for run in runs.values() if run.config["case"] == name]
        for k, run in enumerate(group):
            own = run.config["variant"] == "Delta-STN"
            excess = np.maximum(np.array(run.end["loss"]) - 1, 1e-4)
            a.scatter(excess, np.full(len(excess), k), s=14, color=style.COLOURS["maid"] if own else "#8A8A8A")
        a.axvline(0.01, color="#D55E00", lw=1)
        a.set(title=name, xscale="log", xlabel="validation loss / best - 1")
        a.set_yticks(range(len(group)), [run.config["variant"] for run in group])
    style.save(figure, figures.with_name(f"{figures.name}.png"))


if __name__ == "__main__":
    console.main("optima", "Known optima, from starts below and above.", solve, report, draw)
