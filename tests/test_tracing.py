"""Nothing is traced or compiled again when a number changes, only when a shape does."""

from dataclasses import replace

import jax
import jax.numpy as jnp

import bilevel
from bilevel._inputs import prepare
from bilevel._outer.programs import Meter

TRACES = []


class Counted(bilevel.AbstractProblem):
    """Notes every trace of `lower`; `weight` is a plain Python float."""

    y: jax.Array
    weight: float

    def lower(self, x, theta):
        TRACES.append(1)
        return 0.5 * jnp.sum((x - self.y) ** 2) + self.weight * jnp.sum(jnp.exp(theta) * jnp.sqrt(1 + x**2))

    def upper(self, x, theta):
        return 0.5 * jnp.sum((x - 0.5) ** 2)

    def guess(self, theta):
        return self.y

    def constants(self, theta):
        w = self.weight * jnp.max(jnp.exp(theta))
        return bilevel.Constants(mu=1.0, L=1 + w, L_upper=1.0, L_hessian=0.86 * w, L_cross=w, convex_upper=True)


def problem(shift=0.0, weight=0.3, size=3):
    return Counted(jnp.arange(1.0, 1.0 + size) + shift, weight)


def spent(function):
    """(traces of lower, compilations) during function()."""
    before = len(TRACES), Meter.compilations
    out = function()
    jax.block_until_ready(jax.tree.leaves(out))
    return len(TRACES) - before[0], Meter.compilations - before[1]


def theta(value=0.1, size=3):
    return jnp.full(size, value)


def test_a_run_with_other_numbers_compiles_nothing():
    """theta0, eps, delta, step, tol, budgets, the box, the data and a Python float in them: one program for all.

    What `lower` is traced for is its validation, once a call and never compiled."""
    checks, _ = spent(lambda: prepare(problem(), theta(), None))
    box = dict(bounds=(-5.0, 5.0))
    methods = (bilevel.quasi_newton(), bilevel.maid())
    first, compiled = spent(lambda: [bilevel.solve(problem(), theta(), m, max_steps=4, **box) for m in methods])
    assert first > checks and compiled > 0  # the counters count

    def composed(k):
        accuracy, search = bilevel.Balanced(C=2.0 + k), bilevel.SlopeTest(decrease=1e-3 + k)
        return replace(bilevel.quasi_newton(), accuracy=accuracy, search=search)

    def others(k):
        run = bilevel.solve
        yield lambda: run(problem(), theta(-0.4 + k), max_steps=3, **box)
        yield lambda: run(problem(), theta(), composed(k), max_steps=5, **box)
        yield lambda: run(problem(), theta(), bilevel.maid(0.3 + k, 0.2 + k, 0.1 + k), max_steps=5, **box)
        yield lambda: run(problem(), theta(), bilevel.fixed_accuracy(1e-5 + k), tol=0.05 + k, max_cost=500 + k, **box)
        yield lambda: run(problem(0.5 + k), theta(), max_steps=4, bounds=(-1.0 - k, 2.0 + k))
        yield lambda: run(problem(weight=0.7 + k), theta(), max_steps=4, **box)
        yield lambda: run(problem(), theta(0.2 + k), bilevel.hoag(), max_steps=4, **box)

    for again in others(0.0):  # here what only some runs come to compiles, once a process
        again()
    for again in others(0.01):
        assert spent(again) == (checks, 0)
    # the counters would have seen it: another shape does compile
    traces, compiled = spent(lambda: bilevel.solve(problem(size=4), theta(size=4), max_steps=1, **box))
    assert traces > checks and compiled > 0


def test_hypergradient_and_solve_lower_compile_once():
    """Other theta, eps, delta, warm starts and data: nothing new."""
    checks, _ = spent(lambda: prepare(problem(), theta(), None))
    first = bilevel.hypergradient(problem(), theta(), eps=1e-2, delta=1e-2)
    bilevel.hypergradient(problem(), theta(), x0=first.x, q0=first.q)
    bilevel.solve_lower(problem(), theta(), eps=1e-2)
    for again in (
        lambda: bilevel.hypergradient(problem(0.1), theta(0.3), eps=1e-5, delta=1e-7),
        lambda: bilevel.hypergradient(problem(weight=0.9), theta(), eps=1e-4, x0=first.x, q0=first.q),
    ):
        assert spent(again) == (checks, 0)
    checks, _ = spent(lambda: prepare(problem(), theta(), None, levels=("lower",)))
    assert spent(lambda: bilevel.solve_lower(problem(0.2, 0.5), theta(-1.0), eps=1e-9)) == (checks, 0)
