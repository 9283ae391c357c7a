"""check_problem finds what is wrong with a problem, says it in words, once, and is silent on the good ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel.problems import LogisticRegression, Quadratic, TotalVariation

THETA = jnp.array([0.3, -0.2])


class Declares(bilevel.AbstractProblem):
    """Not quadratic in anything, every constant declared from outside, so that one compilation serves every lie."""

    y: jax.Array
    told: dict

    def lower(self, x, theta):
        r = x - self.y
        return 0.5 * r @ r + jnp.exp(theta[0]) * jnp.sum(jnp.sqrt(1 + (x - theta[1]) ** 2))

    def upper(self, x, theta):
        return 0.5 * jnp.sum(x**2) + 0.1 * theta[0] * jnp.sum(x)

    def guess(self, theta):
        return jnp.zeros_like(self.y)

    def constants(self, theta):
        names = ("mu", "L", "L_upper", "L_upper_theta", "L_hessian", "L_cross")
        return bilevel.Constants(**{name: self.told[name] for name in names}, convex_upper=True)

    def bounds(self, x, theta, q, radius):
        return bilevel.Bounds(**{name: self.told[name] for name in ("J", "M_H", "M_J", "L_J")})


E = float(np.exp(0.3))
TRUE = dict(mu=1.0, L=1 + E, L_upper=1.0, L_upper_theta=0.1 * 2, L_hessian=0.86 * E, L_cross=2 * E, J=4 * E,
            M_H=0.86 * E, M_J=2 * E, L_J=2 * E)  # fmt: skip


def declares(**lies):
    told = {name: jnp.asarray(value) for name, value in (TRUE | lies).items()}
    return Declares(jnp.array([0.2, -0.4, 0.9, 0.1]), told)


def test_nothing_is_said_of_problems_that_keep_their_word(capsys):
    """Ours, and a user's that is not quadratic."""
    rng = np.random.default_rng(0)
    A1, A2 = rng.standard_normal((2, 6, 3))
    quadratic = Quadratic(A1, A2, rng.standard_normal((6, 2)), *rng.standard_normal((2, 6)))
    clean = rng.uniform(size=(1, 3, 4))
    for problem, theta in (
        (declares(), THETA), (quadratic, jnp.ones(2)), (TotalVariation(clean, clean + 0.1), jnp.array([-2.0, -2.0])),
    ):  # fmt: skip
        assert bilevel.check_problem(problem, theta) == []
        assert capsys.readouterr().out == f"{type(problem).__name__}: nothing contradicts what is declared.\n"


@pytest.mark.parametrize("name, lie, words", [
    ("mu", 1.5, "declared 1.5-strongly convex, but curves only 1.*Correct Constants"),
    ("L", 1.5, "L is declared as 1.5"), ("L_upper", 0.9, "L_upper is declared as 0.9"),
    ("L_upper_theta", 0.1, "L_upper_theta is declared as 0.1"), ("L_hessian", 0.2, "L_hessian is declared as 0.2"),
    ("L_cross", 0.4, "L_cross is declared as 0.4"), ("J", 0.5, "J is declared as 0.5 by bounds"),
    ("M_H", 0.01, "M_H is declared as 0.01 by bounds"), ("M_J", 0.02, "M_J is declared as 0.02 by bounds"),
    ("L_J", 0.4, "L_J is declared as 0.4 by bounds"),
])  # fmt: skip
def test_a_constant_that_is_contradicted_is_named(name, lie, words, capsys):
    """One message for the one lie, printed and returned; it says what to do."""
    found = bilevel.check_problem(declares(**{name: lie}), THETA)
    assert len(found) == 1
    assert re.search(words, found[0])
    assert "Declare a larger value" in found[0] or "Correct Constants" in found[0]
    assert capsys.readouterr().out == f"Declares: {found[0]}\n"


class Simple(bilevel.AbstractProblem):
    """h = 1/2 ||x - theta||^2 + term(x), g = 1/2 ||x||^2 + sign/2 x_0^2, with mu = 1 declared."""

    sign: float
    term: jax.Array  # an index, so that one compilation serves every mistake

    def lower(self, x, theta):
        return 0.5 * jnp.sum((x - theta) ** 2) + jax.lax.switch(self.term, list(TERMS.values()), x, theta)

    def upper(self, x, theta):
        return 0.5 * jnp.sum(x**2) + self.sign * x[0] ** 2

    def guess(self, theta):
        return jnp.zeros_like(theta)

    def constants(self, theta):
        return bilevel.Constants(mu=1.0, L_upper=9.0, convex_upper=True)


