"""The Fields-of-Experts problem of the paper, its runs, and what is measured beside them: PSNR, ||J||, kernels."""

import math
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import bilevel
from bilevel import problems
from bilevel._certificate.estimates import cross_norm
from bilevel._problem import cross_transpose_product, hessian_product, lower_gradient
from bilevel.problems import data, foe
from experiments._harness import record, style

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

    def named(self, theta):
        theta = dict(super().named(theta))
        theta["filters"] -= jnp.mean(theta["filters"], axis=(1, 2), keepdims=True)
        return theta


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
