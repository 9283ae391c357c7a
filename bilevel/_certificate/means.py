"""What the units of a `Chunked` problem tell of f, together. With means over the N units,

    |F - f|          <=  mean error_i,            F = mean g_i(x_i)
    ||z - grad f||   <=  mean omega_i,            z = mean z_i
    ||x - xhat||^2   <=  sum eps_i^2,             delta^2 = 1/N^2 sum delta_i^2       (H q = grad_x g for q = (q_i / N))

An accuracy is shared equally: eps_i = eps / sqrt(N), delta_i = sqrt(N) delta. Sums are made on the host in float64, in
the order of the units: numbers are added exactly and rounded once, gradients with compensation (Neumaier 1974). What
rounding is left is in the bounds.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from .._chunked import Kept
from .._linalg.rounding import unit_roundoff
from .._linalg.vectors import Vector
from .._lower.descend import LowerSolution
from .._lower.local import Local
from .._results import RESULTS
from .gradient import Hypergradient, weakest
from .units import COUNTS, GRADIENT, POINT, Told
from .value import Point

ROUNDED = 1 + 1e-6  # an accuracy is rounded to the dtype on its way into a program
BENT = RESULTS.non_finite, RESULTS.not_strongly_convex, RESULTS.not_convex
LESS = RESULTS.max_cost_reached, RESULTS.lower_stalled  # than was asked for


class Means:
    """Of what units tell, over all of them: the columns of `numbers` and `counts` by name, and means of gradients."""

    def __init__(self, told: list[Told]):
        numbers = np.array([one.numbers for one in told], np.float64)
        self.columns = dict(zip(POINT + GRADIENT, numbers.T, strict=False))
        self.columns |= dict(zip(COUNTS, np.array([one.counts for one in told]).T, strict=True))
        self.certificate, self.count = weakest(*(one.certificate for one in told)), len(told)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def mean(self, name: str) -> float:
        """Rounded once: in any order it would be the same."""
        return total(self[name]) / self.count

    def root(self, name: str) -> float:
        """The root of the sum of squares."""
        return math.hypot(*self[name]) if np.isfinite(self[name]).all() else float(np.max(np.abs(self[name])))

    def cost(self, *names: str) -> int:
        """The mean of all these together, rounded up."""
        return -(-sum(int(self[name].sum(dtype=np.int64)) for name in names) // self.count)

    def spent(self, names: tuple[str, ...]) -> list[int]:
        """The mean cost by kind, rounded so that their sum is the mean of all rounded up: no budget is exceeded."""
        so_far = [self.cost(*names[:k]) for k in range(len(names) + 1)]
        return [after - before for before, after in itertools.pairwise(so_far)]


def total(column: np.ndarray) -> float:
    """The sum, exact but for one rounding; infinite or NaN as a sum in floating point would be."""
    return math.fsum(column) if np.isfinite(column).all() else float(np.sum(column))


class Sum:
    """Of pytrees in float64, one after the other: s + c with c the sum of what was rounded off s."""

    def __init__(self, like: PyTree):
        self.s = [np.zeros(np.shape(v)) for v in jax.tree.leaves(like)]
        self.c = [np.zeros(np.shape(v)) for v in jax.tree.leaves(like)]

    def add(self, tree: PyTree) -> None:
        for s, c, v in zip(self.s, self.c, jax.tree.leaves(tree), strict=True):
            v = np.asarray(v, np.float64)
            t = s + v
            c += np.where(np.abs(s) >= np.abs(v), (s - t) + v, (v - t) + s)
            s[...] = t

    def mean(self, count: int) -> list[np.ndarray]:
        return [(s + c) / count for s, c in zip(self.s, self.c, strict=True)]


def point(means: Means, kept: Kept, result: RESULTS, t: float, dtype: np.dtype) -> Point:
    """F with its interval, and eps. `more` is for the roundings of these numbers themselves."""
    u, value = unit_roundoff(dtype), means.mean("value")
    more, noise = 1 + 4 * u, 4 * u * abs(value)
    mu, L, t, none = (put(v, dtype) for v in (means["mu"].min(), means["L"].max(), t, math.nan))
    lower = LowerSolution(
        (), (), put(more * means.root("eps"), dtype), none, result, mu, L, put(means.root("floor"), dtype),
        put(means.cost("lower_gradients"), np.int32), put(means.cost("hessian_products"), np.int32), kept,
        dataclasses.replace(Local.unknown(mu), t=t), means.certificate,
    )  # fmt: skip
    error, below = (put(more * means.mean(name) + noise, dtype) for name in ("value_error", "below"))
    slope = put(means.root("norm_g_x") / means.count, dtype)
    return Point(lower, put(value, dtype), error, below, slope, means.certificate)


def hypergradient(theta: Vector, means: Means, z: Sum, delta: float, dtype: np.dtype) -> Hypergradient:
    """z and omega."""
    u, root, leaves = unit_roundoff(dtype), math.sqrt(means.count), z.mean(means.count)
    reached = means.root("delta") / means.count
    numbers = {
        "norm": math.sqrt(sum(float(np.sum(v**2)) for v in leaves)),
        "error": (1 + 4 * u) * means.mean("omega") + 4 * u * means.mean("norm"),
        "delta": reached, "mu": means["least"].min(), "eps": (1 + 4 * u) * means.root("eps"),
        "per_eps": means.mean("per_eps") / root, "per_delta": means.mean("per_delta") * root,
        "per_eps2": means.mean("per_eps2") / means.count, "per_both": means.mean("per_both"),
    }  # fmt: skip
    return Hypergradient(
        gradient=jax.tree.unflatten(jax.tree.structure(theta), [put(v, dtype) for v in leaves]),
        q=(),
        result=differentiated(means, reached, delta),
        hessian_products=put(means.cost("hessian_products"), np.int32),
        cross_products=put(means.cost("cross_products"), np.int32),
        certificate=means.certificate,
        **{name: put(v, dtype) for name, v in numbers.items()},
    )


def solved(means: Means, eps: float) -> RESULTS:
    """Of all units: what is wrong with one of them, else whether together they are within eps, else why not."""
    if found := seen(means["solved"], BENT):
        return found
    if means.root("eps") <= eps * ROUNDED:
        return RESULTS.converged
    return seen(means["solved"], LESS) or RESULTS.accuracy_floor


def differentiated(means: Means, reached: float, delta: float) -> RESULTS:
    if found := seen(means["solved"], BENT) or seen(means["differentiated"], BENT):
        return found
    if reached <= delta * ROUNDED:
        return RESULTS.converged
    return seen(means["differentiated"], LESS) or RESULTS.accuracy_floor


def seen(codes: np.ndarray, results: tuple[RESULTS, ...]) -> RESULTS | None:
    """The first of `results` that is among the codes."""
    return next((result for result in results if (codes == int(jax.tree.leaves(result)[0])).any()), None)


def put(value: Any, dtype: Any) -> jax.Array:
    return jax.device_put(np.asarray(value, dtype))
