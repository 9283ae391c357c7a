"""float32: right to float32's ability or the floor's own result, never endless, never a wrong claim."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_descent import Pairs, denoising, quadratic, tv_truth

import bilevel
from bilevel import RESULTS
from bilevel.problems import Quadratic, TotalVariation

F = np.float32


def quadratic32(seed=0):
    wide = quadratic(seed)
    return Quadratic(*(np.asarray(getattr(wide, name), F) for name in ("A1", "A2", "A3", "b1", "b2")))


def denoising32(seed=0):
    wide = denoising(seed)
    return TotalVariation(np.asarray(wide.clean, F), np.asarray(wide.noisy, F))


def truth(problem, theta):
    """f and grad f in float64 of the problem with exactly these float32 data."""
    if isinstance(problem, Quadratic):
        exact = problem.closed_form(theta)
        return exact.value, exact.gradient
    wide = TotalVariation(np.asarray(problem.clean, np.float64), np.asarray(problem.noisy, np.float64))
    return tv_truth(wide, np.asarray(theta, np.float64))


CASES = [(quadratic32(), jnp.full(3, 3.0)), (denoising32(), jnp.array([-3.0, -3.0]))]
METHODS = [bilevel.quasi_newton(),
           bilevel.maid(), bilevel.maid(1e2, 1e2, 1e6), bilevel.maid(1e-6, 1e-6, 1e-2), bilevel.hoag(),
           bilevel.fixed_accuracy(1e-3)]  # fmt: skip


def dtypes(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)}


FLOOR, STEPS = RESULTS.accuracy_floor, RESULTS.max_steps_reached
# of the METHODS: after 15 steps, or where rounding ends them, which may be at step 12 on one machine, 84 on another;
# eps = 1e-3 is too loose for the last ones on the photographs, not below the floor
ENDS = [(FLOOR, STEPS, STEPS, STEPS, STEPS, STEPS), (FLOOR, FLOOR, FLOOR, FLOOR, STEPS, RESULTS.no_decrease)]


@pytest.mark.parametrize("case", [0, 1], ids=["quadratic", "tv"])
@pytest.mark.parametrize("number", range(len(METHODS)))
def test_no_claim_is_wrong_and_no_run_endless(case, number, optimised):
    """Asked for tol = 0: every interval holds the float64 truth of the same data, and all of it stays float32."""
    (problem, theta0), method = CASES[case], METHODS[number]
    start, thetas, infos = time.monotonic(), [theta0.astype(F)], []
    most = 200 if ENDS[case][number] == FLOOR else 15
    for state, info in bilevel.iterate(problem, theta0, method, tol=0.0, max_steps=most, max_cost=20_000):
        infos.append(info)
        thetas += [state.theta] if info.result is None else []
        assert dtypes(state) <= {jnp.dtype(F), jnp.dtype(np.int32)}
    assert time.monotonic() - start < 60
    assert infos[-1].result == ENDS[case][number]
    certified = not isinstance(method.search, bilevel.HOAGHeuristic)
    values = []
    for info, theta in zip(infos, thetas, strict=True):
        value, gradient = truth(problem, theta)
        assert abs(info.value - value) <= info.value_error
        if info.certificate != "none":
            assert abs(info.gradient_norm - np.linalg.norm(gradient)) <= info.gradient_error
        values.append(value)
    assert not certified or np.all(np.diff(values) <= 0)


@pytest.mark.parametrize("problem, theta0", CASES, ids=["quadratic", "tv"])
def test_a_tolerance_that_float32_has_is_met_truly(problem, theta0):
    """Converged by the certificate and by float64's gradient."""
    first = np.linalg.norm(truth(problem, theta0)[1])
    solution = bilevel.solve(problem, theta0, tol=0.5 * first, max_steps=200, max_cost=20_000)
    assert solution.converged and solution.certified
    assert np.linalg.norm(truth(problem, solution.theta)[1]) <= 0.5 * first
    assert dtypes((solution.theta, solution.x)) == {jnp.dtype(F)}


def test_asking_for_more_than_float32_has_ends_at_the_floor():
    """eps = 1e-12: solve_lower and hypergradient stop at the floor, say so, and their bounds still hold."""
    problem, theta = quadratic32(), jnp.ones(3)
    exact = problem.closed_form(theta.astype(F))
    for solver in (bilevel.Nesterov(), bilevel.GradientDescent(), bilevel.LBFGS(), bilevel.NewtonCG()):
        lower = bilevel.solve_lower(problem, theta, eps=1e-12, solver=solver)
        assert lower.result == RESULTS.accuracy_floor and lower.x.dtype == F
        assert np.linalg.norm(np.asarray(lower.x, np.float64) - exact.x) <= float(lower.error) < 1e-3
    out = bilevel.hypergradient(problem, theta, eps=1e-12, delta=1e-12)
    assert out.result == RESULTS.accuracy_floor
    assert np.linalg.norm(np.asarray(out.gradient, np.float64) - exact.gradient) <= float(out.gradient_error)
    arrays = (out.value, out.value_error, out.gradient, out.gradient_error, out.x, out.error, out.q, out.residual)
    assert dtypes(arrays) == {jnp.dtype(F)}


def test_estimates_and_python_floats_do_not_widen_float32():
    """Nothing declared, dicts, theta0 in float64: cast to the data's dtype once, float32 from there."""
    problem = Pairs(jnp.arange(1, 4, dtype=F), declared=False)
    solution = bilevel.solve(problem, {"a": np.zeros(3)}, max_steps=3, max_cost=20_000, keep_state=True)
    assert dtypes((solution.theta, solution.x, solution.state.memory.q)) == {jnp.dtype(F)}
    assert not solution.certified and np.all(np.isfinite(solution.history["value"]))