@jax.custom_jvp
def doubled(x):
    return 0.5 * jnp.sum(x**2)


@doubled.defjvp
def _(primals, tangents):
    return doubled(*primals), 2 * jnp.vdot(primals[0], tangents[0])


@jax.custom_jvp
def stiff(x):
    """A gradient rule that is right, with a derivative of its own that is not."""
    return x


@stiff.defjvp
def _(primals, tangents):
    return stiff(*primals), 3 * tangents[0]


@jax.custom_jvp
def halved(x):
    return 0.5 * jnp.sum(x**2)


@halved.defjvp
def _(primals, tangents):
    return halved(*primals), jnp.vdot(stiff(primals[0]), tangents[0])


TERMS = {
    "none": lambda x, theta: 0 * x[0],
    "first": lambda x, theta: doubled(x),
    "second": lambda x, theta: halved(x),
    "kink": lambda x, theta: jnp.sum(jnp.abs(x)),
    "concave": lambda x, theta: -0.6 * x[0] ** 2,
    "nan": lambda x, theta: jnp.sqrt(x[0] - 1.0),
    "far kink": lambda x, theta: 0.3 * jnp.abs(x[0] - 20),
    "far bump": lambda x, theta: -3 * jnp.exp(-jnp.sum((x - 15) ** 2) / 2),
    "late nan": lambda x, theta: 0.0 * jnp.sum(jnp.sqrt(1.0 - (x - theta) ** 2)),
}


@pytest.mark.parametrize("term, sign, words", [
    ("first", 0.0, "gradient of lower does not match finite differences.*custom derivative rule"),
    ("second", 0.0, "second derivative of lower does not match finite differences"),
    ("kink", 0.0, "does not match finite differences|could not be solved"),
    ("concave", 0.0, "curves only -0.2"), ("nan", 0.0, "lower is not finite at the starting point"),
    ("late nan", 0.0, "is not finite at a distance"),
    ("far kink", 0.0, r"jumps by 0.\d+ at a distance of 2e\+01 .*it has a kink there"),
    ("far bump", 0.0, r"curves only -0.\d+ in some direction at a distance of"),
    ("none", -1.0, "upper is declared convex in x, but curves -1"),
])  # fmt: skip
def test_code_that_breaks_a_promise_is_described(term, sign, words):
    """Wrong rules, kinks, NaN, concave levels: at least one message in the right words, no message twice."""
    found = bilevel.check_problem(
        Simple(jnp.asarray(sign), jnp.asarray(list(TERMS).index(term))), jnp.array([0.3, -0.7, 0.5])
    )
    assert any(re.search(words, message) for message in found), found
    starts = [message[:30] for message in found]
    assert len(starts) == len(set(starts)) and len(found) <= 6


def test_a_second_derivative_that_jumps_has_no_lipschitz_constant():
    """Huber's, which is C1: whatever L_hessian is declared."""

    class Huber(Simple):
        def lower(self, x, theta):
            r = 3 * x
            return 0.5 * jnp.sum((x - theta) ** 2) + jnp.sum(jnp.where(jnp.abs(r) <= 1, r**2 / 2, jnp.abs(r) - 0.5))

        def constants(self, theta):
            return bilevel.Constants(mu=1.0, L_upper=1.0, L_hessian=50.0, L_cross=0.0)

    found = bilevel.check_problem(Huber(jnp.asarray(0.0), jnp.asarray(0)), jnp.array([0.3, -0.7, 0.5]))
    assert len(found) == 1 and re.search("L_hessian is declared as 50 .*Its second derivative jumps", found[0])


def test_a_metric_that_is_too_heavy_is_caught(capsys):
    """H >= mu diag(W) is declared with W = 100 on weights that only their penalty holds."""

    class Heavy(LogisticRegression):
        def constants(self, theta):
            known = super().constants(theta)
            return bilevel.Constants(mu=known.mu, L=known.L, metric=100 * known.metric)

    rng = np.random.default_rng(0)
    features, labels = np.pad(rng.standard_normal((20, 3)), ((0, 0), (0, 1))), np.arange(20) % 3
    theta = jnp.full((4, 3), -2.0)
    assert bilevel.check_problem(LogisticRegression(features, labels, features, labels), theta) == []
    assert any("strongly convex" in message for message in bilevel.check_problem(
        Heavy(features, labels, features, labels), theta))  # fmt: skip
