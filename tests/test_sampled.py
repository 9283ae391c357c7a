"""A decrease of a mean, told from some of its units: how often wrongly, how often at all, and from how many."""

import numpy as np
import pytest

import bilevel
from bilevel import Chunked, SampledTest
from bilevel.problems import TotalVariation

DELTA, UNITS = 0.01, 1000


def population(kind, rng):
    """b of f_i(t) = a_i/2 |t - b_i|^2 on the circle of directions: even, or a few that are far from all others."""
    b = 0.1 * rng.standard_normal(UNITS)
    if kind == "rare":
        b[rng.permutation(UNITS)[:10]] = 5.0  # 1 in 100, which a small sample has not
    return b, rng.uniform(0.5, 1.5, UNITS)


def simulated(kind, seed, judge, decisions=12):
    """Decisions that were wrong, and right, of a run that goes where few units want it to: to their own minimum."""
    rng = np.random.default_rng((7, seed))
    b, a = population(kind, rng)
    t, wrong, right = 0.3, 0, 0
    for _ in range(decisions):
        some = rng.integers(0, UNITS, 8)
        trial = t - 0.5 * np.mean(a[some] * (t - b[some]))
        D = a * (trial - t) * ((trial + t) / 2 - b)
        width = 0.05 * np.abs(D)  # of the intervals
        reach = 1.05 * np.max(np.abs(D)) + 1e-12

        def ends(units, D=D, width=width):
            return D[units] - width[units], D[units] + width[units]

        if judge(ends, reach, rng):
            good = np.mean(D) <= 0
            wrong, right, t = wrong + (not good), right + good, trial
    return wrong, right


def naive(ends, reach, rng):
    """Sixteen units and their mean."""
    return np.mean(ends(rng.integers(0, UNITS, 16))[1]) <= 0


@pytest.mark.parametrize(
    ("kind", "runs"),
    [("rare", 15), *(pytest.param(kind, 1000, marks=pytest.mark.full) for kind in ("even", "rare"))],
)
def test_false_acceptances(kind, runs):
    """Of 1 000 whole runs at most 20 have one, delta being 0.01; a mean without its radius has many more. The test is
    no idler: it accepts in nearly every run."""
    bad, useful, fooled = 0, 0, 0
    for seed in range(runs):
        test = SampledTest(DELTA, seed=seed)
        wrong, right = simulated(
            kind, seed, lambda ends, reach, rng, test=test: test.judge(ends, UNITS, reach=reach).accepted
        )
        bad, useful = bad + (wrong > 0), useful + (right > 0)
        fooled += simulated(kind, seed, naive)[0] > 0
    print(f"{kind}, {runs} runs: {bad} with a false acceptance, {useful} with a right one; by the mean of 16: {fooled}")
    assert bad <= 2 * DELTA * runs
    assert useful >= 0.9 * runs
    assert fooled > 5 * DELTA * runs


SIDE = 6
RNG = np.random.default_rng(0)
CLEAN = RNG.uniform(0.2, 0.8, (40, SIDE, 1)) * np.ones((40, SIDE, SIDE))
NOISY = CLEAN + 0.1 * RNG.standard_normal(CLEAN.shape)
THETA, BETTER = np.array([-4.0, -3.0]), np.array([-2.5, -3.0])


@pytest.mark.full
def test_units_of_images():
    """Forty images: the better theta is taken by some of them, the way back by none; with all of them it is proven, and
    the bound is the difference of both values."""
    problem = Chunked(TotalVariation, CLEAN, NOISY)
    old, new = (bilevel.hypergradient(problem, theta, eps=1e-6, delta=1e-2) for theta in (THETA, BETTER))
    found = SampledTest().decreases(problem, THETA, BETTER, reach=0.15, eps=1e-4)
    assert found.accepted and found.units == 40 and found.certificate == "proven" and found.cost > 2
    assert 0 <= found.bound - (new.value - old.value) <= 1e-3
    assert not SampledTest().decreases(problem, BETTER, THETA, reach=0.15, eps=1e-4).accepted


def test_a_decision_by_few():
    """All units change by nearly the same: the first looks decide, one way and the other; then delta is spent."""
    test = SampledTest(DELTA)
    for sign in (1, -1):
        found = test.judge(lambda units, sign=sign: (sign * np.ones(len(units)),) * 2, 10**6, reach=1.0)
        assert found.accepted == (sign < 0) and found.units <= 64 and found.certificate == "probable"
    later = test.judge(lambda units: (-np.ones(len(units)),) * 2, 10**6, reach=1.0, decrease=0.5)
    assert later.accepted and later.bound <= -0.5 and later.units > found.units and test.decisions == 3


def test_misuse_is_named():
    test, chunked = SampledTest(), Chunked(TotalVariation, CLEAN, NOISY)
    for call, error, words in (
        (lambda: SampledTest(1.0), ValueError, "between 0 and 1"),
        (lambda: test.judge(lambda units: (units, units), 9, reach=0.0), ValueError, "reach"),
        (lambda: test.judge(lambda units: (units, units), 9, reach=1.0), ValueError, "unit 2 changes by 2 to 2.*raise"),
        (lambda: test.judge(lambda units: (units[:1], units), 9, reach=9.0), ValueError, "two arrays"),
        (lambda: test.judge(lambda units: np.full((2, 9), np.nan), 9, reach=9.0), ValueError, "no NaN"),
        (lambda: test.judge(lambda units: (units, units), 0, reach=9.0), ValueError, "count at least 1"),
        (lambda: test.decreases(chunked.unit(0), THETA, BETTER, reach=1.0, eps=1e-3), TypeError, "Chunked"),
        (lambda: test.decreases(chunked, THETA, BETTER[:1], reach=1.0, eps=1e-3), ValueError, "trial"),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            call()
