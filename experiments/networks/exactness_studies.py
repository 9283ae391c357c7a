"""The studies of `exactness`: each fits a model with a method, and returns what was found beside the truth."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_diabetes

from experiments.networks.exactness_fit import (
    CURVE,
    LARGE,
    RATE,
    Fit,
    Gated,
    jacobian_penalty,
    linear,
    ridge,
    squared_error,
)

TRAIN = 300  # patients
SCALAR = (-2.0, 1.0)  # log penalty, sigma
RIDGE, SIGMAS = (-3.0, 1.0), (0.01, 0.03, 0.1, 0.3, 1.0)  # log penalties, and the sigma of each
NETWORK = (-2.0, 2.0)  # log penalty and sigma: draws from all over the curve
SHOWN = 1.0  # sigma of the tangents
U, CONDITION_SIGMAS = np.linspace(-9, 3, 25), (0.1, 0.5)
WHAT = ("weights", "jacobian", "hypergradient")
ONE = (jnp.ones((1, 1)), jnp.ones(1))
KINDS = "minimum", f"rate {RATE:g}", f"rate {LARGE:g}"


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
