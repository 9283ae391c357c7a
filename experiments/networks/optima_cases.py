"""Linear models whose best hyperparameters have a closed form, and runs of self-tuning on them, all starts at once.

y = X w + 1.5 N(0, 1), X of 60 x d standard normal, 4 000 examples to validate; mean (w x - y)^2/2 and, A = X^T X / n,
b = X^T y / n,

decay      + h |w|^2                  (A + 2 h I) w = b                     d = 30, w = 0.4 N(0, 1)
noise      x + h N(0, 1)              (A + h^2 I) w = b
dropout    x m / (1 - h)              (A + h/(1 - h) diag A) w = b
features   + sum_j h_j w_j^2 / 2      (A + diag h) w = b                    d = 10, and w is the best one for an h drawn
                                                                            log-uniform from [0.05, 2], so that the best
                                                                            h lies inside for every feature
"""

import math
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.optimize import minimize
from scipy.special import expit

from bilevel import stn
from bilevel.stn._tune import start
from bilevel.stn.train import Losses, train_step, valid_step

NOISE = 1.5
WARMUP = 100  # training steps
STARTS = {
    "decay": (1e-5, 1e-2, 1.0, 10.0),
    "noise": (0.02, 0.15, 1.5, 2.5),
    "dropout": (0.01, 0.1, 0.6, 0.9),
    "features": (1e-3, 1e-2, 1.0, 10.0),
}


class Unbounded(stn.Space):
    """A space whose sigma = softplus(rho) has no bounds."""

    def start(self, dtype=float):
        u, _ = super().start(dtype)
        return u, jnp.asarray([math.log(math.expm1(one.scale)) for one in self.hyperparameters], dtype)

    def sigma(self, rho):
        return jax.nn.softplus(rho)


class Case:
    """One of the four, drawn by `seed`."""

    def __init__(self, name: str, seed: int, n: int = 60):
        rng = np.random.default_rng(seed)
        self.name, self.d = name, 10 if name == "features" else 30
        w, X, V = 0.4 * rng.normal(size=self.d), rng.normal(size=(n, self.d)), rng.normal(size=(4000, self.d))
        y = X @ w + NOISE * rng.normal(size=n)
        self.A, self.b = X.T @ X / n, X.T @ y / n
        if name == "features":
            w = np.linalg.solve(self.A + np.diag(np.exp(rng.uniform(np.log(0.05), np.log(2), self.d))), self.b)
        self.train, self.valid = (X, y), (V, V @ w + NOISE * rng.normal(size=len(V)))

    def space(self, value: float, kind: type[stn.Space] = stn.Space) -> stn.Space:
        if self.name == "features":
            return kind(**{f"h{j}": stn.Positive(value) for j in range(self.d)})
        made = {"decay": stn.Positive, "noise": lambda value: stn.Real(value, 0, 3), "dropout": stn.Rate}[self.name]
        return kind(h=made(value))

    def values(self, u: Any) -> np.ndarray:
        """As the space has them, in float64 whatever JAX computes in."""
        u = np.asarray(u, float)
        return {"noise": 3, "dropout": 0.95}[self.name] * expit(u) if self.name in ("noise", "dropout") else np.exp(u)

    def weights(self, h: np.ndarray) -> np.ndarray:
        """The best response."""
        return np.linalg.solve(self.A + np.diag(self.penalty(h)), self.b)

    def penalty(self, h: np.ndarray) -> np.ndarray:
        """What is added to the diagonal of A."""
        if self.name == "dropout":
            return h / (1 - h) * np.diag(self.A)
        return np.broadcast_to({"decay": 2 * h, "noise": h**2, "features": h}[self.name], self.d)

    def loss(self, h: np.ndarray) -> float:
        X, y = self.valid
        return float(np.mean((X @ self.weights(h) - y) ** 2) / 2)

    @cached_property
    def best(self) -> tuple[np.ndarray, float]:
        """The best values and their validation loss."""
        size, low, high = (self.d, -9, 5) if self.name == "features" else (1, -7, 5)
        found = [
            minimize(lambda u: self.loss(self.values(u)), np.full(size, u), bounds=[(low, high)] * size)
            for u in (-4.0, -2.0, 0.0)
        ]
        best = min(found, key=lambda one: one.fun)
        return self.values(best.x), best.fun

    def jacobian(self, u: Any, step: float = 1e-4) -> np.ndarray:
        """dw/du of the best response, (d, H), by differences."""
        shifts = step * np.eye(len(u))
        ends = [[self.weights(self.values(np.asarray(u) + sign * e)) for e in shifts] for sign in (1, -1)]
        return (np.array(ends[0]) - np.array(ends[1])).T / (2 * step)

    def train_loss(self, model: Any, batch: tuple, hyper: dict[str, Array], key: Array) -> Array:
        x, y = batch
        if self.name == "noise":
            x = x + hyper["h"] * jax.random.normal(key, x.shape)
        if self.name == "dropout":
            x = jnp.where(jax.random.bernoulli(key, 1 - hyper["h"], x.shape), x / (1 - hyper["h"]), 0)
        loss = valid_loss(model, (x, y))
        if self.name == "decay":
            loss += hyper["h"] * stn.squared_norm(model)
        if self.name == "features":
            w = jax.vmap(model)(jnp.eye(self.d))[:, 0]
            loss += jnp.sum(jnp.stack(list(hyper.values())) * w**2) / 2
        return loss


