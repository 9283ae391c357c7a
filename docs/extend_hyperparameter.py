"""A hyperparameter of your own: above zero, by a softplus, whose large values move as evenly as its small ones do.

    value = log(1 + e^u),      u = log(e^value - 1);          min over u of the validation loss at w(u)

Near zero e^u, far above it u. It tunes the weight decay of a linear model, whose best is known.
"""

import os

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from bilevel import stn

FEW, here = bool(os.environ.get("SMOKE")), os.path.dirname(__file__)  # FEW: few steps, no figure, does it run?
GRID, key = np.logspace(-3, 1, 400), jax.random.key(0)


class Softplus(stn.AbstractHyperparameter):
    start: float = eqx.field(static=True, converter=float)
    scale: float = eqx.field(static=True, default=0.5, converter=float)
    draws: str = eqx.field(static=True, default="example")

    def unconstrained(self):
        return float(np.log(np.expm1(self.start)))

    def value(self, u):
        return jax.nn.softplus(u)


rng, n, d = np.random.default_rng(2), 40, 30
w, A, V = (rng.normal(size=size) for size in (d, (n, d), (1000, d)))
b, v = (0.4 * X @ w + 1.5 * rng.normal(size=len(X)) for X in (A, V))
losses = [np.mean((V @ np.linalg.solve(A.T @ A / n + 2 * t * np.eye(d), A.T @ b / n) - v) ** 2) / 2 for t in GRID]
train, valid = ((np.float32(X), np.float32(y)) for X, y in ((A, b), (V, v)))


def loss(model, batch):
    return jax.numpy.mean((jax.vmap(model)(batch[0])[:, 0] - batch[1]) ** 2) / 2


def penalised(model, batch, hyper, key):
    return loss(model, batch) + hyper["decay"] * stn.squared_norm(model)


best, linear, adam = GRID[np.argmin(losses)], eqx.nn.Linear(d, 1, use_bias=False, key=key), optax.adam
print(f"{'':20}{'steps':>5}{'decay':>8}{'loss':>9}\n{'solved':19}{len(GRID):6}{best:8.3f}{min(losses):9.4f}")
method, epochs = stn.delta_stn(adam(1e-2), hyper=adam(3e-2)), 2 if FEW else 2000
for kind, start in ((Softplus, 0.01), (Softplus, 5.0), (stn.Positive, 0.01), (stn.Positive, 5.0)):
    model = stn.convert(linear, space := stn.Space(decay=kind(start)), key=key)
    run = stn.tune(model, space, penalised, loss, train, valid, method, key=key, epochs=epochs, batch_size=n)
    decay, found = run.history["decay"], run.history["valid_loss"][-1]
    print(f"{kind.__name__:9} from {start:<4}{len(decay):6}{decay[-1]:8.3f}{found:9.4f}")
    plt.semilogy(decay, label=f"{kind.__name__} from {start}")
plt.axhline(best, color="k", lw=0.8, label="best")
plt.legend(title="weight decay, by steps")
FEW or plt.savefig(f"{here}/figures/extend_hyperparameter.png", dpi=90)
