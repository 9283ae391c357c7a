"""min over theta  1/n sum 1/2 ||xhat_i(theta) - clean_i||^2,   xhat_i(theta) = argmin of the Fields-of-Experts energy.

The paper's setting (section 4.3 of arXiv 2308.10098): 20 Kodak images, grey, 96 x 96, noise 0.1; 48 filters 7 x 7 with
their weights and smoothings, by MAID, HOAG's three schedules, and certified quasi-Newton descent. Then the PSNR on
images that nobody trained on, beside total variation's, and what each kernel costs.

Two parametrisations: the published 2449 hyperparameters, and 2448 with filters of zero mean and no scale, which only
repeats the weights. f can curve by ||J||^2 / n, J = d2h/dxdtheta, and scale and means make ||J|| several times larger:
descent must take shorter steps, each at a higher accuracy.
"""

import math
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

import bilevel
from bilevel import problems
from bilevel._certificate.estimates import cross_norm
from bilevel._problem import cross_transpose_product, hessian_product, lower_gradient
from bilevel.problems import data, foe
from experiments._harness import console, record, style

jax.config.update("jax_enable_x64", True)

SIZE, SIGMA, FILTERS, BOUNDARY = 96, 0.1, (48, 7), "reflect"
BUDGET = 10_000  # about twenty minutes a method; the paper's curve goes on to 100_000
SOLVER = bilevel.LBFGS()  # a gradient here costs more than the forty arrays that a step of L-BFGS moves
METHODS = {
    "maid": bilevel.maid(1.0, 1.0, solver=SOLVER),  # the first accuracies of the authors' code
    "hoag geometric": bilevel.hoag(bilevel.Geometric(0.9), solver=SOLVER),
    "hoag quadratic": bilevel.hoag(bilevel.Polynomial(2), solver=SOLVER),
    "hoag cubic": bilevel.hoag(bilevel.Polynomial(3), solver=SOLVER),
    "quasi-newton": bilevel.quasi_newton(),
}
AS_PUBLISHED = "maid, as published"  # with all 2449 hyperparameters; the others with 2448
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "china", "coffee")
JUDGE_EPS = 1e-3  # in ||x||: the value, about 10, is then known to 1e-3
PUBLISHED = {1e3: 11.7, 1e4: 8.7, 1e5: 7.8}  # MAID's values by cost, read off a slide of the authors
PICTURES = {"noisy": "noisy", "tv": "total variation", "maid": "Fields of Experts", "clean": "clean"}
SHOWN = ("kodim19.png", "kodim21.png", "kodim23.png", "chelsea")
# Products of a K x s^2 matrix and s^2 x pixels that a kernel cannot do without, an image. X, Q: patches of x and q.
PRODUCTS = {
    "gradient": 2,  # t = B X, B^T phi'(t)
    "Hessian product": 3,  # t, B Q, B^T (phi''(t) B Q)
    "J^T q": 4,  # t, B Q, phi'(t) Q^T, (phi''(t) B Q) X^T
    "bounds": 6,  # t, B Q, B^T phi'(t) and three Gram matrices
}


class ZeroMean(problems.FieldsOfExperts):
    """Fields of Experts whose filters are c_i less their means. A projection of theta, so that the constants and bounds
    proven for the base hold. Descent that starts at zero means stays there."""

    def scaled(self, theta):
        B, a, w = super().scaled(theta)
        return B - jnp.mean(B, axis=(1, 2), keepdims=True), a, w