def valid_loss(model: Any, batch: tuple) -> Array:
    return jnp.mean((jax.vmap(model)(batch[0])[:, 0] - batch[1]) ** 2) / 2


def runs(
    name: str, seeds: tuple[int, ...], method: stn.Method, steps: int = 8000,
    starts: tuple[float, ...] | None = None, kind: type[stn.Space] = stn.Space, batch: int = 60,
) -> list[dict[str, float]]:  # fmt: skip
    """A run from every start for every seed: `start`, `ratio` (the factor between value and best; for features
    the median), `loss` (of the network, relative to the best), `jacobian` (the response's relative error), `sigma`."""
    starts = STARTS[name] if starts is None else starts
    made = [(Case(name, seed), seed, value) for seed in seeds for value in starts]
    case, space = made[0][0], made[0][0].space(starts[0], kind)
    states = []
    for one, seed, value in made:
        key = jax.random.key(seed)
        linear = eqx.nn.Linear(one.d, 1, use_bias=False, key=key)
        model = stn.convert(linear, space, key=jax.random.fold_in(key, 1))
        states.append(start(model, one.space(value, kind), method))
    losses = Losses(method, space, eqx.filter(model, eqx.is_inexact_array, inverse=True), case.train_loss, valid_loss)

    def run(state, train, valid, key):
        def step(state, k):
            some, own, other, draws = jax.random.split(jax.random.fold_in(key, k), 4)
            chosen = jax.random.permutation(some, len(train[1]))[:batch]
            state, _ = train_step(losses, state, jax.tree.map(lambda leaf: leaf[chosen], train), own)
            chosen = jax.random.randint(other, (batch,), 0, len(valid[1]))
            some_valid = jax.tree.map(lambda leaf: leaf[chosen], valid)
            due = (k >= WARMUP) & (k % method.train_steps == 0)
            state = jax.lax.cond(due, lambda s: valid_step(losses, s, some_valid, draws), lambda s: s, state)
            return state, None

        state, _ = jax.lax.scan(step, state, jnp.arange(steps))
        model = eqx.combine(state.weights, state.responses, losses.static)
        e = jnp.zeros(len(space)) if method.centred else method.offset(space, state.u)
        response = jax.jacfwd(lambda e: jax.vmap(stn.bind(model, e))(jnp.eye(case.d))[:, 0])(e)
        return state.u, space.sigma(state.rho), losses.current(state, valid), response

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    data = [jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *side) for side in
            ([one.train for one, *_ in made], [one.valid for one, *_ in made])]  # fmt: skip
    keys = jax.random.split(jax.random.key(0), len(made))
    ends = [np.asarray(part) for part in jax.jit(jax.vmap(run))(stacked, *data, keys)]
    return [_judged(*one, *end) for one, *end in zip(made, *ends, strict=True)]


def _judged(case, seed, value, u, sigma, loss, response):
    best, least = case.best
    found, exact = case.values(u), case.jacobian(u)
    factor = np.exp(np.abs(np.log(found / best)))
    return {
        "seed": seed, "start": value, "value": float(np.exp(np.mean(np.log(found)))), "ratio": float(np.median(factor)),
        "loss": float(loss / least), "jacobian": float(np.linalg.norm(response - exact) / np.linalg.norm(exact)),
        "sigma": float(np.mean(sigma)),
    }  # fmt: skip
