"""min over theta  1/n sum 1/2 ||xhat_i(theta) - clean_i||^2,   xhat_i(theta) = argmin of the Fields-of-Experts energy.

The paper's setting (section 4.3 of arXiv 2308.10098): 20 Kodak images, grey, 96 x 96, noise 0.1; 48 filters 7 x 7 with
their weights and smoothings, by MAID, HOAG's three schedules, and certified quasi-Newton descent. Then the PSNR on
images that nobody trained on, beside total variation's, and what each kernel costs.

Two parametrisations: the published 2449 hyperparameters, and 2448 with filters of zero mean and no scale, which only
repeats the weights. f can curve by ||J||^2 / n, J = d2h/dxdtheta, and scale and means make ||J|| several times larger:
descent must take shorter steps, each at a higher accuracy.
"""

import math
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

from bilevel.problems import data
from experiments._harness import console, record, style
from experiments.paper.foe_runs import AS_PUBLISHED, METHODS, PICTURES, SHOWN, solve

PUBLISHED = {1e3: 11.7, 1e4: 8.7, 1e5: 7.8}  # MAID's values by cost, read off a slide of the authors


def value_at(run: record.Run, cost: float) -> tuple[float, float]:
    """f at the last judged point that the run reached within `cost`, and its error."""
    (reached,) = np.nonzero(run.judged["cost"] <= cost)
    return (run.judged["f"][reached[-1]], run.judged["error"][reached[-1]]) if len(reached) else (math.nan, math.nan)


