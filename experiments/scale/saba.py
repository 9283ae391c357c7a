"""SABA: w, the adjoint and theta move together, each along SAGA's estimate of its direction.

    w -= rho D_w,  v -= rho D_v,  theta -= gamma D_theta;     E D_w = grad_w h, E D_v = H v + grad g, E D_theta = J^T v

Each D is a sum over batches of which one term is new, D = new - kept + mean of the kept, and is kept then (Dagreou,
Ablin, Vaiter, Moreau, arXiv 2201.13409). What is kept is computed at the start for every batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from experiments.scale import batches


class Kept(NamedTuple):
    terms: Array
    mean: Array


class State(NamedTuple):
    w: Array
    theta: Array
    v: Array
    lower: Kept
    product: Kept
    upper: Kept
    cross: Array  # (K, m): a batch's term is zero outside its own row


def start(data: batches.Batches, rates: batches.Rates) -> State:
    w, theta = batches.zeros(data)
    lower = jax.lax.map(lambda k: batches.lower_gradient(w, theta, data, k), jnp.arange(len(data.A)))
    upper = jax.lax.map(lambda j: batches.upper_gradient(w, data, j), jnp.arange(len(data.A_valid)))
    at_zero = Kept(jnp.zeros_like(lower), jnp.zeros_like(w))  # v = 0
    kept = (Kept(lower, jnp.mean(lower, axis=0)), at_zero, Kept(upper, jnp.mean(upper, axis=0)))
    return State(w, theta, w, *kept, jnp.zeros_like(theta))


def renewed(kept: Kept, k: Array, new: Array) -> tuple[Array, Kept]:
    """The estimate, and what is kept then."""
    change = new - kept.terms[k]
    return change + kept.mean, Kept(kept.terms.at[k].set(new), kept.mean + change / len(kept.terms))


def step(data: batches.Batches, state: State, key: Array, rates: batches.Rates) -> State:
    k, j = batches.draw(data, key)
    gradient, Hv, Jv = batches.products(state.w, state.theta, state.v, data, k)
    D_w, lower = renewed(state.lower, k, gradient)
    D_v, product = renewed(state.product, k, Hv)
    D_g, upper = renewed(state.upper, j, batches.upper_gradient(state.w, data, j))
    D_theta = (state.cross / len(data.A)).at[k].add(Jv - state.cross[k])
    w, v = state.w - rates.inner * D_w, state.v - rates.inner * (D_v + D_g)
    theta = state.theta - rates.outer * D_theta
    return State(w, theta, v, lower, product, upper, state.cross.at[k].set(Jv))
