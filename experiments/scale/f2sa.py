"""F2SA: the hypergradient from gradients alone, by a lower level that the upper one pulls at.

    z -= gamma grad_w h_k(z),    y -= gamma/lambda (grad g_j(y) + lambda grad_w h_k(y)),    T times each
    theta -= rate lambda (grad_theta h_k(y) - grad_theta h_k(z)),    lambda += delta

(Kwon, Kwon, Wright, Nowak, arXiv 2301.10945, algorithm 1; y's step falls as lambda grows, as their theory has it). T =
10, lambda from 1; both gradients in theta on one batch. z is the model that is judged.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from experiments.scale import batches

T = 10


class State(NamedTuple):
    w: Array
    theta: Array
    y: Array
    weight: Array


def start(data: batches.Batches, rates: batches.Rates) -> State:
    w, theta = batches.zeros(data)
    return State(w, theta, w, jnp.ones((), w.dtype))


def step(data: batches.Batches, state: State, key: Array, rates: batches.Rates) -> State:
    keys, theta, weight = jax.random.split(key, T + 1), state.theta, state.weight

    def descend(t, carry):
        z, y = carry
        k, j = batches.draw(data, keys[t])
        pulled = batches.lower_gradient(y, theta, data, k) + batches.upper_gradient(y, data, j) / weight
        return z - rates.inner * batches.lower_gradient(z, theta, data, k), y - rates.inner * pulled

    z, y = jax.lax.fori_loop(0, T, descend, (state.w, state.y))
    k, _ = batches.draw(data, keys[T])
    slope = weight * (batches.slopes(y, theta, data, k) - batches.slopes(z, theta, data, k))
    return State(z, theta.at[k].add(-rates.outer * slope), y, weight + rates.extra)
