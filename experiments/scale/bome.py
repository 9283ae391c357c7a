"""BOME: descent of both variables along the upper level, with a barrier that keeps w near its minimum.

    y = w after T steps of length alpha down h(., theta),      q = (grad_w h(w), grad_theta h(w) - grad_theta h(y))
    (w, theta) -= rates (grad g + lambda q),                   lambda = max(0, eta - <grad g, q> / ||q||^2)

on all data, as published (Ye, Liu, Wright, Stone, Liu, arXiv 2209.08709, algorithm 1): T = 10, eta = 1/2, w's rate is
alpha.
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


def start(data: batches.Batches, rates: batches.Rates) -> State:
    return State(*batches.zeros(data))


def whole(data: batches.Batches) -> batches.Batches:
    """One batch of each level."""
    A, A_valid = (a.reshape(1, -1, a.shape[2]) for a in (data.A, data.A_valid))
    return batches.Batches(A, data.y.reshape(1, -1), A_valid, data.y_valid.reshape(1, -1), data.penalty)


def step(data: batches.Batches, state: State, key: Array, rates: batches.Rates) -> State:
    data, theta = whole(data), state.theta.reshape(1, -1)

    def descend(_, w):
        return w - rates.inner * batches.lower_gradient(w, theta, data, 0)

    y = jax.lax.fori_loop(0, T, descend, state.w)
    g, q_w = batches.upper_gradient(state.w, data, 0), batches.lower_gradient(state.w, theta, data, 0)
    q_theta = batches.slopes(state.w, theta, data, 0) - batches.slopes(y, theta, data, 0)
    squares = jnp.sum(q_w**2) + jnp.sum(q_theta**2)
    weight = jnp.maximum(0, rates.extra - jnp.vdot(g, q_w) / squares)
    theta = state.theta - rates.outer * weight * q_theta.reshape(state.theta.shape)
    return State(state.w - rates.inner * (g + weight * q_w), theta)
