"""What eps and delta a wanted omega affords: the roots of its model, and no more accuracy than was needed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import problems
from bilevel._outer.chunks import meter
from bilevel._outer.reached import Per
from bilevel._outer.refine import SHARE, solved_to


@pytest.mark.parametrize("per", [(2.0, 3.0, 0.0, 0.0), (2.0, 3.0, 1e6, 1e3), (0.0, 1e-9, 5.0, 7.0), (1e200, 1.0, 0, 0)])
def test_each_part_of_the_model_is_its_share(per):
    per, share = Per(*per), 0.3
    eps, delta = per.afford(share)
    np.testing.assert_allclose(per.eps * eps + per.eps2 * eps * eps, share, rtol=1e-12)
    np.testing.assert_allclose((per.delta + per.both * eps) * delta, share, rtol=1e-12)
    capped, beside = per.afford(share, most=eps / 2)
    assert capped == eps / 2 and beside >= delta


def test_what_omega_does_not_feel_may_be_anything():
    assert Per(0.0, 0.0, 0.0, 0.0).afford(1.0) == (math.inf, math.inf)
    assert Per(math.inf, math.inf, 0.0, 0.0).afford(1.0) == (0.0, 0.0)
    assert Per(1.0, 1.0, math.inf, math.inf).afford(1.0) == (0.0, 1.0)


@pytest.mark.parametrize("chunked", [False, True])
def test_bounds_of_a_large_ball_do_not_ask_for_a_hundred_times_the_accuracy(chunked):
    """From an x so coarse that omega is of second order in eps, the first guess of eps and delta is enough, and omega
    no less than a thirtieth of what it may be. By its slope at that x alone it was a two-thousandth."""
    rng = np.random.default_rng(3)
    clean = np.kron(rng.random((4, 3, 3)), np.ones((8, 8)))
    make = lambda clean, noisy: problems.Restoration(clean, noisy, problems.Ridge())  # noqa: E731
    data = clean, clean + 0.1 * rng.normal(size=clean.shape)
    problem = bilevel.Chunked(make, *data, size=2) if chunked else make(*data)
    theta = jax.tree.map(jnp.asarray, problems.Ridge().start(3, float))
    x0 = () if chunked else problem.guess(theta)

    evaluate = meter(problem, bilevel.LBFGS(), math.inf)
    point = evaluate.solve(theta, x0, 10.0)
    q = () if chunked else jnp.zeros_like(x0)
    point, coarse = evaluate.differentiate(theta, point, q, 1.0)
    per, wanted = Per.of(coarse), float(coarse.norm) / 2
    assert per.eps2 * float(point.lower.error) > 10 * per.eps
    eps, delta = per.afford(SHARE * wanted)
    point, fine = evaluate.differentiate(theta, solved_to(evaluate, theta, point, eps), coarse.q, delta)
    assert wanted / 30 <= float(fine.error) <= wanted
