"""Programs: small ones are compiled quickly, and nothing else tells them from the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import _program, problems
from bilevel._outer.programs import Meter
from bilevel._program import FEW, program, small
from bilevel.problems.quadratic import uniform_data
from bilevel.stn.compiled import compiled


@program
def spread(x):
    return jnp.sum((x - jnp.mean(x)) ** 2)


def test_few_numbers_on_a_cpu_are_small():
    assert small(jnp.ones(FEW), "text", None)
    assert not small(jnp.ones(FEW), np.ones(1))
    assert not small((jnp.ones(2 * FEW),), {})


@pytest.mark.parametrize("count", [10, FEW + 1])
def test_the_result_is_the_same(count):
    x = np.random.default_rng(0).standard_normal(count)
    np.testing.assert_allclose(spread(jnp.asarray(x)), np.var(x) * count, rtol=1e-12)


def test_inside_another_program_it_is_a_part_of_that():
    """XLA takes options for whole programs only; also where what is traced is none of the arguments."""
    x = jnp.arange(3.0)
    assert jax.jit(spread)(x) == 2
    assert jax.jit(lambda y: spread(x) + y)(1.0) == 3
    np.testing.assert_allclose(jax.grad(spread)(x), [-2, 0, 2])
    np.testing.assert_allclose(jax.vmap(spread)(jnp.stack([x, 2 * x])), [2, 8])


def test_options_that_an_xla_does_not_know_are_left_out(monkeypatch):
    """Also where a program is compiled by hand, as those of `stn` are."""
    monkeypatch.setattr(_program, "QUICKLY", {"xla_no_such_option": True, "xla_backend_optimization_level": 0})
    _program.quickly.cache_clear()

    @program
    def product(x):
        return x @ x

    assert product(jnp.arange(3.0)) == 5
    assert _program.quickly() == {"xla_backend_optimization_level": 0}
    x = jnp.arange(3.0)
    assert compiled(jax.jit(lambda x: x @ x).trace(x), x)(x) == 5
    _program.quickly.cache_clear()


def test_at_most_six_reads_an_outer_step(monkeypatch):
    """A read is a wait for the device: `device_get` is one however much it fetches, and what was fetched once stays.
    An accelerator keeps it beside the array; here it is noted, for a CPU's arrays lie on the host already."""
    kind, get, fetched, reads = type(jnp.zeros(())), jax.device_get, {}, [0]
    value = kind.__dict__["_value"].fget

    def note(arrays):
        new = [array for array in arrays if isinstance(array, kind) and id(array) not in fetched]
        fetched.update((id(array), array) for array in new)
        reads[0] += bool(new)

    def one(self):
        note([self])
        return value(self)

    def many(tree):
        note(jax.tree.leaves(tree))
        return get(tree)

    monkeypatch.setattr(kind, "_value", property(one))
    monkeypatch.setattr(jax, "device_get", many)
    problem = uniform_data(0)
    solution = bilevel.solve(problem, np.ones(10), progress=False)
    assert solution.result == bilevel.RESULTS.converged
    assert solution.steps > 20
    assert reads[0] <= 6 * solution.steps


def test_at_most_eight_programs_a_problem():
    bilevel.solve(uniform_data(0, columns=9), np.ones(9), max_steps=2, progress=False)  # the probe of XLA's options
    before = Meter.compilations
    bilevel.solve(uniform_data(0, columns=11), np.ones(11), progress=False)
    assert Meter.compilations - before <= 8


def test_the_constants_loop_is_compiled_once():
    """Softmax regression with a penalty for each weight has one among its constants."""
    rng = np.random.default_rng(0)
    problem = problems.LogisticRegression(*(rng.normal(size=(9, 3)), np.arange(9) % 3) * 2)
    for theta in (np.zeros((3, 3)), np.ones((3, 3))):
        before = Meter.compilations
        bilevel.solve_lower(problem, theta, eps=1e-2)
    assert Meter.compilations == before
