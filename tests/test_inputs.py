"""Inputs that cannot be run: each has its own clear error, before anything is computed, or its own result."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import RESULTS
from bilevel.problems import Quadratic, TotalVariation

ROOT = Path(__file__).parent.parent
IMAGES = np.full((2, 4, 4), 0.5)
ONE = jnp.ones(2)


class Plain(bilevel.AbstractProblem):
    """h = 1/2 mu ||x - theta||^2 in the given flavour."""

    y: jax.Array | np.ndarray
    other: object = None
    flavour: str = eqx.field(static=True, default="good")
    mu: object = eqx.field(static=True, default=1.0)

    def lower(self, x, theta):
        if self.flavour == "vector":
            return 0.5 * (x - theta) ** 2
        if self.flavour == "branch" and x[0] > 0:
            return jnp.sum(x)
        if self.flavour == "saddle":
            return 0.5 * (x[0] - theta[0]) ** 2 - 0.5 * x[1] ** 2 + x[1] * theta[1]
        if self.flavour == "complex":
            return jnp.sum((x - theta) * jnp.conj(x + 0j - theta))
        if self.flavour == "wide":
            return jnp.sum((x - theta).astype(jnp.float32) ** 2)
        if self.flavour == "fading":
            return 0.5 * jnp.sum(jnp.sum(theta) * x**2 - 2 * x)
        return 0.5 * jnp.sum((x - theta) ** 2)

    def upper(self, x, theta):
        return 0.5 * jnp.sum((x - self.y) ** 2) if self.flavour != "fading" else 0.5 * jnp.sum((x - 50.0) ** 2)

    def guess(self, theta):
        return jnp.zeros_like(self.y)

    def constants(self, theta):
        mu = jnp.sum(theta) if self.flavour == "fading" else self.mu
        return bilevel.Constants(mu=mu, L_upper=1.0, L_hessian=0.0, L_cross=1.0)


class NoGuess(bilevel.AbstractProblem):
    y: jax.Array

    def lower(self, x, theta):
        return 0.5 * jnp.sum((x - theta) ** 2)

    def upper(self, x, theta):
        return jnp.sum((x - self.y) ** 2)


def solve(problem=None, theta0=ONE, **options):
    return bilevel.solve(Plain(ONE) if problem is None else problem, theta0, **options)


def nan(shape, value=np.nan):
    out = np.full(shape, 0.5)
    out.flat[1] = value
    return out


def quadratic(**change):
    data = dict(A1=np.eye(3), A2=np.eye(3), A3=np.ones((3, 2)), b1=np.ones(3), b2=np.ones(3)) | change
    return Quadratic(**data)


CASES = {
    "NaN image": (lambda: TotalVariation(IMAGES, nan((2, 4, 4))), ValueError, "NaN or infinit"),
    "infinite image": (lambda: TotalVariation(nan((2, 4, 4), np.inf), IMAGES), ValueError, "NaN or infinit"),
    "image shapes": (lambda: TotalVariation(IMAGES, IMAGES[:1]), ValueError, "pass stacks of"),
    "integer images": (lambda: TotalVariation(IMAGES.astype(np.uint8), IMAGES), TypeError, "divide by 255"),
    "at least one image": (lambda: TotalVariation(IMAGES[:0], IMAGES[:0]), ValueError, "at least one image"),
    "image dtypes": (lambda: TotalVariation(IMAGES.astype(np.float32), IMAGES), TypeError, "noisy.astype"),
    "NaN matrix": (lambda: quadratic(A2=nan((3, 3))), ValueError, "NaN or infinite"),
    "matrix shapes": (lambda: quadratic(b2=np.ones(4)), ValueError, "got.*'b2': \\(4,\\)"),
    "singular matrix": (lambda: quadratic(A2=np.ones((3, 3))), ValueError, "full column rank"),
    "NaN field": (lambda: solve(Plain(nan(2))), ValueError, "a field of Plain holds NaN"),
    "infinite field": (lambda: solve(Plain(ONE, nan(2, np.inf))), ValueError, "a field of Plain holds NaN or inf"),
    "empty field": (lambda: solve(Plain(ONE[:0])), ValueError, "empty array"),
    "mixed dtypes": (lambda: solve(Plain(ONE, np.ones(2, np.float32))), TypeError, "mix float32, float64"),
    "half precision": (lambda: solve(Plain(ONE.astype(jnp.float16))), TypeError, "convert them to float32"),
    "theta0 NaN": (lambda: solve(theta0=jnp.array([1.0, np.nan])), ValueError, "theta0 holds NaN"),
    "theta0 integer": (lambda: solve(theta0=jnp.array([1, 2])), TypeError, "theta0 holds int.*must hold floats"),
    "theta0 empty": (lambda: solve(theta0={}), ValueError, "theta0 holds no arrays"),
    "theta0 a dict": (lambda: solve(theta0={"a": ONE}), TypeError, "Plain.lower.*failed on.*structure"),
    "theta0 a shape": (lambda: solve(theta0=jnp.ones(3)), (TypeError, ValueError), "failed on.*float64\\[3\\]"),
    "x0 NaN": (lambda: solve(x0=jnp.array([np.nan, 1])), ValueError, "x0 holds NaN"),
    "x0 a shape": (
        lambda: solve(x0=jnp.ones(5)),
        (TypeError, ValueError),
        "x0 must have.*guess, \\[2\\]; it has \\[5\\]",
    ),
    "no start": (lambda: solve(NoGuess(ONE)), TypeError, "no starting point.*x0="),
    "mu zero": (lambda: solve(Plain(ONE, mu=0.0)), ValueError, "declares mu = 0 .*strongly convex"),
    "mu negative": (lambda: solve(Plain(ONE, mu=-1.0)), ValueError, "declares mu = -1 "),
    "mu NaN": (lambda: solve(Plain(ONE, mu=float("nan"))), ValueError, "declares mu = nan"),
    "complex lower": (
        lambda: solve(Plain(ONE, flavour="complex")),
        TypeError,
        "complex128\\[\\]; jnp.real takes what is real",
    ),
    "objects": (lambda: solve(Plain(ONE, ONE.__array__().astype(object))), TypeError, "a field of Plain holds object"),
    "texts": (lambda: solve(Plain(ONE, np.array(["a"]))), TypeError, "a field of Plain holds <U1.*astype"),
    "vector lower": (lambda: solve(Plain(ONE, flavour="vector")), TypeError, "lower must return a scalar"),
    "lower narrows": (lambda: solve(Plain(ONE, flavour="wide")), TypeError, "returns float32 although.*float64"),
    "branch on a value": (lambda: solve(Plain(ONE, flavour="branch")), TypeError, "Plain.lower.*failed on"),
    "tol negative": (lambda: solve(tol=-1.0), ValueError, "tol must be at least 0"),
    "tol NaN": (lambda: solve(tol=np.nan), ValueError, "tol must be at least 0"),
    "max_cost zero": (lambda: solve(max_cost=0), ValueError, "max_cost must be positive"),
    "max_cost tiny": (lambda: solve(max_cost=1), ValueError, "does not pay for the first gradient"),
    "max_cost NaN": (lambda: solve(max_cost=np.nan), ValueError, "max_cost must be positive"),
    "max_steps negative": (lambda: solve(max_steps=-1), ValueError, "max_steps must be at least 0"),
    "eps zero": (lambda: bilevel.maid(eps=0.0), ValueError, "eps must be positive"),
    "delta NaN": (lambda: bilevel.maid(delta=np.nan), ValueError, "delta must be positive"),
    "step infinite": (lambda: bilevel.maid(step=np.inf), ValueError, "step must be positive"),
    "a part's step": (lambda: bilevel.Constant(-1.0), ValueError, "step must be positive"),
    "a part's eps": (lambda: bilevel.Balanced(eps=0.0), ValueError, "eps must be positive"),
    "a part's accuracies": (lambda: bilevel.Fixed(-1.0, 1.0), ValueError, "eps must be positive"),
    "a ratio above 1": (lambda: bilevel.Geometric(1.1), ValueError, "so that tolerances fall"),
    "a power": (lambda: bilevel.Polynomial(0.0), ValueError, "power must be positive"),
    "pairs": (lambda: bilevel.QuasiNewton(pairs=0), ValueError, "keep at least one"),
    "fixed eps": (lambda: bilevel.fixed_accuracy(-1.0), ValueError, "eps must be positive"),
    "hoag tolerance": (lambda: bilevel.hoag(tolerance=0.0), ValueError, "tolerance must be positive"),
    "hypergradient": (lambda: bilevel.hypergradient(Plain(ONE), ONE, eps=-1.0), ValueError, "eps must be positive"),
    "delta": (lambda: bilevel.hypergradient(Plain(ONE), ONE, delta=0.0), ValueError, "delta must be positive"),
    "solve_lower": (lambda: bilevel.solve_lower(Plain(ONE), ONE, eps=0.0), ValueError, "eps must be positive"),
    "iterate": (lambda: next(bilevel.iterate(Plain(ONE), ONE, max_cost=-1.0)), ValueError, "max_cost"),
    "resume from nowhere": (lambda: solve(resume=True), ValueError, "pass checkpoint=path"),
    "bounds no pair": (lambda: solve(bounds=(1.0, 2.0, 3.0)), ValueError, "must be \\(lo, hi\\)"),
    "bounds structure": (lambda: solve(bounds=({"a": 1.0}, 2.0)), ValueError, "lo of bounds.*structure of theta0"),
    "bounds shape": (lambda: solve(bounds=(jnp.zeros(3), 2.0)), ValueError, "lo of bounds.*shape"),
    "bounds swapped": (lambda: solve(bounds=(2.0, 0.0)), ValueError, "lo <= hi everywhere"),
    "bounds NaN": (lambda: solve(bounds=(np.nan, 2.0)), ValueError, "no NaN"),
    "theta0 outside": (lambda: solve(bounds=(-1.0, 0.5)), ValueError, "outside bounds"),
    "no problem": (lambda: solve(lambda x, theta: 0.0), TypeError, "problem"),
}


@pytest.mark.parametrize("call, error, words", CASES.values(), ids=CASES.keys())
def test_bad_input_is_an_error_that_says_what_is_wrong(call, error, words):
    """One line of the table each."""
    with pytest.raises(error, match=f"(?s){words}"):
        call()


def test_a_lower_level_that_is_not_strongly_convex_is_detected():
    """Declared mu = 1, but a direction curves -1: Lanczos meets it; undeclared, it is told that h is not convex."""
    saddle, unknown = Plain(ONE, flavour="saddle"), Plain(ONE, flavour="saddle", mu=None)
    assert bilevel.hypergradient(saddle, ONE, eps=1e3, delta=1e-9).result == RESULTS.not_strongly_convex
    declared = solve(saddle, jnp.array([1.0, 0.5]), bounds=(-5, 5), max_cost=5000)
    assert declared.result == RESULTS.not_strongly_convex and "declared mu" in declared.message
    assert bilevel.solve_lower(unknown, ONE).result == RESULTS.not_convex
    undeclared = solve(unknown, max_cost=5000)
    assert undeclared.result == RESULTS.not_convex and "declared" not in undeclared.message


def test_mu_that_fades_during_the_run_is_never_crossed():
    """h = 1/2 m x^2 - x, m = sum theta, so xhat = 1/m: f pulls x to 50, a step too far makes m negative. Trials there
    are rejected, and where the run ends its interval is true."""
    solution = solve(Plain(ONE, flavour="fading"), jnp.array([0.5, 0.5]), method=bilevel.maid(1e-2, 1e-2, 10.0),
                     max_steps=10, max_cost=5000)  # fmt: skip
    m = float(jnp.sum(solution.theta))
    assert m > 0
    assert abs(solution.value - (1 / m - 50.0) ** 2) <= solution.value_error
    assert solution.value < solution.history["value"][0]


def test_float64_data_without_x64_are_an_error():
    """In a process that never enabled it: fields, images and matrices say what to call; float32 runs."""
    code = """
        import numpy as np, bilevel, jax
        from bilevel.problems import Quadratic, TotalVariation
        class Plain(bilevel.AbstractProblem):
            y: np.ndarray
            def lower(self, x, theta): return 0.5 * ((x - theta) ** 2).sum()
            def upper(self, x, theta): return 0.5 * ((x - self.y) ** 2).sum()
            def guess(self, theta): return 0 * theta
            def constants(self, theta): return bilevel.Constants(mu=1.0, L=1.0, L_upper=1.0, L_hessian=0.0, L_cross=0.0)
        eye, one, images = np.eye(2), np.ones(2), np.full((1, 3, 3), 0.5)
        def small(*arrays): return [array.astype(np.float32) for array in arrays]
        for call in (
            lambda: bilevel.solve(Plain(one), np.zeros(2)), lambda: Quadratic(eye, eye, eye, one, one),
            lambda: TotalVariation(images, images),
        ):
            try:
                call()
            except TypeError as error:
                assert "jax_enable_x64" in str(error) and "astype(" in str(error), error
            else:
                raise SystemExit("no error")
        solution = bilevel.solve(Plain(*small(one)), np.zeros(2), max_steps=50)
        assert solution.converged and solution.theta.dtype == np.float32
        TotalVariation(*small(images, images))
        class Told(Plain):
            what: object = 1.0
            def constants(self, theta): return self.what() if callable(self.what) else bilevel.Constants(mu=self.what)
        problem, start, Nesterov = Plain(*small(one)), np.zeros(2), bilevel.Nesterov
        for words, call in {  # what the tests' own type checks would say in other words
            "AbstractProblem, not function": lambda: bilevel.solve(lambda x, theta: 0.0, start),
            "not Plain itself: make one": lambda: bilevel.solve(Plain, start),
            "accuracy must be an AbstractAccuracy, not Balanced itself": lambda: bilevel.Method(bilevel.Balanced, None),
            "as bilevel.maid(), not maid itself": lambda: bilevel.solve(problem, start, bilevel.maid),
            "as bilevel.maid(), not 'maid'": lambda: next(bilevel.iterate(problem, start, "maid")),
            "as bilevel.Nesterov(), not Nesterov itself": lambda: bilevel.solve_lower(problem, start, solver=Nesterov),
            "as bilevel.Nesterov(), not 'LBFGS'": lambda: bilevel.hypergradient(problem, start, solver="LBFGS"),
            "as bilevel.Nesterov(), not None": lambda: bilevel.objective(problem, eps=1e-3, solver=None),
            "as bilevel.LBFGS(), not LBFGS itself": lambda: bilevel.check_problem(problem, start, solver=bilevel.LBFGS),
            "as bilevel.NewtonCG(), not NewtonCG itself": lambda: bilevel.SingleProducts(bilevel.NewtonCG),
            "bilevel.Geometric(0.9) or": lambda: bilevel.hoag(0.9),
            "tol must be a number, not '1e-3'": lambda: bilevel.solve(problem, start, tol="1e-3"),
            "max_cost must be a number": lambda: bilevel.solve_lower(problem, start, max_cost="9"),
            "eps must be a number, not array": lambda: bilevel.objective(problem, eps=np.ones(2)),
            "callback must be a function": lambda: bilevel.solve(problem, start, callback=3),
            "must return bilevel.Constants(...), not dict": lambda: bilevel.solve(Told(*small(one), dict), start),
            "declares mu of shape (2,)": lambda: bilevel.solve(Told(*small(one), np.ones(2, np.float32)), start),
        }.items():
            try:
                call()
            except TypeError as error:
                assert words in str(error), (words, error)
            else:
                raise SystemExit(words)
        print("fine")
    """
    environment = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout == "fine\n", done.stdout + done.stderr