def report(runs: dict[str, record.Run]) -> None:
    """The tables, from the log alone."""
    done = [name for name in (*METHODS, AS_PUBLISHED) if name in runs]
    rows = [("published, MAID", *(f"{PUBLISHED[cost]:.1f}" for cost in (1e3, 1e4)), "1000", "10000")]
    for name in done:
        run, end = runs[name], runs[name].end
        values = [value_at(run, cost) for cost in (1e3, 1e4)]
        reached = [run.judged["cost"][run.judged["f"] <= PUBLISHED[cost]] for cost in (1e3, 1e4)]
        rows.append((name, *(f"{f:.3f} +- {error:.0e}" for f, error in values),
                     *(str(cost[0]) if len(cost) else "never" for cost in reached),
                     end["cost"], end["steps"], f"{end['seconds']:.0f}"))  # fmt: skip
    header = ("value", "at 1e3", "at 1e4", *(f"cost to {PUBLISHED[cost]}" for cost in (1e3, 1e4)), "cost", "steps", "s")
    rows = [row + ("",) * (len(header) - len(row)) for row in rows]
    print(f"{runs[done[0]].steps['value'][0]:.2f} at the start.\n" + console.table(header, rows))
    tv = runs["tv"].end
    print(f"TV on the same images: {tv['value']:.3f} with (log weight, log smoothing) = "
          f"({tv['theta'][0]:.3f}, {tv['theta'][1]:.3f}), cost {tv['cost']}, {tv['seconds']:.0f} s\n")  # fmt: skip

    psnr = {name.removeprefix("psnr, "): run.end for name, run in runs.items() if name.startswith("psnr, ")}
    groups = list(psnr["noisy"])
    rows = [
        (name, *(f"{np.mean(psnr[name][where]):.2f}" for where in groups))
        for name in ("noisy", "initial theta", "tv", *done) if name in psnr
    ]  # fmt: skip
    print(console.table(("mean PSNR in dB", *(f"{len(psnr['noisy'][w])} {w}" for w in groups)), rows) + "\n")

    if "stiffness" in runs:
        n = runs["stiffness"].config["images"]
        rows = [(name, f"{J:.1f}", f"{J**2 / n:.1f}") for name, J in runs["stiffness"].end.items()]
        print(console.table(("at the first theta", "||J||", "||J||^2 / n"), rows) + "\n")
    if "kernels" not in runs:
        return
    end, config = runs["kernels"].end, runs["kernels"].config
    n, flops, matmul = config["shape"][0], end["flops_per_product"], end["seconds"]["matmul"]
    rate = 2 * flops / matmul
    rows = [
        (name, products, f"{products * flops / 1e9:.2f}", f"{1e3 * end['seconds'][name]:.0f}",
         f"{1e3 * products * flops / rate:.0f}", f"{end['seconds'][name] * rate / (products * flops):.1f}",
         f"{end['best'][name] * 2 / (products * end['best']['matmul']):.1f}")
        for name, products in end["products"].items()
    ]  # fmt: skip
    header = ("kernel", "products", "Gflop", "ms", "ms of the products alone", "times that", "(best)")
    print(console.table(header, rows))
    print(f"{n} images, {end['seconds']['matmul']:.3g} s for {2 * n} products: {rate / 1e9:.0f} Gflop/s (best "
          f"{2 * flops / end['best']['matmul'] / 1e9:.0f}), {config['cores']} cores, float64")  # fmt: skip


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    """The figures, from the log and the arrays and pictures beside it."""
    style.use()
    arrays, pictures = dict(np.load(beside.with_suffix(".npz"))), style.load_pictures(beside.with_suffix(".png"))

    figure, a = plt.subplots(figsize=(8.6, 4.8))
    start = next(runs[name].steps["value"][0] for name in METHODS if name in runs)  # the same f(theta_0) for all
    looks = {name: {"color": style.COLOURS[name], "lw": 1.6} for name in METHODS}
    looks["maid"] |= {"lw": 2.6, "zorder": 3}
    looks[AS_PUBLISHED] = {"color": style.COLOURS["maid"], "lw": 1.6, "ls": ":"}
    for name, look in looks.items():
        if name in runs:
            cost, f = (np.append(first, runs[name].judged[key]) for key, first in
                       (("cost", runs[name].steps["cost"][0]), ("f", start)))  # fmt: skip
            label = "maid, with scale and means\n(2449, as published)" if name == AS_PUBLISHED else name
            a.plot(cost, f, marker=".", label=label, **look)
    label = "MAID, the published curve,\nread off a slide"
    a.plot(*zip(*PUBLISHED.items(), strict=True), "v", color=style.INK, ms=7, label=label)
    a.axhline(runs["tv"].end["value"], color="#777777", ls="--", lw=1.2, label="total variation, learnt")
    a.set(xscale="log", yscale="log", xlabel="cost: gradients and products of the lower level", ylabel="value",
          title="Fields of Experts, 2448 hyperparameters")  # fmt: skip
    a.yaxis.set_major_locator(FixedLocator([7, 8, 9, 10, 12, 15, 20, 30, 50]))
    a.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    a.yaxis.set_minor_formatter(NullFormatter())
    a.legend(loc="upper left", bbox_to_anchor=(1, 1))
    style.save(figure, figures.with_name(f"{figures.name}_methods.png"))

    if "maid" in runs:
        learnt = {leaf: arrays[f"maid, {leaf}"] for leaf in ("weights", "smoothings", "filters")}
        strength = np.exp(arrays["initial theta, scale"] + learnt["weights"] - learnt["smoothings"])
        strength *= np.linalg.norm(learnt["filters"], axis=(1, 2))
        order = np.argsort(-strength)
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.4))
        titles = {"initial theta": "start, in the same order", "maid": "learnt by maid, the strongest first"}
        for a, (name, title) in zip(axes, titles.items(), strict=True):
            a.imshow(mosaic(arrays[f"{name}, filters"][order]), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            a.set_title(title)
            a.set_axis_off()
        spread = f"$e^{{t_0 + t_i}} \\|c_i\\| / \\nu_i$ from {strength.max():.2g} to {strength.min():.2g}"
        figure.supxlabel(f"{spread}; each filter in its own scale, red positive", fontsize=9.5)
        style.save(figure, figures.with_name(f"{figures.name}_filters.png"))

        where = {image: (group, i) for group, names in images_of(runs).items() for i, image in enumerate(names)}
        shown = [image for image in SHOWN if image in where]
        figure, axes = plt.subplots(len(shown), 4, figsize=(8.4, 2.3 * len(shown)), squeeze=False)
        for i, (image, row) in enumerate(zip(shown, axes, strict=True)):
            group, position = where[image]
            for a, (name, title) in zip(row, PICTURES.items(), strict=True):
                under = f"{image.removesuffix('.png')}, {group}"
                if name != "clean":
                    under = f"{runs[f'psnr, {name}'].end[group][position]:.2f} dB"
                style.picture(a, pictures[name][i], f"{title}\n{under}" if i == 0 else under)
        style.save(figure, figures.with_name(f"{figures.name}_pictures.png"))


def images_of(runs: dict[str, record.Run]) -> dict[str, list[str]]:
    """The names of the images by group, from the log."""
    return {group: runs["psnr, noisy"].config[group] for group in runs["psnr, noisy"].end}


def mosaic(filters: np.ndarray) -> np.ndarray:
    """Filters (K, s, s) side by side in rows of eight, each divided by its largest tap; NaN between them."""
    filters = filters / np.abs(filters).max(axis=(1, 2), keepdims=True)
    rows = -(-len(filters) // 8)
    tiles = np.full((rows * 8, *(n + 1 for n in filters.shape[1:])), np.nan)
    tiles[: len(filters), :-1, :-1] = filters
    return tiles.reshape(rows, 8, *tiles.shape[1:]).swapaxes(1, 2).reshape(rows * tiles.shape[1], -1)


if __name__ == "__main__":
    console.main("foe", __doc__, solve, report, draw, needs=data.kodak)