def images(packaged: bool, smoke: bool) -> dict[str, data.Pairs]:
    """The images to learn from, and those to judge by."""
    size = 24 if smoke else SIZE
    photographs = data.denoising_set("photographs", sigma=SIGMA, seed=1, held_out=PHOTOGRAPHS, size=size)
    if packaged:
        return {"training": photographs.train, "photographs": photographs.held_out}
    kodak = data.denoising_set("kodak", sigma=SIGMA, seed=0, held_out=data.KODAK[20:], size=size)
    return {"training": kodak.train, "Kodak, held out": kodak.held_out, "photographs": photographs.held_out}


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not in the log yet."""
    if not log.path.exists():
        for suffix in (".npz", ".png"):
            log.path.with_suffix(suffix).unlink(missing_ok=True)
    sets = images(packaged, smoke)
    train, (filters, size), budget = sets["training"], (6, 5) if smoke else FILTERS, 300 if smoke else BUDGET
    theta0 = foe.initial(0, filters, size)
    published = problems.FieldsOfExperts(train.clean, train.noisy, boundary=BOUNDARY)
    ours = (
        ZeroMean(train.clean, train.noisy, fixed={"scale": theta0["scale"]}, boundary=BOUNDARY),
        {leaf: value for leaf, value in theta0.items() if leaf != "scale"},
    )
    runs = {name: (*ours, method) for name, method in METHODS.items()}
    runs |= {AS_PUBLISHED: (published, theta0, METHODS["maid"])}
    tv = problems.TotalVariation(train.clean, train.noisy)
    config = {"images": train.names, "size": train.clean.shape[-1], "sigma": SIGMA, "filters": [filters, size, size]}
    config["boundary"] = BOUNDARY

    def missing(run):
        return run not in log.finished()

    if missing("tv"):
        at, limits = np.array([-5.0, -5.0]), {"tol": 1e-2, "max_cost": budget}
        keep(log, tv=record.solve(log, "tv", config, tv, at, bilevel.maid(), **limits).theta)
    keep(log, **{f"initial theta, {leaf}": np.float32(value) for leaf, value in theta0.items()})
    for name, at in {"noisy": None, "initial theta": (published, theta0), "tv": (tv, kept(log)["tv"])}.items():
        if missing(f"psnr, {name}"):
            denoise(log, name, at, sets)
    for name, (problem, start, method) in runs.items():
        if missing(name):
            most = budget // 10 if name == AS_PUBLISHED else budget  # a tenth shows how slow it is
            limits = {"tol": 0.0, "max_cost": most, "max_steps": most}
            solution = record.solve(log, name, config, problem, start, method, judge=judge(problem), **limits)
            keep(log, **{f"{name}, {leaf}": np.float32(value) for leaf, value in solution.theta.items()})
        if missing(f"psnr, {name}"):
            learnt = {leaf: np.float64(kept(log)[f"{name}, {leaf}"]) for leaf in start}
            denoise(log, name, (published, theta0 | learnt), sets)
    if missing("stiffness"):
        zero_means = ZeroMean(train.clean, train.noisy, boundary=BOUNDARY)
        stiffness(log, {"as published": (published, theta0), "zero means": (zero_means, theta0), "and no scale": ours})
    if missing("kernels"):
        kernels(log, published, theta0, rounds=3 if smoke else 25)


def judge(problem: problems.FieldsOfExperts):
    """f(theta) by a solve that starts at the method's own x: HOAG's values have no useful bounds."""

    def measure(theta, x):
        lower = bilevel.solve_lower(problem, theta, eps=JUDGE_EPS, x0=x, solver=SOLVER)
        value, n, eps = float(problem.upper(lower.x, theta)), len(problem.noisy), float(lower.error)
        # ||grad g|| eps + eps^2 / 2n, and ||grad g|| = ||x - clean|| / n
        error = math.sqrt(2 * value / n) * eps + eps**2 / (2 * n)
        return {"f": value, "error": error, "judge_cost": int(lower.lower_gradients)}

    return measure


def kept(log: record.Log) -> dict[str, np.ndarray]:
    """The arrays beside the log."""
    path = log.path.with_suffix(".npz")
    return dict(np.load(path)) if path.exists() else {}


def keep(log: record.Log, **arrays: np.ndarray) -> None:
    """Add arrays to those beside the log."""
    np.savez_compressed(log.path.with_suffix(".npz"), **{**kept(log), **arrays})


def denoise(log: record.Log, name: str, at, sets: dict[str, data.Pairs]) -> None:
    """The PSNR of every image, and some pictures; `at`: a problem and its theta, None for the noisy images."""
    noisy, clean = (np.concatenate([getattr(pairs, kind) for pairs in sets.values()]) for kind in ("noisy", "clean"))
    x = noisy if at is None else np.asarray(at[0].denoise(at[1], noisy, eps=1e-4 * noisy.size**0.5).x)
    groups = np.cumsum([len(pairs.names) for pairs in sets.values()])[:-1]
    psnr = np.split(data.psnr(x, clean), groups)
    log.write("config", f"psnr, {name}", **{where: pairs.names for where, pairs in sets.items()})
    log.write("end", f"psnr, {name}", **dict(zip(sets, psnr, strict=True)))
    if name in PICTURES:
        names, path = [image for pairs in sets.values() for image in pairs.names], log.path.with_suffix(".png")
        shown = [names.index(image) for image in SHOWN if image in names]
        style.save_pictures(path, style.load_pictures(path) | {name: x[shown], "clean": clean[shown]})


def stiffness(log: record.Log, cases: dict) -> None:
    """||J|| at the first theta, whose filters have zero means, so that x is the same for all."""
    (problem, theta), *_ = cases.values()
    x = bilevel.solve_lower(problem, theta, eps=JUDGE_EPS, solver=SOLVER).x
    norms = {}
    for name, (problem, theta) in cases.items():
        bound, certain = eqx.filter_jit(cross_norm)(problem, x, theta)
        norms[name] = float(bound) * (1 if certain else 0.5**0.5)  # Lanczos's bound is 1.41 times what it saw
    log.write("config", "stiffness", images=len(x), **record.environment())
    log.write("end", "stiffness", **norms)


def kernels(log: record.Log, problem: problems.FieldsOfExperts, theta, rounds: int) -> None:
    """Seconds of each kernel, and of as many matrix products of the same shapes, in turns."""
    n, height, width = problem.noisy.shape
    K, s, _ = theta["filters"].shape
    pixels = height * width  # as many patches, with the image mirrored by half a filter
    rng = np.random.default_rng(0)
    B, X = (jnp.asarray(rng.normal(size=shape)) for shape in ((K, s * s), (s * s, pixels)))
    B /= jnp.linalg.norm(B, ord=2)  # the products are chained, so that none can be left out, and must not overflow
    args = problem, problem.noisy, theta, problem.clean
    programs = {
        "gradient": lambda problem, x, theta, q: lower_gradient(problem, x, theta),
        "Hessian product": hessian_product,
        "J^T q": cross_transpose_product,
        "bounds": lambda problem, x, theta, q: problem.bounds(x, theta, q, jnp.asarray(JUDGE_EPS)),
    }
    programs = {name: (jax.jit(program), args) for name, program in programs.items()}
    programs["matmul"] = jax.jit(lambda B, X: lax.fori_loop(0, n, lambda _, X: B.T @ (B @ X), X)), (B, X)
    seconds = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, (program, operands) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*operands))
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - start)
    log.write("config", "kernels", shape=[n, height, width], filters=[K, s, s], rounds=rounds, **record.environment())
    flops = 2 * K * s**2 * pixels * n
    median, best = ({name: f(v) for name, v in seconds.items()} for f in (np.median, np.min))
    log.write("end", "kernels", flops_per_product=flops, products=PRODUCTS, seconds=median, best=best)


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
