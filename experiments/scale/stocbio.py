"""stocBiO: a few stochastic steps of w, then a hypergradient whose inverse Hessian is a short Neumann series.

    w -= eta grad_w h_k, T times;    v = eta sum_{q=0}^{Q} (I - eta H_{k_Q}) ... (I - eta H_{k_{Q-q+1}}) grad g_j
    theta += beta J_k^T v

each H of a batch of its own (Ji, Yang, Liang, arXiv 2010.07962, algorithms 2 and 3). T = Q = 10, as published.
"""

from typing import NamedTuple

import jax
from jax import Array

from experiments.scale import batches

T, Q = 10, 10


class State(NamedTuple):
    w: Array
    theta: Array


def start(data: batches.Batches, rates: batches.Rates) -> State:
    return State(*batches.zeros(data))


def step(data: batches.Batches, state: State, key: Array, rates: batches.Rates) -> State:
    keys, theta = jax.random.split(key, T + Q + 1), state.theta

    def descend(t, w):
        return w - rates.inner * batches.lower_gradient(w, theta, data, batches.draw(data, keys[t])[0])

    def shrink(q, carry):
        r, total = carry
        k, _ = batches.draw(data, keys[T + q])
        r = r - rates.inner * batches.products(w, theta, r, data, k)[1]
        return r, total + r

    w = jax.lax.fori_loop(0, T, descend, state.w)
    k, j = batches.draw(data, keys[T + Q])
    g = batches.upper_gradient(w, data, j)
    _, total = jax.lax.fori_loop(0, Q, shrink, (g, g))
    Jv = batches.products(w, theta, rates.inner * total, data, k)[2]
    return State(w, theta.at[k].add(rates.outer * Jv))
