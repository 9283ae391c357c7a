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

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt
from sklearn.datasets import load_diabetes
from tqdm import tqdm

from bilevel import stn
from bilevel.stn._tune import start
from bilevel.stn.train import Losses, train_step
from experiments._harness import console, record, style

jax.config.update("jax_enable_x64", True)

KEY, TRAIN, STEPS = jax.random.key(0), 300, 50_000
RATE, LARGE = 3e-3, 5e-2  # of Adam; the large one for ridge only
SCALAR = (-2.0, 1.0)  # log penalty, sigma
RIDGE, SIGMAS = (-3.0, 1.0), (0.01, 0.03, 0.1, 0.3, 1.0)  # log penalties, and the sigma of each
NETWORK = (-2.0, 2.0)  # log penalty and sigma: draws from all over the curve
CURVE, SHOWN, DRAWN = np.linspace(-6, 4, 41), 1.0, -3.0  # log penalties and sigma of the curves drawn
U, CONDITION_SIGMAS = np.linspace(-9, 3, 25), (0.1, 0.5)
METHODS = {"STN": stn.stn, "Delta-STN": stn.delta_stn}
COLOURS = {"STN": "#009E73", "Delta-STN": style.COLOURS["maid"]}
WHAT = ("weights", "jacobian", "hypergradient")
ONE = (jnp.ones((1, 1)), jnp.ones(1))
KINDS = "minimum", f"rate {RATE:g}", f"rate {LARGE:g}"
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)


class Gated(eqx.Module):
    """sum_i sigmoid(c_i + v_i lambda) q_i x_i, started from weights w, every gate half open; `gate` alone responds."""

    gate: eqx.nn.Linear
    q: jax.Array

    def __init__(self, w: np.ndarray):
        gate = eqx.nn.Linear(1, len(w), use_bias=False, key=KEY)
        self.gate, self.q = eqx.tree_at(lambda g: g.weight, gate, jnp.zeros((len(w), 1))), 2 * jnp.asarray(w)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.sum(jax.nn.sigmoid(self.gate(jnp.ones(1))) * self.q * x, keepdims=True)


def linear(features: int) -> eqx.nn.Linear:
    return eqx.nn.Linear(features, 1, use_bias=False, key=KEY)


def squared_error(model, batch):
    return jnp.mean((jax.vmap(model)(batch[0])[:, 0] - batch[1]) ** 2) / 2


def ridge(model, batch, hyper, key):
    return squared_error(model, batch) + hyper["penalty"] * stn.squared_norm(model) / 2


def jacobian_penalty(model, batch, hyper, key):
    y, slope = jax.vmap(jax.value_and_grad(lambda x: model(x)[0]))(batch[0])
    return jnp.mean((y - batch[1]) ** 2 + hyper["penalty"] * jnp.sum(slope**2, axis=1)) / 2


class Fit:
    """A method on a model with one log penalty; u and sigma, scalars, are traced."""

    def __init__(
        self, method, model, train_loss, batch, steps, rate=RATE, draws="batch", where=lambda path, layer: True
    ):
        space = stn.Space(penalty=stn.Positive(1.0, draws=draws))
        method = METHODS[method](optax.adam(optax.cosine_decay_schedule(rate, steps)), learn_scales=False)
        model = stn.convert(model, space, key=KEY, where=where)
        static = eqx.filter(model, eqx.is_inexact_array, inverse=True)
        self.losses, self.state = Losses(method, space, static, train_loss, squared_error), start(model, space, method)
        self.batch, self.params = batch, eqx.combine(self.state.weights, self.state.responses)
        self.keys = jax.random.split(KEY, steps)

    def steps(self, u, sigma):
        """The parameters after all training steps."""
        rho = jnp.log(jnp.expm1(sigma))
        state = eqx.tree_at(lambda s: (s.u, s.rho), self.state, (jnp.reshape(u, 1), jnp.reshape(rho, 1)))
        state, _ = jax.lax.scan(lambda s, key: (train_step(self.losses, s, self.batch, key)[0], None), state, self.keys)
        return eqx.combine(state.weights, state.responses)

    def expected(self, params, u, sigma):
        """E_e of the perturbed training loss."""
        u, e = jnp.reshape(u, 1), sigma * jnp.asarray(NODES)[:, None]
        each = jax.vmap(lambda e: self.losses.perturbed(params, u, e, self.batch, KEY))(e)
        return jnp.asarray(WEIGHTS / WEIGHTS.sum()) @ each

    def place(self, w, r):
        """The parameters of a linear model with weights w and response r, each (features,)."""
        places = lambda m: (m.base.weight, m.weights["weight"], m.gates["weight"])  # noqa: E731
        return eqx.tree_at(places, self.params, (w[None], r[None], jnp.ones((1, 1))))

    def best(self, u, sigma):
        """The parameters of a linear model at the minimum of the expected losses, which are quadratic in w and r."""
        n = self.batch[0].shape[1]
        if not self.losses.method.decoupled:
            return self.place(*jnp.split(newton(lambda p: self.expected(self.place(p[:n], p[n:]), u, sigma), 2 * n), 2))
        w = newton(lambda w: self.losses.unperturbed(self.place(w, w), jnp.reshape(u, 1), self.batch, KEY), n)
        return self.place(w, newton(lambda r: self.expected(self.place(w, r), u, sigma), n))

    def weights(self, params, offset):
        """The linear function that the model is where its gates see `offset`, (1,)."""
        model = stn.bind(eqx.combine(params, self.losses.static), offset)
        return jax.vmap(model)(jnp.eye(self.batch[0].shape[1]))[:, 0]

    def about(self, params, u, valid):
        """(w, dw/du, hypergradient, validation loss along CURVE) of the fitted response about u."""
        u = jnp.reshape(u, 1)
        offset = jnp.zeros(1) if self.losses.method.centred else u
        w, jacobian = jax.jvp(lambda e: self.weights(params, e), (offset,), (jnp.ones(1),))
        slope = jax.grad(self.losses.validation)((u, self.state.rho), params, valid, KEY)[0][0]
        curve = jax.vmap(lambda e: self.losses.response(params, offset + e - u, valid))(jnp.asarray(CURVE)[:, None])
        return w, jacobian, slope, curve


def newton(f, size):
    """The minimiser of a quadratic."""
    zero = jnp.zeros(size)
    return -jnp.linalg.solve(jax.hessian(f)(zero), jax.grad(f)(zero))


def diabetes():
    """((features, target) to train, to validate, d, w_0), standardised, in the principal axes of the training part."""
    x, t = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(t))
    x, t = x[order], t[order]
    x, t = (x - x[:TRAIN].mean(0)) / x[:TRAIN].std(0), (t - t[:TRAIN].mean()) / t[:TRAIN].std()
    d, axes = np.linalg.eigh(x[:TRAIN].T @ x[:TRAIN] / TRAIN)
    x = jnp.asarray(x @ axes)
    w0 = np.asarray(x[:TRAIN]).T @ t[:TRAIN] / TRAIN / d
    return (x[:TRAIN], jnp.asarray(t[:TRAIN])), (x[TRAIN:], jnp.asarray(t[TRAIN:])), d, w0


def shrunk(d: np.ndarray, w0: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The best weights at each of the log penalties u."""
    return w0 * d / (d + np.exp(u)[:, None])


def scalar(method: str, steps: int) -> dict:
    """One example, copied so that a step averages over 256 draws."""
    u, sigma = SCALAR
    fit = Fit(method, linear(1), ridge, (jnp.ones((256, 1)), jnp.ones(256)), steps, draws="example")
    offset = jnp.zeros(1) if fit.losses.method.centred else jnp.reshape(u, 1)
    found = jax.jit(lambda: fit.weights(fit.steps(u, sigma), offset))()[0]
    best = jax.jit(lambda: fit.weights(fit.best(u, sigma), offset))()[0]
    m = np.exp(u + sigma**2 / 2)
    closed = {"STN": 1 / (1 + m - m**2 / (1 + 2 * m)), "Delta-STN": 1 / (1 + np.exp(u))}
    return {"closed form": closed[method], "minimum": best, "steps": found}


def ridges(method: str, steps: int) -> dict:
    """Relative errors, (log penalties, sigmas), and the tangents at SHOWN."""
    train, valid, d, w0 = diabetes()
    x, t = map(np.asarray, valid)
    u, sigma = (np.ravel(axis) for axis in np.meshgrid(RIDGE, SIGMAS, indexing="ij"))
    w = shrunk(d, w0, u)
    jacobian = -np.exp(u)[:, None] / (d + np.exp(u)[:, None]) * w
    slope = np.sum(jacobian @ x.T * (w @ x.T - t), axis=1, keepdims=True) / len(t)
    slow, fast = (Fit(method, linear(len(d)), ridge, train, steps, rate) for rate in (RATE, LARGE))
    result = {"truth": np.mean((shrunk(d, w0, CURVE) @ x.T - t) ** 2, axis=1) / 2}
    for kind, find in zip(KINDS, (slow.best, slow.steps, fast.steps), strict=True):
        about = jax.jit(jax.vmap(lambda u, sigma, find=find: slow.about(find(u, sigma), u, valid)))
        *parts, curves = map(np.asarray, about(jnp.asarray(u), jnp.asarray(sigma)))
        for what, part, true in zip(WHAT, parts, (w, jacobian, slope), strict=True):
            errors = np.linalg.norm(part.reshape(true.shape) - true, axis=1) / np.linalg.norm(true, axis=1)
            result[f"{what}, {kind}"] = errors.reshape(len(RIDGE), len(SIGMAS))
        result[f"tangents, {kind}"] = curves[sigma == SHOWN]
    return result


def network(method: str, steps: int) -> dict:
    """Fitted for all log penalties at once; at the best response the gradient is zero for every draw, so no noise is
    left. Gates are those of the function that was learned, over w_0."""
    train, _, d, w0 = diabetes()
    fit = Fit(method, Gated(w0), jacobian_penalty, train, steps, where=lambda path, layer: path == ".gate")
    params = jax.jit(lambda: fit.steps(*NETWORK))()
    found = jax.jit(jax.vmap(lambda e: fit.weights(params, e)))(jnp.asarray(CURVE)[:, None])
    return {"d": d, "truth": shrunk(d, w0, CURVE) / w0, "steps": found / w0}


def condition(method: str, steps: int) -> dict:
    """(sigmas, U)"""
    fit = Fit(method, linear(1), lambda model, batch, hyper, key: squared_error(model, batch), ONE, steps)
    hessian = jax.hessian(lambda p, u, sigma: fit.expected(fit.place(p[:1], p[1:]), u, sigma))
    matrix = jax.jit(lambda u, sigma: hessian(jnp.zeros(2), u, sigma))
    measured = [[np.linalg.cond(matrix(u, sigma)) for u in U] for sigma in CONDITION_SIGMAS]
    sigma = np.reshape(CONDITION_SIGMAS, (-1, 1))
    trace = 1 + U**2 + sigma**2
    root = np.sqrt(trace**2 - 4 * sigma**2)
    centred = np.maximum(sigma**2, sigma**-2) * np.ones_like(U)
    return {
        "measured": measured,
        "predicted": centred if fit.losses.method.centred else (trace + root) / (trace - root),
    }


STUDIES = {"scalar": scalar, "ridge": ridges, "network": network, "condition": condition}


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
